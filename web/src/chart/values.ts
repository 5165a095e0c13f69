/**
 * What a chart draws: lines of values over time, and the window of time that it shows. Pure data and arithmetic.
 * All times are milliseconds since 1970, fractions included.
 */

export type Side = 'left' | 'right';

export interface Window {
  startMs: number;
  endMs: number;
}

/**
 * The values of one line, ascending by time. bucketMs 0: points, times are theirs, min, avg and max are the same.
 * Else buckets: times are their beginnings, and only buckets that have points are here.
 */
export interface Values {
  bucketMs: number;
  times: number[];
  min: number[];
  avg: number[];
  max: number[];
  counts: number[];
}

export interface ChartLine {
  /** Unique in its chart. */
  key: string;
  label: string;
  side: Side;
  /** As canvas and CSS take it. */
  colour: string;
  /** Lengths of strokes and spaces in pixels; empty: a whole line. */
  dash: number[];
  /** Thinner, and without its band: a line to compare with. */
  faint: boolean;
  values: Values;
}

export function noValues(bucketMs = 0): Values {
  return { bucketMs, times: [], min: [], avg: [], max: [], counts: [] };
}

/** Points as values: min, avg and max are one array. */
export function pointValues(times: number[], values: number[]): Values {
  return { bucketMs: 0, times, min: values, avg: values, max: values, counts: new Array<number>(times.length).fill(1) };
}

function median(numbers: number[]): number {
  const sorted = Float64Array.from(numbers).sort();
  return sorted.length === 0 ? NaN : sorted[(sorted.length - 1) >> 1]!;
}

/**
 * The usual time between two points, NaN where it is not known (fewer than three values): the median of the steps,
 * of buckets divided by how many points they usually have.
 */
export function usualMs(values: Values): number {
  const { times, counts, bucketMs } = values;
  if (times.length < 3) return NaN;
  const steps = times.slice(1).map((time, at) => time - times[at]!);
  return bucketMs === 0 ? median(steps) : median(steps) / Math.max(1, median(counts));
}

/** A silence longer than so many usual intervals is a gap: the factor of GET /api/v1/gaps. */
const GAP_FACTOR = 3;

const DAY_MS = 86_400_000;
/** Days are up to so much longer than others, where the clocks change; two of them lie no gap apart. */
const CLOCKS_MS = 2 * 3_600_000;

/** Whether the line breaks behind value `at`: nothing came for longer than is usual. */
export function gapBehind(values: Values, at: number, usual: number): boolean {
  const slack = values.bucketMs >= DAY_MS ? CLOCKS_MS : 0;
  const silence = values.times[at + 1]! - values.times[at]! - values.bucketMs - slack;
  return silence > GAP_FACTOR * usual;
}

/** Where value `at` is drawn: a bucket in its middle. */
export function drawnAt(values: Values, at: number): number {
  return values.times[at]! + values.bucketMs / 2;
}

/** The index of the first time that is not below `time`. */
export function firstFrom(times: ArrayLike<number>, time: number): number {
  let low = 0;
  let high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle]! < time) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The index of the value that is drawn nearest to a time, -1 where none is within `reachMs` (or its own bucket). */
export function nearest(values: Values, timeMs: number, reachMs: number): number {
  const half = values.bucketMs / 2;
  const right = firstFrom(values.times, timeMs - half);
  const off = (at: number) => Math.abs(drawnAt(values, at) - timeMs);
  const best = [right - 1, right].filter((at) => at >= 0 && at < values.times.length).sort((a, b) => off(a) - off(b))[0];
  return best !== undefined && off(best) <= Math.max(reachMs, half) ? best : -1;
}

export interface Summary {
  points: number;
  min: number;
  max: number;
  last: number;
  lastMs: number;
}

/** Whether a point, or a bucket of bucketMs (0 for points), lies in a window, if only with a part. */
export function isWithin(timeMs: number, bucketMs: number, window: Window): boolean {
  const starts = bucketMs > 0 ? timeMs + bucketMs > window.startMs : timeMs >= window.startMs;
  return starts && timeMs <= window.endMs;
}

/** What a line shows within a window, in words; undefined where it shows nothing. */
export function summaryOf(values: Values, window: Window): Summary | undefined {
  const from = firstFrom(values.times, window.startMs - values.bucketMs);
  let found: Summary | undefined;
  for (let at = from; at < values.times.length && values.times[at]! <= window.endMs; at++) {
    if (!isWithin(values.times[at]!, values.bucketMs, window)) continue; // a bucket that ends where the window starts
    found = {
      points: (found?.points ?? 0) + values.counts[at]!,
      min: Math.min(found?.min ?? Infinity, values.min[at]!),
      max: Math.max(found?.max ?? -Infinity, values.max[at]!),
      last: values.avg[at]!,
      lastMs: values.times[at]!,
    };
  }
  return found;
}
