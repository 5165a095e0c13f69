import { describe, expect, it } from 'vitest';
import { gapsOf, gapsText } from './replication';

const OWNERS = [[0, 1], [1, 2], [2, 0], [0, 2]];

describe('gapsOf', () => {
  it('finds none while all nodes are there', () => {
    const gaps = gapsOf(OWNERS, 2, [true, true, true]);
    expect(gaps.care).toEqual(['full', 'full', 'full', 'full']);
    expect(gapsText(gaps, 2)).toBe('Every partition has its 2 owners.');
  });

  it('one node away: its partitions are reduced', () => {
    const gaps = gapsOf(OWNERS, 2, [true, false, true]);
    expect(gaps.care).toEqual(['reduced', 'reduced', 'full', 'full']);
    expect([gaps.short, gaps.reduced, gaps.none]).toEqual([0, 2, 0]);
    expect(gaps.missedBy).toEqual(new Map([[1, 2]]));
    expect(gapsText(gaps, 2)).toContain('2 of 4 partitions have fewer than 2 owners');
  });

  it('two nodes away: what only they have cannot be read', () => {
    const gaps = gapsOf(OWNERS, 2, [false, true, false]);
    expect(gaps.care).toEqual(['reduced', 'reduced', 'none', 'none']);
    expect(gapsText(gaps, 2)).toContain('2 of 4 partitions have no owner that answers');
  });

  it('a partition with too few owners in the ring is short though all answer', () => {
    const gaps = gapsOf([[0], [0, 1]], 2, [true, true]);
    expect([gaps.short, gaps.reduced, gaps.none]).toEqual([1, 1, 0]);
  });

  it('more owners than wanted are enough', () => {
    expect(gapsOf([[0, 1, 2]], 1, [true, false, true]).care).toEqual(['full']);
  });
});
