/** Which interval a chart asks for: as fine as its width in pixels shows, and no finer. Pure. */
import type { Window } from '../../chart/values';
import { spanOf } from '../../chart/window';

export interface Step {
  /** Of days the usual length: those of a change of clocks are an hour longer or shorter. */
  ms: number;
  /** As the API takes it. */
  text: string;
  /** So many days of a calendar; undefined: a plain length of time. */
  days?: number;
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
  ...steps('d', DAY, 1, 7, 30, 90, 365, 730, 1825, 3650, 7300).map((step) => ({ ...step, days: step.ms / DAY })),
];

/** Narrower than this a chart is not drawn. */
export const LEAST_PIXELS = 50;

/** The shortest step that cuts a window, wherever it begins, into at most so many buckets as it has pixels. */
export function stepFor(window: Window, pixels: number): Step {
  const room = Math.max(Math.floor(pixels), LEAST_PIXELS);
  const span = spanOf(window);
  return STEPS.find((step) => Math.ceil(span / step.ms) + (step.days === undefined ? 1 : 2) <= room) ?? STEPS[STEPS.length - 1]!;
}

/** When the day begins that is so many after 1970-01-01, here or in UTC. */
function dayBegins(day: number, utc: boolean): number {
  const time = new Date(day * DAY);
  return utc ? time.getTime() : new Date(time.getUTCFullYear(), time.getUTCMonth(), time.getUTCDate()).getTime();
}

function dayOf(ms: number, utc: boolean): number {
  const time = new Date(Math.floor(ms));
  return Math.floor((utc ? ms : Date.UTC(time.getFullYear(), time.getMonth(), time.getDate())) / DAY);
}

/** The window made wider, to whole buckets: one that is cut would show another average at every move. utc: whose days. */
export function toEdges(window: Window, { ms, days }: Step, utc: boolean): Window {
  if (days !== undefined) {
    const first = Math.floor(dayOf(window.startMs, utc) / days) * days;
    const last = Math.floor(dayOf(Math.max(window.startMs, window.endMs - 1), utc) / days) * days;
    return { startMs: dayBegins(first, utc), endMs: dayBegins(last + days, utc) };
  }
  const startMs = Math.floor(window.startMs / ms) * ms;
  const buckets = Math.max(1, Math.ceil((window.endMs - startMs) / ms));
  return { startMs, endMs: startMs + buckets * ms };
}

/** Whether a chart of this window follows the days of a calendar. */
export function hasDays(window: Window, pixels: number): boolean {
  return stepFor(window, pixels).days !== undefined;
}

/**
 * Whether the points themselves are shown: they are no more than the pixels, so buckets would only blur them.
 * mostPoints: of the line that has most of them in the window.
 */
export function showsPoints(mostPoints: number, pixels: number): boolean {
  return mostPoints <= Math.max(Math.floor(pixels), LEAST_PIXELS);
}
