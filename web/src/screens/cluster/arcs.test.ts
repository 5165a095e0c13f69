import { describe, expect, it } from 'vitest';
import { MOST_SLOTS, bandsOf, changedPartitions, circles, ownersOfRank, pathOf, runsOf, slice, slotAt, slotOf, slotsOf } from './arcs';

describe('bandsOf', () => {
  it('joins neighbours of the same owner, by rank', () => {
    expect(bandsOf([[0, 1], [0, 1], [1, 0], [0, 1]])).toEqual([
      { node: 0, rank: 0, runs: [{ from: 0, to: 2 }, { from: 3, to: 4 }] },
      { node: 1, rank: 0, runs: [{ from: 2, to: 3 }] },
      { node: 0, rank: 1, runs: [{ from: 2, to: 3 }] },
      { node: 1, rank: 1, runs: [{ from: 0, to: 2 }, { from: 3, to: 4 }] },
    ]);
  });

  it('leaves a hole where a partition has fewer owners', () => {
    const second = bandsOf([[0, 1], [0], [0, 1]]).filter((band) => band.rank === 1);
    expect(second).toEqual([{ node: 1, rank: 1, runs: [{ from: 0, to: 1 }, { from: 2, to: 3 }] }]);
  });

  it('covers every partition once in each circle, whatever the owners', () => {
    const owners = Array.from({ length: 777 }, (_, i) => [(i * 7) % 5, ((i * 7) % 5) + 1]);
    for (const rank of [0, 1]) {
      const covered = new Array<number>(777).fill(0);
      for (const band of bandsOf(owners).filter((each) => each.rank === rank)) {
        for (const run of band.runs) for (let at = run.from; at < run.to; at++) covered[at]! += 1;
      }
      expect(covered.every((count) => count === 1)).toBe(true);
    }
  });
});

describe('slots', () => {
  it('are the partitions as long as they can be told apart', () => {
    expect([1, 64, 1024].map(slotsOf)).toEqual([1, 64, 1024]);
  });

  it('hold several partitions of a large ring, the commonest owner is shown', () => {
    expect(slotsOf(65536)).toBe(MOST_SLOTS);
    const owners = Array.from({ length: 4096 }, (_, i) => [i % 4 === 3 ? 9 : 2]);
    expect(new Set(ownersOfRank(owners, 0))).toEqual(new Set([2]));
  });

  it('a partition lies in the slot that holds it', () => {
    expect(slotOf(0, 1024, 65536)).toBe(0);
    expect(slotOf(63, 1024, 65536)).toBe(0);
    expect(slotOf(64, 1024, 65536)).toBe(1);
    expect(slotOf(65535, 1024, 65536)).toBe(1023);
    expect(runsOf([0, 1, 5], 8)).toEqual([{ from: 0, to: 2 }, { from: 5, to: 6 }]);
  });
});

describe('changedPartitions', () => {
  it('goes by names: an index may mean another node after a change', () => {
    expect(changedPartitions([[0], [1]], [[1], [2]], ['b', 'c'], ['a', 'b', 'c'])).toEqual([]);
    expect(changedPartitions([[0], [1]], [[0], [2]], ['b', 'c'], ['a', 'b', 'c'])).toEqual([0]);
  });

  it('an order of owners is no change, one more owner is', () => {
    expect(changedPartitions([[0, 1], [0]], [[1, 0], [0, 1]], ['a', 'b'], ['a', 'b'])).toEqual([1]);
  });

  it('says nothing of rings of another size', () => {
    expect(changedPartitions([[0]], [[0], [0]], ['a'], ['a'])).toEqual([]);
  });
});

describe('shapes', () => {
  it('a slice goes out, around, in and back', () => {
    expect(slice(0, 0.25, 50, 100)).toBe('M0.00 -100.00A100 100 0 0 1 100.00 -0.00L50.00 -0.00A50 50 0 0 0 0.00 -50.00Z');
  });

  it('a whole circle is two halves, since an arc cannot end where it begins', () => {
    expect(pathOf([{ from: 0, to: 8 }], 8, 50, 100).match(/A/g)).toHaveLength(4);
  });

  it('circles fill the room between inner and outer, first rank outermost', () => {
    const [first, second] = circles(2, 60, 102);
    expect(first).toEqual({ inner: 82, outer: 102 });
    expect(second).toEqual({ inner: 60, outer: 80 });
  });

  it('finds the slot below a pointer', () => {
    expect(slotAt(1, -80, 4, 50, 100)).toBe(0);
    expect(slotAt(80, 1, 4, 50, 100)).toBe(1);
    expect(slotAt(-80, -1, 4, 50, 100)).toBe(3);
    expect(slotAt(0, -10, 4, 50, 100)).toBeNull();
    expect(slotAt(0, -101, 4, 50, 100)).toBeNull();
  });
});
