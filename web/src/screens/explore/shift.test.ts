import { afterAll, describe, expect, it } from 'vitest';
import { pointValues } from '../../chart/values';
import { comparisonOf, daysBeforeMs, earlier, later } from './shift';
import { extended, extendedLines } from './tail';

const HOUR = 3_600_000;
const zone = process.env.TZ;
process.env.TZ = 'Europe/Berlin';
afterAll(() => {
  if (zone === undefined) delete process.env.TZ;
  else process.env.TZ = zone;
});

describe('days before', () => {
  it('are the same hour of the zone: 23 hours before, where the clocks went forward between', () => {
    const midnight = Date.UTC(2024, 2, 31, 22); // the 1st of April in Berlin
    expect(daysBeforeMs(midnight, 1, false)).toBe(23 * HOUR);
    expect(daysBeforeMs(midnight, 7, false)).toBe((7 * 24 - 1) * HOUR);
    expect(daysBeforeMs(midnight, 1, true)).toBe(24 * HOUR);
  });

  it('are asked for earlier and drawn later by the same time', () => {
    expect(earlier({ startMs: 100, endMs: 200 }, 30)).toEqual({ startMs: 70, endMs: 170 });
    expect(later(pointValues([70, 170], [1, 2]), 30).times).toEqual([100, 200]);
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
