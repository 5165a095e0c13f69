import { describe, expect, test } from 'vitest';
import type { QueryAnswer } from '../../api/types';
import { intervalMs, linesOf, MOST_LINES, windowOf } from './course';

const ANSWER: QueryAnswer = {
  device_id: '*', metric_name: '*', operation: 'avg', start_time: '-3600s', end_time: 0, range: { start_time: 1000, end_time: null },
  interval: '1m', count: 4, duration_ns: 1, coverage: {} as QueryAnswer['coverage'],
  rows: [{ time: 0, avg: 1, count: 2 }, { time: 60_000, avg: null, count: 1 }, { time: 120_000, avg: 3, count: 1 }],
};

test.each([['15m', 900_000], ['500ms', 500], ['1mo', 2_592_000_000], ['7d', 604_800_000], ['90', 90_000], ['all', 0]])('%s', (text, ms) => {
  expect(intervalMs(text)).toBe(ms);
});

describe('lines', () => {
  test('a figure that is none has no place', () => {
    const { lines } = linesOf(ANSWER, ['#111111']);
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatchObject({ label: 'avg', values: { bucketMs: 60_000, times: [0, 120_000], avg: [1, 3], counts: [2, 1] } });
  });

  test('one for each group, by its names, at most so many', () => {
    const rows = Array.from({ length: 20 }, (_, at) => ({ time: 0, device_id: `d${at}`, metric_name: 'm', tags: { b: '1', a: '2' }, avg: at, count: 1 }));
    const { lines, groups } = linesOf({ ...ANSWER, group_by: ['series'], rows }, ['#111111', '#222222']);
    expect(lines).toHaveLength(MOST_LINES);
    expect(groups).toBe(20);
    expect(lines[1]).toMatchObject({ label: 'd1 m a=2, b=1', colour: '#222222' });
    expect(new Set(lines.map(({ key }) => key)).size).toBe(MOST_LINES);
  });
});

test('the window is the range, its open ends those of the rows', () => {
  const { lines } = linesOf(ANSWER, ['#111111']);
  expect(windowOf(ANSWER, lines)).toEqual({ startMs: 1000, endMs: 180_000 });
  const fixed = { ...ANSWER, range: undefined, start_time: '1970-01-01T00:00:10Z', end_time: '1970-01-01T00:01:00Z' };
  expect(windowOf(fixed, lines)).toEqual({ startMs: 10_000, endMs: 60_000 });
});
