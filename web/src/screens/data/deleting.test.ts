import { describe, expect, it } from 'vitest';
import { ApiError } from '../../api/client';
import type { Deleted, Me, Status } from '../../api/types';
import {
  deleteBody, failureWords, fixedTimes, isInForce, isTyped, mayDelete, phraseOf, recordOf, resultWords, stillWaiting,
  wouldGoWords,
} from './deleting';

const OPEN = { startMs: null, endMs: null };
const ALL = { device: 'pump_1', metric: null, tags: null };

function sent(body: Record<string, unknown>): unknown {
  return JSON.parse(JSON.stringify(body));
}

describe('the body of a delete', () => {
  it('takes every text literally', () => {
    const target = { device: '~a*', metric: 'b?', tags: { room: '*' } };
    expect(sent(deleteBody(target, OPEN, true))).toEqual({
      device_id: { exact: '~a*' }, metric_name: { exact: 'b?' }, tags: { room: { exact: '*' } }, dry_run: true, time_unit: 'ms',
    });
  });

  it('leaves out what is any, and keeps "no tags" apart from any', () => {
    expect(sent(deleteBody(ALL, OPEN, false))).toEqual({ device_id: { exact: 'pump_1' }, time_unit: 'ms' });
    expect(sent(deleteBody({ ...ALL, tags: {} }, OPEN, false))).toHaveProperty('tags', {});
  });

  it('has times as text, for 0 would be an open end', () => {
    const body = deleteBody(ALL, { startMs: 0, endMs: 1500 }, false);
    expect(body).toMatchObject({ start_time: '1970-01-01T00:00:00.000Z', end_time: '1970-01-01T00:00:01.500Z' });
  });
});

describe('the range of a delete', () => {
  it('is fixed at both ends once it was looked at', () => {
    expect(fixedTimes({ kind: 'last', seconds: 60 }, 100_000.7)).toEqual({ startMs: 40_000, endMs: 100_000 });
    expect(fixedTimes({ kind: 'all' }, 5)).toEqual(OPEN);
    expect(fixedTimes({ kind: 'fixed', startMs: 1, endMs: 2 }, 5)).toEqual({ startMs: 1, endMs: 2 });
  });
});

describe('what has to be typed', () => {
  it('is the id where a keyboard types that', () => {
    expect(phraseOf('line1/pump_1', 5)).toBe('line1/pump_1');
    expect(isTyped(' line1/pump_1 ', 'line1/pump_1')).toBe(true);
    expect(isTyped('line1/pump', 'line1/pump_1')).toBe(false);
    expect(isTyped('LINE1/PUMP_1', 'line1/pump_1')).toBe(false);
  });

  it('is the number of points for ids that nobody could type', () => {
    for (const id of ['a\u202eb', 'x'.repeat(256), ' a', 'tür', 'a\nb', '', 'a  b']) {
      expect(phraseOf(id, 61)).toBe('delete 61 points');
    }
  });
});

describe('who may delete', () => {
  const me: Me = { name: 'x', scopes: ['read'], auth: true, version: '', now: 0 };
  it('is whom the token lets, or anybody where no token is wanted', () => {
    expect(mayDelete(me)).toBe(false);
    expect(mayDelete({ ...me, scopes: ['read', 'delete'] })).toBe(true);
    expect(mayDelete({ ...me, scopes: ['admin'] })).toBe(true);
    expect(mayDelete({ ...me, scopes: [], auth: false })).toBe(true);
  });
});

describe('what came of it', () => {
  const told: Deleted = {
    number: 5, device_id: 'pump_1', metric_name: null, tags: null, start_time: null, end_time: null,
    matched: { series: 1, points: 1234, complete: true },
    complete: true, adopted: ['ing1', 'bridge1'], waiting: [], unreachable: [],
  };

  it('is said when everybody acts on it', () => {
    expect(resultWords(told)).toEqual({
      tone: 'ok',
      title: 'Deleted: delete 5 is in force.',
      lines: ['It took 1,234 points of 1 series.', 'Acted on by ing1, bridge1.'],
    });
  });

  it('names who is waited for and who is away', () => {
    const words = resultWords({
      ...told,
      matched: null,
      waiting: [{ worker: 'bridge1', reason: 'is at epoch 4' }],
      unreachable: [{ worker: 'ing2', reason: 'not connected' }],
    });
    expect(words.tone).toBe('warn');
    expect(words.title).toContain('not everybody acts on it yet');
    expect(words.lines.join('\n')).toContain('Waiting for bridge1: is at epoch 4.');
    expect(words.lines.join('\n')).toContain('ing2 cannot be reached (not connected)');
    expect(words.lines[0]).toContain('could not be counted');
  });

  it('of a failure is whether it is in force all the same', () => {
    const kept = new ApiError(503, 'ring_store', 'delete 5 is in force, but a power cut may undo it: x');
    const none = new ApiError(503, 'ring_store', 'nothing is deleted, delete 5 is not in force: x');
    const open = new ApiError(503, 'ring_store', 'delete 5 may be in force or not: x');
    expect(isInForce(kept)).toBe('yes');
    expect(isInForce(none)).toBe('no');
    expect(isInForce(open)).toBe('unknown');
    expect(isInForce(new ApiError(403, 'forbidden', 'the token lacks the scope delete'))).toBe('no');
    expect(isInForce(new ApiError(0, 'timeout', 'The server has not answered within 60 s'))).toBe('unknown');
    expect(failureWords(none).title).toBe('Nothing was deleted.');
  });

  it('is found in the list of deletes when the answer never came', () => {
    const record = { number: 6, device_id: 'pump_1', metric_name: null, tags: null, start_time: 5, end_time: null };
    const times = { startMs: 5, endMs: null };
    expect(recordOf([{ ...record, number: 4 }, record], ALL, times, 4)?.number).toBe(6);
    expect(recordOf([record], ALL, times, 6)).toBeUndefined();
    expect(recordOf([record], ALL, OPEN, 4)).toBeUndefined();
    expect(recordOf([record], { ...ALL, tags: {} }, times, 4)).toBeUndefined();
    expect(recordOf([record], { ...ALL, metric: 'm' }, times, 4)).toBeUndefined();
  });

  it('goes on until those that were waited for are at its epoch', () => {
    const status = {
      nodes: { ing1: { epoch: 5 }, ing2: { epoch: 4 } },
      bridges: { bridge1: { epoch: 7 } },
    } as unknown as Status;
    expect(stillWaiting(status, ['ing1', 'ing2', 'bridge1', 'gone'], 5)).toEqual(['ing2', 'gone']);
  });
});

describe('the dry run', () => {
  it('is told in words', () => {
    const found = { dry_run: true as const, series: 2, points: 1, first_time: 0, last_time: 0, of_series: [] };
    const coverage = { partitions_asked: 1, partitions_answered: 1, complete: true, epoch: 1, delete_number: 0, nodes: [], missing: [] };
    expect(wouldGoWords({ ...found, coverage })).toBe('1 point of 2 series would go.');
    expect(wouldGoWords({ ...found, points: 0, coverage })).toContain('No points would go');
  });
});
