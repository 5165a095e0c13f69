/** Days compared with other days: the same hours of a day before, drawn over these. Pure. */
import type { Values, Window } from '../../chart/values';

/**
 * How many milliseconds before `ms` the same time of the day was, so many days before. In the browser's zone a day may
 * have 23 or 25 hours; utc: always 24.
 */
export function daysBeforeMs(ms: number, days: number, utc: boolean): number {
  if (utc) return days * 86_400_000;
  const then = new Date(ms);
  then.setDate(then.getDate() - days);
  return Math.floor(ms) - then.getTime();
}

export function earlier(window: Window, byMs: number): Window {
  return { startMs: window.startMs - byMs, endMs: window.endMs - byMs };
}

/** The same values, so much later. */
export function later(values: Values, byMs: number): Values {
  return { ...values, times: values.times.map((time) => time + byMs) };
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
