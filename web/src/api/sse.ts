/**
 * Server-sent events by fetch: EventSource cannot send the token. A stream that breaks is opened again, later each time up
 * to half a minute, and at once when the server is heard elsewhere or somebody signs in; the state says what is the matter
 * and when it is tried next. Events in between are lost: it is a feed. A page that is out of sight for long gives its
 * connection back, of which a browser has six for all its tabs.
 */
import { ApiError, authHeaders, connection, errorOf, isBack, leftAloneMs, reached, unreached, urlOf, why401, type Params } from './client';
import { signedIn, token } from './session';

export type StreamState = { kind: 'connecting' } | { kind: 'open' } | { kind: 'lost'; reason: string; retryAtMs: number };

export interface StreamHandlers {
  /** data is the event's JSON. */
  event(name: string, data: unknown): void;
  state(s: StreamState): void;
}

export interface SseEvent {
  name: string;
  data: string;
}

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 30_000;
/** Twice and a half the server's heartbeat (query.live_heartbeat_s, 15 s): a stream silent for so long is dead. */
const SILENCE_MS = 40_000;
/** Out of sight for so long, a page stops listening. */
const UNSEEN_MS = 60_000;

/** Cuts text that comes in any pieces into events; comments (`: heartbeat`) are no events. */
export function sseParser(emit: (event: SseEvent) => void): (piece: string) => void {
  let rest = '';
  let name = '';
  let data: string[] = [];
  const line = (text: string): void => {
    if (text === '') {
      if (data.length > 0) emit({ name: name === '' ? 'message' : name, data: data.join('\n') });
      name = '';
      data = [];
      return;
    }
    const colon = text.indexOf(':');
    const field = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? '' : text.slice(colon + 1).replace(/^ /, '');
    if (field === 'event') name = value;
    else if (field === 'data') data.push(value);
  };
  return (piece) => {
    rest += piece;
    // a lone \r at the end may be the half of \r\n: it waits for the next piece
    const whole = /\r\n|\n|\r(?!$)/g;
    let from = 0;
    for (let match = whole.exec(rest); match !== null; match = whole.exec(rest)) {
      line(rest.slice(from, match.index));
      from = match.index + match[0].length;
    }
    rest = rest.slice(from);
  };
}

/** Milliseconds until the next try: doubled each time, and spread so that many pages do not come back at once. */
export function backoffMs(failures: number, retryAfterS?: number, random: () => number = Math.random): number {
  const doubled = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** Math.max(0, failures - 1));
  const spread = doubled * (0.75 + random() / 2);
  return Math.max(spread, leftAloneMs({ retryAfterS }));
}

async function readAll(response: Response, alive: () => void, emit: (event: SseEvent) => void): Promise<void> {
  if (response.body === null) return;
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const take = sseParser(emit);
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    alive();
    take(decoder.decode(value, { stream: true }));
  }
}

class Stream implements OpenStream {
  private closed = false;
  private failures = 0;
  private inner = new AbortController();
  private timer: ReturnType<typeof setTimeout> | undefined;
  private silence: ReturnType<typeof setTimeout> | undefined;
  private unseen: ReturnType<typeof setTimeout> | undefined;
  private firstFailedMs = 0;
  private notBeforeMs = 0;
  private readonly unsubscribe: (() => void)[];

  constructor(private readonly url: string, private readonly on: StreamHandlers) {
    const looked = (): void => this.look();
    document.addEventListener('visibilitychange', looked);
    this.unsubscribe = [
      connection.subscribe(() => { if (!document.hidden && isBack(this.firstFailedMs, this.notBeforeMs)) this.again(); }),
      token.subscribe(() => this.again()),
      () => document.removeEventListener('visibilitychange', looked),
    ];
    void this.run();
  }

  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
    clearTimeout(this.silence);
    clearTimeout(this.unseen);
    this.unsubscribe.forEach((one) => one());
    this.inner.abort();
  }

  /** Opens now what waits to be opened. */
  again(): void {
    if (this.timer === undefined) return;
    clearTimeout(this.timer);
    this.timer = undefined;
    void this.run();
  }

  private look(): void {
    clearTimeout(this.unseen);
    if (!document.hidden) return this.again();
    this.unseen = setTimeout(() => this.lost('Nobody looked at this page'), UNSEEN_MS);
  }

  private async run(): Promise<void> {
    if (this.closed) return;
    const mine = (this.inner = new AbortController());
    this.on.state({ kind: 'connecting' });
    const used = token.get();
    try {
      await this.open(used);
      if (mine === this.inner) this.lost('The server ended the stream');
    } catch (error) {
      if (mine === this.inner) await this.failed(error, used);
    }
  }

  private async open(used: string): Promise<void> {
    const alive = () => this.hear();
    alive();
    const response = await fetch(this.url, {
      headers: { Accept: 'text/event-stream', ...authHeaders(used) },
      signal: this.inner.signal,
      credentials: 'omit',
      cache: 'no-store',
    });
    reached();
    if (!response.ok) throw await errorOf(response);
    this.on.state({ kind: 'open' });
    await readAll(response, alive, (event) => this.take(event));
  }

  private hear(): void {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => {
      this.lost('Nothing was heard for too long');
    }, SILENCE_MS);
  }

  private take(event: SseEvent): void {
    if (this.closed) return;
    const data = JSON.parse(event.data) as unknown;
    if (event.name === 'error') {
      const { error, message } = data as { error: string; message: string };
      throw new ApiError(200, error, error === 'slow_reader' ? `The server dropped this page as too slow a reader: ${message}` : message);
    }
    this.failures = 0;
    this.on.event(event.name, data);
  }

  private async failed(error: unknown, used: string): Promise<void> {
    clearTimeout(this.silence); // somebody may have to sign in first
    if (this.closed || this.timer !== undefined) return;
    if (!(error instanceof ApiError)) {
      const reason = 'The connection to the server broke';
      if (!(error instanceof SyntaxError)) unreached(reason);
      return this.lost(reason);
    }
    if (error.status !== 401) return this.lost(error.message, error.retryAfterS);
    const why = why401(used, error.message);
    if (token.get() !== used || (await signedIn(why, this.inner.signal))) return this.run();
    this.lost(why);
  }

  private lost(reason: string, retryAfterS?: number): void {
    if (this.closed || this.timer !== undefined) return;
    this.failures += 1;
    if (this.failures === 1) this.firstFailedMs = Date.now();
    this.notBeforeMs = Date.now() + leftAloneMs({ retryAfterS });
    clearTimeout(this.silence);
    this.inner.abort();
    const wait = backoffMs(this.failures, retryAfterS);
    this.on.state({ kind: 'lost', reason, retryAtMs: Date.now() + wait });
    this.timer = setTimeout(() => {
      if (!document.hidden) this.again(); // else when somebody looks
    }, wait);
  }
}

export interface OpenStream {
  close(): void;
  /** Tries at once where it waits for its next try. */
  again(): void;
}

export function openStream(path: string, params: Params, on: StreamHandlers): OpenStream {
  return new Stream(urlOf(path, params), on);
}
