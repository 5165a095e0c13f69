import { describe, expect, it } from 'vitest';
import { align, lonely } from './align';
import { runs } from './bands';
import { pointValues, type ChartLine, type Values } from './values';

const PLAIN = { left: false, right: false };

function line(values: Values, side: 'left' | 'right' = 'left', faint = false): ChartLine {
  return { key: 'k', label: 'l', side, colour: '#000000', dash: [], faint, values };
}

function bucketed(times: number[]): Values {
  return { bucketMs: 10, times, min: times.map(() => 1), avg: times.map(() => 2), max: times.map(() => 3), counts: times.map(() => 9) };
}

describe('aligned lines', () => {
  it('share one array of times, and are drawn on over the times of others', () => {
    const aligned = align([line(pointValues([0, 20, 40], [1, 2, 3])), line(pointValues([10, 20, 30], [4, 5, 6]))], true, PLAIN);
    expect(aligned.times).toEqual([0, 10, 20, 30, 40]);
    expect(aligned.columns).toEqual([[[1, undefined, 2, undefined, 3]], [[undefined, 4, 5, 6, undefined]]]);
  });

  it('break at a gap, with a time of its own where no other line has one there', () => {
    const aligned = align([line(pointValues([0, 10, 20, 100, 110], [1, 2, 3, 4, 5]))], true, PLAIN);
    expect(aligned.times).toEqual([0, 10, 20, 60, 100, 110]);
    expect(aligned.columns[0]).toEqual([[1, 2, 3, null, 4, 5]]);
  });

  it('break over all times of others within the gap', () => {
    const other = line(pointValues([25, 50, 75, 99], [0, 0, 0, 0]));
    const aligned = align([line(pointValues([0, 10, 20, 100, 110], [1, 2, 3, 4, 5])), other], true, PLAIN);
    expect(aligned.times).toEqual([0, 10, 20, 25, 50, 60, 75, 99, 100, 110]);
    expect(aligned.columns[0]![0]).toEqual([1, 2, 3, null, null, null, null, null, 4, 5]);
  });

  it('of buckets have three columns and stand in the middle of each', () => {
    const aligned = align([line(bucketed([0, 10, 20]))], true, PLAIN);
    expect(aligned.times).toEqual([5, 15, 25]);
    expect(aligned.columns[0]).toEqual([[3, 3, 3], [1, 1, 1], [2, 2, 2]]);
  });

  it('have one column without a band, of points, and of days compared with', () => {
    expect(align([line(bucketed([0]))], false, PLAIN).columns[0]).toHaveLength(1);
    expect(align([line(pointValues([0], [1]))], true, PLAIN).columns[0]).toHaveLength(1);
    expect(align([line(bucketed([0]), 'left', true)], true, PLAIN).columns[0]).toHaveLength(1);
  });

  it('leave out what has no logarithm, at the axis that has one, and say how much', () => {
    const values = pointValues([0, 1, 2], [-1, 0, 5]);
    const aligned = align([line(values), line(values, 'right')], true, { left: true, right: false });
    expect(aligned.columns).toEqual([[[null, null, 5]], [[-1, 0, 5]]]);
    expect(aligned.unshown).toBe(2);
  });

  it('of nothing are nothing', () => {
    expect(align([line(pointValues([], []))], true, PLAIN)).toEqual({ times: [], columns: [[[]]], dots: [[]], unshown: 0 });
  });

  it('stay as many times as buckets when twenty lines have the same ones', () => {
    const times = Array.from({ length: 2000 }, (_, at) => at * 10);
    expect(align(Array.from({ length: 20 }, () => line(bucketed(times))), true, PLAIN).times).toHaveLength(2000);
  });
});

describe('dots', () => {
  it('stand where a line would have no length', () => {
    expect(lonely([1, null, 2, 3, null, undefined, 4, undefined, null])).toEqual([0, 6]);
    expect(lonely([undefined, 7, undefined])).toEqual([1]);
    expect(lonely([1, undefined, 2])).toEqual([]);
    expect(lonely([])).toEqual([]);
  });

  it('stand at each of a few points, and of many only at lonely ones', () => {
    expect(align([line(pointValues([0, 10, 20], [1, 2, 3]))], true, PLAIN).dots).toEqual([[0, 1, 2]]);
    const times = Array.from({ length: 200 }, (_, at) => at);
    expect(align([line(pointValues([...times, 5000], [...times, 1]))], true, PLAIN).dots).toEqual([[201]]);
  });
});

describe('a band', () => {
  it('breaks at null alone, and is drawn only where it is seen', () => {
    expect(runs([1, undefined, 2, null, null, 3, 4], 0, 7)).toEqual([[0, 2], [5, 6]]);
    expect(runs([1, 2, 3, null, 5], 1, 3)).toEqual([[1, 2]]);
    expect(runs([null, undefined], 0, 2)).toEqual([]);
  });
});
