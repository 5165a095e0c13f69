/** Which interval a chart asks for: as fine as its width in pixels shows, and no finer. Pure. */
import type { Window } from '../../chart/values';
import { spanOf } from '../../chart/window';

export interface Step {
  ms: number;
  /** As the API takes it. */
  text: string;
}

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

function steps(unit: string, unitMs: number, ...amounts: number[]): Step[] {
  return amounts.map((amount) => ({ ms: amount * unitMs, text: `${amount}${unit}` }));
}

/** Those that max_points of POST /query chooses from, below them parts of a second, all of fixed length. */
export const STEPS: readonly Step[] = [
  ...steps('ms', 1, 1, 2, 5, 10, 20, 50, 100, 200, 500),
  ...steps('s', SECOND, 1, 2, 5, 10, 15, 30),
  ...steps('m', MINUTE, 1, 2, 5, 10, 15, 30),
  ...steps('h', HOUR, 1, 2, 3, 6, 12),
  ...steps('d', DAY, 1, 7, 30, 90, 365, 730, 1825, 3650, 7300),
];

/** Narrower than this a chart is not drawn. */
export const LEAST_PIXELS = 50;

/** The shortest step that cuts a window, wherever it begins, into at most so many buckets as it has pixels. */
export function stepFor(window: Window, pixels: number): Step {
  const room = Math.max(Math.floor(pixels), LEAST_PIXELS);
  const span = spanOf(window);
  return STEPS.find((step) => Math.ceil(span / step.ms) + 1 <= room) ?? STEPS[STEPS.length - 1]!;
}

/** The window made wider, to whole buckets: one that is cut would show another average at every move. */
export function toEdges(window: Window, stepMs: number): Window {
  const startMs = Math.floor(window.startMs / stepMs) * stepMs;
  const buckets = Math.max(1, Math.ceil((window.endMs - startMs) / stepMs));
  return { startMs, endMs: startMs + buckets * stepMs };
}

/**
 * Whether the points themselves are shown: they are no more than the pixels, so buckets would only blur them.
 * mostPoints: of the line that has most of them in the window.
 */
export function showsPoints(mostPoints: number, pixels: number): boolean {
  return mostPoints <= Math.max(Math.floor(pixels), LEAST_PIXELS);
}
