/**
 * Every question to the server but the stream of /live goes through ask(). It returns what the server answered or throws an
 * ApiError that says in words what is wrong. It tries nothing again by itself, but for 401: then it waits for a sign-in.
 */
import { makeStore } from '../store';
import { signedIn, token } from './session';
import type { Coverage } from './types';

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

  /** status 0: there was no answer. code is `error` of the answer, or unreachable, timeout, aborted, not_json. */
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

/** Whether the server answers at all, as the last question showed. */
export type Connection = { kind: 'unknown' | 'up' } | { kind: 'down'; reason: string; sinceMs: number };
export const connection = makeStore<Connection>({ kind: 'unknown' });

export function reached(): void {
  if (connection.get().kind !== 'up') connection.set({ kind: 'up' });
}

export function unreached(reason: string): void {
  if (connection.get().kind !== 'down') connection.set({ kind: 'down', reason, sinceMs: Date.now() });
}

export function authHeaders(): Record<string, string> {
  const value = token.get();
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

/** Whether asking again later may help without anybody changing anything. */
export function isPassing(error: ApiError): boolean {
  return error.status === 0 ? error.code !== 'page' && error.code !== 'aborted' : error.status === 429 || error.status >= 502;
}

function seconds(header: string | null): number | undefined {
  const value = Number(header);
  return header === null || header === '' || !Number.isFinite(value) || value < 0 ? undefined : value;
}

/** The error that an answer other than 2xx says, in its words where it has some. */
export async function errorOf(response: Response): Promise<ApiError> {
  const details: ErrorDetails = { retryAfterS: seconds(response.headers.get('retry-after')) };
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

function failure(error: unknown, outer: AbortSignal | undefined, late: boolean, ms: number): ApiError {
  if (error instanceof ApiError) return error;
  if (outer?.aborted) return new ApiError(0, 'aborted', 'The question was taken back');
  if (late) return new ApiError(0, 'timeout', `The server has not answered within ${Math.round(ms / 1000)} s`);
  unreached('it cannot be reached');
  return new ApiError(0, 'unreachable', 'The server cannot be reached');
}

async function once<T>(path: string, options: AskOptions): Promise<T> {
  const ms = options.timeoutMs ?? TIMEOUT_MS;
  const time = timed(options.signal, ms);
  try {
    const response = await fetch(urlOf(path, options.params), {
      method: options.method ?? 'GET',
      headers: {
        Accept: 'application/json',
        ...authHeaders(),
        ...(options.body === undefined ? {} : { 'Content-Type': 'application/json' }),
      },
      body: options.body === undefined ? undefined : JSON.stringify(options.body),
      signal: time.signal,
      credentials: 'omit',
      cache: 'no-store',
    });
    reached();
    if (!response.ok) throw await errorOf(response);
    return parsed<T>(response.status, await response.text());
  } catch (error) {
    throw failure(error, options.signal, time.timedOut(), ms);
  } finally {
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

export async function ask<T>(path: string, options: AskOptions = {}): Promise<T> {
  for (;;) {
    const used = token.get();
    try {
      return await once<T>(path, options);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401) throw error;
      if (token.get() !== used) continue; // somebody signed in while this one was on its way
      if (!(await signedIn(error.message, options.signal))) throw error;
    }
  }
}
