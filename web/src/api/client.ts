/**
 * Every question to the server but the stream of /live goes through ask(). It returns what the server answered or throws an
 * ApiError that says in words what is wrong. It tries nothing again by itself, but for 401: then it waits for a sign-in.
 */
import { makeStore } from '../store';
import { signedIn, token } from './session';
import type { Coverage, Me } from './types';

export type Params = Record<string, string | number | boolean | string[] | undefined>;

export interface AskOptions {
  method?: 'GET' | 'POST' | 'DELETE';
  params?: Params;
  body?: unknown;
  signal?: AbortSignal;
  timeoutMs?: number;
}

interface ErrorDetails {
  field?: string;
  limit?: number;
  value?: unknown;
  setting?: string;
  coverage?: Coverage;
  retryAfterS?: number;
}

export class ApiError extends Error {
  readonly field?: string;
  readonly limit?: number;
  readonly value?: unknown;
  readonly setting?: string;
  readonly coverage?: Coverage;
  readonly retryAfterS?: number;

  /** status 0: there was no (whole) answer. code is `error` of the answer, or unreachable, broken, timeout, aborted, not_json. */
  constructor(readonly status: number, readonly code: string, message: string, details: ErrorDetails = {}) {
    super(message);
    this.name = 'ApiError';
    this.field = details.field;
    this.limit = details.limit;
    this.value = details.value;
    this.setting = details.setting;
    this.coverage = details.coverage;
    this.retryAfterS = details.retryAfterS;
  }
}

/** Above the server's own limit of time (query.timeout_s, 30 s): its words are better than ours. */
const TIMEOUT_MS = 60_000;
/** Somebody stands before the dialog. */
const TRY_TIMEOUT_MS = 10_000;

/** So long a question may take until the page says that it waits. */
const SLOW_MS = 5_000;

/** Whether the server answers at all, as the last question showed. awayMs: since when it had been down before it was up. */
export type Connection = { kind: 'unknown' } | { kind: 'up'; awayMs?: number } | { kind: 'down'; reason: string; sinceMs: number };
export const connection = makeStore<Connection>({ kind: 'unknown' });

export function reached(): void {
  const before = connection.get();
  if (before.kind !== 'up') connection.set({ kind: 'up', awayMs: before.kind === 'down' ? before.sinceMs : undefined });
}

/** Whether what has failed since then is to be asked for at once now that the server is up: it failed because it was away. */
export function isBack(firstFailedMs: number, notBeforeMs: number): boolean {
  const now = connection.get();
  return now.kind === 'up' && now.awayMs !== undefined && now.awayMs <= firstFailedMs && Date.now() >= notBeforeMs;
}

/** Since when the oldest question that takes long is on its way; null while none does. */
export const slowSince = makeStore<number | null>(null);
const slow = new Map<symbol, number>();

function tellSlow(): void {
  slowSince.set(slow.size === 0 ? null : Math.min(...slow.values()));
}

/** Returns what is to be called when the question is over. */
function watchSlow(): () => void {
  const [mine, begunMs] = [Symbol('question'), Date.now()];
  const timer = setTimeout(() => {
    slow.set(mine, begunMs);
    tellSlow();
  }, SLOW_MS);
  return () => {
    clearTimeout(timer);
    if (slow.delete(mine)) tellSlow();
  };
}

export function unreached(reason: string): void {
  if (connection.get().kind !== 'down') connection.set({ kind: 'down', reason, sinceMs: Date.now() });
}

export function authHeaders(value: string = token.get()): Record<string, string> {
  return value === '' ? {} : { Authorization: `Bearer ${value}` };
}

export function urlOf(path: string, params: Params = {}): string {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value === undefined) continue;
    for (const one of Array.isArray(value) ? value : [value]) search.append(name, String(one));
  }
  const text = search.toString();
  return text === '' ? path : `${path}?${text}`;
}

export function isAborted(error: unknown): boolean {
  return error instanceof ApiError && error.code === 'aborted';
}

/** Whatever was thrown, as an ApiError; what is no ApiError is a fault of the page. */
export function asApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  return new ApiError(0, 'page', `The page failed: ${error instanceof Error ? error.message : String(error)}`);
}

/** An answer that the server cut is the same the next time, unless something broke: so often it is tried. */
const CUT_TRIES = 3;

/** Whether asking again later may help without anybody changing anything; failures: how often it was tried in vain. */
export function isPassing(error: ApiError, failures = 1): boolean {
  if (error.status === 0) return error.code !== 'page' && error.code !== 'aborted';
  if (error.code === 'not_json') return failures <= CUT_TRIES;
  // a question that takes too long takes so long again, and the server's time with it
  if (error.setting === 'query.timeout_s') return false;
  return error.status === 429 || error.status >= 502;
}

/** Longer than any server means it; timers hold no more than 24 days. */
const MOST_RETRY_AFTER_MS = 86_400_000;

/** How long the server wants to be left alone. */
export function leftAloneMs(error: { retryAfterS?: number }): number {
  return Math.min(MOST_RETRY_AFTER_MS, (error.retryAfterS ?? 0) * 1000);
}

/** Of a header Retry-After: seconds, or a time as proxies send it. */
export function retryAfter(header: string | null, nowMs: number = Date.now()): number | undefined {
  if (header === null || header.trim() === '') return undefined;
  const value = Number(header);
  if (Number.isFinite(value)) return value < 0 ? undefined : value;
  const at = Date.parse(header);
  return Number.isNaN(at) ? undefined : Math.max(0, Math.ceil((at - nowMs) / 1000));
}

/** The error that an answer other than 2xx says, in its words where it has some. */
export async function errorOf(response: Response): Promise<ApiError> {
  const details: ErrorDetails = { retryAfterS: retryAfter(response.headers.get('retry-after')) };
  const text = await response.text().catch(() => '');
  try {
    const body = JSON.parse(text) as Record<string, unknown>;
    if (typeof body === 'object' && body !== null && typeof body.message === 'string') {
      const { field, limit, value, setting, coverage } = body as ErrorDetails;
      return new ApiError(response.status, String(body.error), body.message, { ...details, field, limit, value, setting, coverage });
    }
  } catch {
    // a proxy's page, or nothing: said below by its status
  }
  return new ApiError(response.status, 'http_error', `The server answered ${response.status} ${response.statusText}`.trim(), details);
}

interface Timed {
  signal: AbortSignal;
  timedOut(): boolean;
  done(): void;
}

function timed(outer: AbortSignal | undefined, ms: number): Timed {
  const inner = new AbortController();
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    inner.abort();
  }, ms);
  const stop = () => inner.abort();
  if (outer?.aborted) stop();
  outer?.addEventListener('abort', stop);
  const done = () => {
    clearTimeout(timer);
    outer?.removeEventListener('abort', stop);
  };
  return { signal: inner.signal, timedOut: () => late, done };
}

/** begun: an answer had come, but not all of it. */
function failure(error: unknown, outer: AbortSignal | undefined, late: boolean, ms: number, begun: boolean): ApiError {
  if (error instanceof ApiError) return error;
  if (outer?.aborted) return new ApiError(0, 'aborted', 'The question was taken back');
  if (late) return new ApiError(0, 'timeout', `The server has not answered within ${Math.round(ms / 1000)} s`);
  if (begun) return new ApiError(0, 'broken', 'The answer broke off on its way');
  unreached('it cannot be reached');
  return new ApiError(0, 'unreachable', 'The server cannot be reached');
}

async function once<T>(path: string, options: AskOptions, bearer: string): Promise<T> {
  const ms = options.timeoutMs ?? TIMEOUT_MS;
  const time = timed(options.signal, ms);
  const over = watchSlow();
  let begun = false;
  try {
    const response = await fetch(urlOf(path, options.params), {
      method: options.method ?? 'GET',
      headers: {
        Accept: 'application/json',
        ...authHeaders(bearer),
        ...(options.body === undefined ? {} : { 'Content-Type': 'application/json' }),
      },
      body: options.body === undefined ? undefined : JSON.stringify(options.body),
      signal: time.signal,
      credentials: 'omit',
      cache: 'no-store',
    });
    begun = true;
    reached();
    if (!response.ok) throw await errorOf(response);
    return parsed<T>(response.status, await response.text());
  } catch (error) {
    throw failure(error, options.signal, time.timedOut(), ms, begun);
  } finally {
    over();
    time.done();
  }
}

/** An answer that broke on its way is left open by the server, so that half of it is not JSON. */
function parsed<T>(status: number, text: string): T {
  try {
    return JSON.parse(text) as T;
  } catch {
    throw new ApiError(status, 'not_json', 'The answer broke off, or is not what this page expects');
  }
}

/** Why a token is asked for, in the words of the page: the server's are for programs. */
export function why401(used: string, message: string): string {
  return used === '' ? 'This server wants a token.' : `You were signed out: ${message}.`;
}

export async function ask<T>(path: string, options: AskOptions = {}): Promise<T> {
  for (;;) {
    const used = token.get();
    try {
      return await once<T>(path, options, used);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401) throw error;
      if (token.get() !== used) continue; // somebody signed in while this one was on its way
      const why = why401(used, error.message);
      if (!(await signedIn(why, options.signal))) throw new ApiError(401, error.code, why);
    }
  }
}

/** Whether a token that a person gave is one: throws what is wrong with it. Nobody else hears of it. */
export async function tryToken(candidate: string, signal: AbortSignal): Promise<void> {
  await once<Me>('/api/v1/me', { signal, timeoutMs: TRY_TIMEOUT_MS }, candidate);
}
