import { describe, expect, it } from 'vitest';
import { firstFrom, gapBehind, nearest, pointValues, summaryOf, usualMs, type Values } from './values';

function buckets(bucketMs: number, times: number[], counts: number[]): Values {
  const avg = times.map((_, at) => at);
  return { bucketMs, times, min: avg.map((v) => v - 1), avg, max: avg.map((v) => v + 1), counts };
}

describe('the usual interval', () => {
  it('of points is the median of the steps', () => {
    expect(usualMs(pointValues([0, 10, 20, 500, 510], [1, 1, 1, 1, 1]))).toBe(10);
  });

  it('of buckets with many points is a part of the bucket', () => {
    expect(usualMs(buckets(60, [0, 60, 120, 180], [6, 6, 6, 6]))).toBe(10);
  });

  it('of buckets finer than the points is the distance of those that have one', () => {
    expect(usualMs(buckets(1, [0, 10, 20, 30], [1, 1, 1, 1]))).toBe(10);
  });

  it('is not known of two points', () => {
    expect(usualMs(pointValues([0, 10], [1, 1]))).toBeNaN();
  });
});

describe('a gap', () => {
  it('is a silence longer than three usual intervals', () => {
    const values = pointValues([0, 10, 20, 50, 81], [1, 1, 1, 1, 1]);
    expect([1, 2, 3].map((at) => gapBehind(values, at, 10))).toEqual([false, false, true]);
  });

  it('is none behind a day of 25 hours, but is behind a day without points', () => {
    const [day, hour] = [86_400_000, 3_600_000];
    const values = buckets(day, [0, day + hour, 2 * day + hour, 4 * day + hour], [1440, 1440, 1440, 1440]);
    expect([0, 1, 2].map((at) => gapBehind(values, at, usualMs(values)))).toEqual([false, false, true]);
  });

  it('of buckets with many points is one missing bucket', () => {
    const values = buckets(60, [0, 60, 180, 240], [6, 6, 6, 6]);
    expect([0, 1, 2].map((at) => gapBehind(values, at, usualMs(values)))).toEqual([false, true, false]);
  });

  it('of buckets with about one point each is not one missing bucket: the points only fell to its sides', () => {
    const values = buckets(10, [0, 10, 30, 40, 50], [1, 1, 1, 2, 1]);
    expect([0, 1, 2, 3].some((at) => gapBehind(values, at, usualMs(values)))).toBe(false);
  });

  it('is nowhere where the usual interval is not known', () => {
    expect(gapBehind(pointValues([0, 1e9], [1, 1]), 0, NaN)).toBe(false);
  });
});

describe('the value below the marker', () => {
  const values = pointValues([0, 100, 200], [1, 2, 3]);

  it('is the nearest one', () => {
    expect([-5, 49, 51, 149, 300].map((time) => nearest(values, time, 1000))).toEqual([0, 0, 1, 1, 2]);
  });

  it('is none beyond the reach', () => {
    expect(nearest(values, 130, 20)).toBe(-1);
  });

  it('of buckets is the one that the marker stands in, whatever the reach', () => {
    const wide = buckets(100, [0, 100, 300], [1, 1, 1]);
    expect([0, 99, 101, 199, 250, 399].map((time) => nearest(wide, time, 0))).toEqual([0, 0, 1, 1, -1, 2]);
  });

  it('of nothing is none', () => {
    expect(nearest(pointValues([], []), 0, 1e9)).toBe(-1);
  });
});

describe('firstFrom', () => {
  it('finds the first time that is not below', () => {
    expect([-1, 0, 5, 10, 11].map((time) => firstFrom([0, 10], time))).toEqual([0, 0, 1, 1, 2]);
  });
});

describe('the summary', () => {
  it('speaks of the window alone', () => {
    const values = pointValues([0, 10, 20, 30], [9, 1, 2, 9]);
    expect(summaryOf(values, { startMs: 10, endMs: 25 })).toEqual({ points: 2, min: 1, max: 2, last: 2, lastMs: 20 });
  });

  it('takes least and most of the buckets, and their points', () => {
    const values = buckets(10, [0, 10], [4, 5]);
    expect(summaryOf(values, { startMs: 5, endMs: 15 })).toEqual({ points: 9, min: -1, max: 2, last: 1, lastMs: 10 });
  });

  it('leaves out a bucket that ends where the window starts', () => {
    const values = buckets(10, [0, 10], [4, 5]);
    expect(summaryOf(values, { startMs: 10, endMs: 15 })?.points).toBe(5);
    expect(summaryOf(pointValues([10], [1]), { startMs: 10, endMs: 15 })?.points).toBe(1);
  });

  it('of nothing is undefined', () => {
    expect(summaryOf(pointValues([0], [1]), { startMs: 5, endMs: 6 })).toBeUndefined();
  });
});
