/** Windows of time: zoomed, panned, kept within what can be asked for. Pure. */
import type { Window } from './values';

/** Times that exist for the server: 1677 to 2262. */
const FIRST_MS = -9_223_372_036_000;
const LAST_MS = 9_223_372_036_000;
/** Nothing is told apart below this. */
export const LEAST_SPAN_MS = 1;

export function spanOf(window: Window): number {
  return window.endMs - window.startMs;
}

/** The same window within the times that exist, at least a millisecond long. */
export function kept(window: Window): Window {
  const span = Math.min(Math.max(spanOf(window), LEAST_SPAN_MS), LAST_MS - FIRST_MS);
  const startMs = Math.min(Math.max(window.startMs, FIRST_MS), LAST_MS - span);
  return { startMs, endMs: startMs + span };
}

/** factor 0.5: half as much time, around `aroundMs`, which stays where it is. */
export function zoomed(window: Window, factor: number, aroundMs = (window.startMs + window.endMs) / 2): Window {
  const share = (aroundMs - window.startMs) / spanOf(window);
  const span = Math.max(spanOf(window) * factor, LEAST_SPAN_MS);
  const startMs = aroundMs - share * span;
  return kept({ startMs, endMs: startMs + span });
}

/** Moved by a share of its length: 0.1 is a tenth later. */
export function panned(window: Window, share: number): Window {
  const by = spanOf(window) * share;
  return kept({ startMs: window.startMs + by, endMs: window.endMs + by });
}

/** Ends in order, on whole milliseconds where it is longer than a second: what a URL can show. */
export function rounded(window: Window): Window {
  const [startMs, endMs] = [Math.min(window.startMs, window.endMs), Math.max(window.startMs, window.endMs)];
  if (endMs - startMs < 1000) return kept({ startMs, endMs });
  return kept({ startMs: Math.round(startMs), endMs: Math.round(endMs) });
}
