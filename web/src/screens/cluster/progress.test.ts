import { describe, expect, it } from 'vitest';
import { driverWords, followChange, progressOf, waysOf, type Change } from './progress';

const JOB = { state: 'running', partitions: 100, done: 25, bytes: 5_000, seconds: 10 };

describe('progressOf', () => {
  it('tells share, rate and the time left', () => {
    expect(progressOf(JOB)).toEqual({ share: 0.25, rate: 500, leftS: 30 });
  });

  it('guesses nothing before anything is done', () => {
    expect(progressOf({ ...JOB, done: 0, bytes: 0 })).toEqual({ share: 0, rate: null, leftS: null });
  });

  it('has no time left when it has ended', () => {
    expect(progressOf({ ...JOB, state: 'failed' }).leftS).toBeNull();
    expect(progressOf({ ...JOB, state: 'done', done: 100 })).toEqual({ share: 1, rate: 500, leftS: null });
  });

  it('a job of nothing is done when it says so', () => {
    expect(progressOf({ ...JOB, partitions: 0, done: 0 }).share).toBe(0);
    expect(progressOf({ ...JOB, partitions: 0, done: 0, state: 'done' }).share).toBe(1);
  });

  it('never passes the end', () => {
    expect(progressOf({ ...JOB, done: 130 }).share).toBe(1);
  });
});

describe('waysOf', () => {
  it('gathers by source and target, the most first; -1 is nobody', () => {
    expect(waysOf([[3, -1, 1], [4, 0, 2], [9, 0, 2]])).toEqual([
      { source: 0, target: 2, partitions: [4, 9] },
      { source: null, target: 1, partitions: [3] },
    ]);
  });
});

describe('followChange', () => {
  it('remembers with how many it began, until nothing moves', () => {
    const seen: Change[] = [];
    let change: Change = { total: 0, open: 0 };
    for (const open of [0, 40, 30, 50, 10, 0, 5]) seen.push((change = followChange(change, open)));
    expect(seen.map((each) => [each.total - each.open, each.total])).toEqual([[0, 0], [0, 40], [10, 40], [0, 50], [40, 50], [0, 0], [0, 5]]);
  });
});

describe('driverWords', () => {
  it('leaves out what is for programs, and tells the time of this zone', () => {
    const note = 'ringctl on vm, process 17769 (begun 8790446 b0488b350f85), last heard 2026-11-24T00:05:47Z, 31de4897';
    expect(driverWords(note)).toBe('ringctl on vm, process 17769, last heard 2026-11-24 01:05:47');
  });

  it('leaves what it does not know as it is', () => {
    expect(driverWords('somebody else')).toBe('somebody else');
  });
});
