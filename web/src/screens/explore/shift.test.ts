import { afterAll, describe, expect, it } from 'vitest';
import { pointValues } from '../../chart/values';
import { comparisonOf, earlier, later } from './shift';
import { extended, extendedLines } from './tail';

const HOUR = 3_600_000;
const zone = process.env.TZ;
process.env.TZ = 'Europe/Berlin';
afterAll(() => {
  if (zone === undefined) delete process.env.TZ;
  else process.env.TZ = zone;
});

describe('days before', () => {
  it('are the same hours of the clock, where the clocks went forward between too', () => {
    const midnight = Date.UTC(2024, 2, 31, 22); // the 1st of April in Berlin
    const day = { startMs: midnight, endMs: midnight + 24 * HOUR };
    expect(earlier(day, 1, false)).toEqual({ startMs: midnight - 23 * HOUR, endMs: midnight });
    expect(earlier(day, 1, true)).toEqual({ startMs: midnight - 24 * HOUR, endMs: midnight });
  });

  it('are drawn at their time of the clock: what was at 8 stands at 8', () => {
    const saturday = Date.UTC(2024, 2, 29, 23); // in Berlin, winter time; the Sunday has 23 hours
    const hours = pointValues(Array.from({ length: 24 }, (_, at) => saturday + at * HOUR), Array.from({ length: 24 }, (_, at) => at));
    const moved = later(hours, 1, false);
    expect(moved.times.map((time) => new Date(time).getHours())).toEqual(moved.avg);
    expect(moved.avg).not.toContain(2); // that Sunday has no 2 o'clock
    expect(moved.avg).toHaveLength(23);
    expect(later(hours, 1, true).times).toEqual(hours.times.map((time) => time + 24 * HOUR));
  });

  it('of a day of 25 hours keep the first of the hour that came twice', () => {
    const sunday = Date.UTC(2024, 9, 26, 22);
    const hours = pointValues(Array.from({ length: 25 }, (_, at) => sunday + at * HOUR), Array.from({ length: 25 }, (_, at) => at));
    const moved = later(hours, 1, false);
    expect(moved.avg).toEqual(Array.from({ length: 25 }, (_, at) => at).filter((at) => at !== 3));
    expect(moved.times.every((time, at) => at === 0 || time > moved.times[at - 1]!)).toBe(true);
  });

  it('of buckets of days stay one for each day', () => {
    const days = { bucketMs: 24 * HOUR, times: [Date.UTC(2024, 2, 29, 23), Date.UTC(2024, 2, 30, 23)], min: [1, 2], avg: [1, 2], max: [1, 2], counts: [1, 1] };
    expect(later(days, 1, false).times).toEqual([Date.UTC(2024, 2, 30, 23), Date.UTC(2024, 2, 31, 22)]);
  });

  it('are those that the page offers, whatever the URL says', () => {
    expect([1, 7, 3, -1, NaN].map(comparisonOf)).toEqual([1, 7, 0, 0, 0]);
  });
});

describe('live follow', () => {
  it('puts what is new in the place of what was there, and lets go of what the window left', () => {
    const old = pointValues([0, 10, 20, 30], [1, 2, 3, 4]);
    const fresh = pointValues([20, 30, 40], [3, 5, 6]);
    const made = extended(old, fresh, 20, 10);
    expect([made.times, made.avg, made.counts]).toEqual([[10, 20, 30, 40], [2, 3, 5, 6], [1, 1, 1, 1]]);
  });

  it('keeps what is there when nothing is new, and takes what begins', () => {
    const lines = extendedLines(new Map([['a', pointValues([0, 10], [1, 2])]]), new Map([['b', pointValues([15], [9])]]), 12, 0, 0);
    expect([...lines].map(([key, { times }]) => [key, times])).toEqual([['a', [0, 10]], ['b', [15]]]);
  });

  it('forgets what was taken away at the end', () => {
    expect(extended(pointValues([0, 10, 20], [1, 2, 3]), pointValues([], []), 10, 0).times).toEqual([0]);
  });
});
