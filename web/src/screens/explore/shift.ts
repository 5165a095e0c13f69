/** Days compared with other days: the same hours of the clock on a day before, drawn over these. Pure. */
import { noValues, type Values, type Window } from '../../chart/values';

const DAY_MS = 86_400_000;

/**
 * The same time of the clock so many days later. In the browser's zone a day may have 23 or 25 hours; utc: always 24.
 * undefined where the clock does not show that time then.
 */
export function daysLater(ms: number, days: number, utc: boolean): number | undefined {
  if (utc) return ms + days * DAY_MS;
  const then = new Date(Math.floor(ms));
  const clock = then.getHours() * 60 + then.getMinutes();
  then.setDate(then.getDate() + days);
  return then.getHours() * 60 + then.getMinutes() === clock ? then.getTime() + (ms - Math.floor(ms)) : undefined;
}

/** The same hours of the clock so many days before; an end that the clock skipped then is an hour off. */
export function earlier({ startMs, endMs }: Window, days: number, utc: boolean): Window {
  const before = (ms: number) => daysLater(ms, -days, utc) ?? ms - days * DAY_MS;
  return { startMs: before(startMs), endMs: Math.max(before(endMs), before(startMs) + 1) };
}

/**
 * Values drawn so many days later, each at its time of the clock. The hour that the clock of the later day skips has no place;
 * of an hour that the earlier day had twice, the first is kept. Buckets of days begin with their day, whenever that is.
 */
export function later(values: Values, days: number, utc: boolean): Values {
  if (utc) return { ...values, times: values.times.map((time) => time + days * DAY_MS) };
  const ofDays = values.bucketMs >= DAY_MS;
  const made = noValues(values.bucketMs);
  let last = -Infinity;
  values.times.forEach((time, at) => {
    const moved = daysLater(time, days, false) ?? (ofDays ? time + days * DAY_MS : undefined);
    if (moved === undefined || moved <= last) return;
    last = moved;
    made.times.push(moved);
    for (const name of ['min', 'avg', 'max', 'counts'] as const) made[name].push(values[name][at]!);
  });
  return made;
}

export const COMPARISONS: readonly { days: number; label: string }[] = [
  { days: 0, label: 'nothing' },
  { days: 1, label: 'the day before' },
  { days: 2, label: 'two days before' },
  { days: 7, label: 'the week before' },
  { days: 28, label: 'four weeks before' },
];

/** A number of days that a URL may name: what the page offers, else none. */
export function comparisonOf(days: number): number {
  return COMPARISONS.some((one) => one.days === days) ? days : 0;
}
