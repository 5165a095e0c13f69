/** Who asks, and what time it is at the server: the clock of this browser may be another one. */
import { makeStore } from '../store';
import { ask, type AskOptions } from './client';
import type { Me } from './types';

/** How far the server's clock is ahead of this one, in milliseconds; null: not known yet. */
const ahead = makeStore<number | null>(null);

/** No answer is on its way for longer: what takes longer waited for a sign-in before. */
const MOST_ON_THE_WAY_MS = 2_000;
const WAIT_MS = 500;

/** Of a clock that was read between the question and the answer: half way, as far as one knows. */
export function aheadOf(serverMs: number, askedMs: number, answeredMs: number): number {
  return serverMs - (answeredMs - Math.min(answeredMs - askedMs, MOST_ON_THE_WAY_MS) / 2);
}

export async function askMe(options: AskOptions = {}): Promise<Me> {
  const askedMs = Date.now();
  const me = await ask<Me>('/api/v1/me', options);
  ahead.set(aheadOf(me.now * 1000, askedMs, Date.now()));
  return me;
}

/** Milliseconds since 1970 by the server's clock; by this one until an answer of askMe is here. */
export function serverNow(): number {
  return Date.now() + (ahead.get() ?? 0);
}

/** The same, after a little wait for the first answer: of who asks as soon as the page is opened. */
export async function serverNowKnown(): Promise<number> {
  if (ahead.get() === null) {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(done, WAIT_MS);
      const unsubscribe = ahead.subscribe(done);
      function done(): void {
        clearTimeout(timer);
        unsubscribe();
        resolve();
      }
    });
  }
  return serverNow();
}
