import { describe, expect, it } from 'vitest';
import type { DeadRow } from '../../api/types';
import { MOST_SAMPLES, byReason, deadRemarks } from './deadletters';

function row(bridge: string, reason: string, count: number, ...times: number[]): DeadRow {
  return { bridge, reason, count, samples: times.map((time) => ({ time, topic: 't', payload: 'p', detail: 'd' })) };
}

describe('byReason', () => {
  it('adds bridges, the most frequent reason first, the newest sample first', () => {
    const found = byReason([row('b1', 'not-json', 3, 10, 5), row('b2', 'not-json', 4, 7), row('b1', 'future', 5)]);
    expect(found.map((each) => [each.reason, each.count, each.bridges])).toEqual([['not-json', 7, ['b1', 'b2']], ['future', 5, ['b1']]]);
    expect(found[0].samples.map((each) => [each.time, each.bridge])).toEqual([[10, 'b1'], [7, 'b2'], [5, 'b1']]);
  });

  it('keeps no more samples than are shown', () => {
    const many = Array.from({ length: 50 }, (_, at) => at);
    expect(byReason([row('b', 'x', 50, ...many)])[0].samples).toHaveLength(MOST_SAMPLES);
  });
});

describe('deadRemarks', () => {
  const bridge = { bridge: 'b1', ready: true, age_s: 0, bytes: 1, limit_bytes: 2, waiting: 0, error: '', uncounted_bytes: 0 };

  it('says nothing of a bridge that is well', () => {
    expect(deadRemarks([bridge])).toEqual([]);
  });

  it('says what waits, who is silent, what is not counted', () => {
    const said = deadRemarks([{ ...bridge, ready: false, waiting: 3, error: 'full', uncounted_bytes: 9 }]);
    expect(said).toHaveLength(3);
    expect(said[0]).toContain('3 records could not be written yet: full');
  });
});
