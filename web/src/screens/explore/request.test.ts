import { describe, expect, it } from 'vitest';
import type { Coverage, QueryAnswer, Samples } from '../../api/types';
import { LEAST_MS, MOST_MS } from '../../time';
import { keyOf, type Line } from './lines';
import { bucketsBody, exactOfSamples, groupsOf, mergedLines, mostPoints, ofBuckets, ofSamples, pointsOf, samplesBody, timeText, worstCoverage } from './request';

function line(device: string, metric = 'm', tags: Record<string, string> = {}): Line {
  return { device, metric, tags, side: 'left', hidden: false };
}

function coverage(asked: number, answered: number): Coverage {
  return { partitions_asked: asked, partitions_answered: answered, complete: asked === answered, epoch: 1, delete_number: 0, nodes: [], missing: [] };
}

describe('questions', () => {
  it('are one for each metric and set of tags', () => {
    const groups = groupsOf([line('a'), line('b'), line('a', 'n'), line('a', 'm', { x: '1' }), line('c')]);
    expect(groups.map(({ metric, tags, devices }) => [metric, tags, devices])).toEqual([
      ['m', {}, ['a', 'b', 'c']], ['n', {}, ['a']], ['m', { x: '1' }, ['a']],
    ]);
  });

  it('for buckets take whole ones, to the last nanosecond before the edge', () => {
    const body = bucketsBody(groupsOf([line('a')])[0]!, { startMs: 1500, endMs: 2500 }, { ms: 1000, text: '1s' }, false);
    expect(body).toMatchObject({
      device_id: ['a'], metric_name: 'm', tags: {}, operation: ['min', 'avg', 'max'], interval: '1s', group_by: 'series', time_unit: 'ms',
      start_time: '1970-01-01T00:00:01.000000000Z', end_time: '1970-01-01T00:00:02.999999999Z',
    });
  });

  it('ask for no times that the server does not know, however far one zooms out', () => {
    const [all, group] = [{ startMs: LEAST_MS, endMs: MOST_MS }, groupsOf([line('a')])[0]!];
    const body = bucketsBody(group, all, { ms: 7300 * 86_400_000, text: '7300d', days: 7300 }, true);
    const ends = { start_time: '1677-09-21T00:12:44.000000000Z', end_time: '2262-04-11T23:47:15.999999999Z' };
    expect([body, samplesBody(group, { startMs: LEAST_MS - 1e9, endMs: MOST_MS + 1e9 }, 9)]).toMatchObject([
      ends, { ...ends, end_time: '2262-04-11T23:47:16.000000000Z' }]);
  });

  it('for days are of the zone of the browser, or of UTC', () => {
    const body = (utc: boolean) => bucketsBody(groupsOf([line('a')])[0]!, { startMs: 0, endMs: 1 }, { ms: 86_400_000, text: '1d', days: 1 }, utc);
    expect(body(false)).toMatchObject({ interval: '1d', timezone: 'Europe/Berlin', start_time: '1969-12-31T23:00:00.000000000Z' });
    expect(body(true).timezone).toBeUndefined();
  });

  it('take ids literally', () => {
    const body = samplesBody(groupsOf([line('a*', '~m', { t: '?' })])[0]!, { startMs: 0, endMs: 1 }, 7);
    expect(body).toMatchObject({ device_id: [{ exact: 'a*' }], metric_name: { exact: '~m' }, tags: { t: { exact: '?' } }, limit: 7 });
  });

  it('tell times to the nanosecond, 1970 and before too', () => {
    expect(timeText(0)).toBe('1970-01-01T00:00:00.000000000Z');
    expect(timeText(-0.5)).toBe('1969-12-31T23:59:59.999500000Z');
    expect(timeText(1_700_000_000_123.25)).toBe('2023-11-14T22:13:20.123250000Z');
  });
});

describe('answers', () => {
  it('of buckets are values by line, without those that have no average', () => {
    const row = (time: number, device: string, avg: number | null) => ({ time, device_id: device, metric_name: 'm', tags: {}, min: 1, avg, max: 3, count: 4 });
    const answer = { rows: [row(0, 'a', 2), row(10, 'a', null), row(20, 'a', 2.5), row(0, 'b', 1)] } as unknown as QueryAnswer;
    const lines = ofBuckets(answer, 10);
    expect(lines.get(keyOf(line('a')))).toEqual({ bucketMs: 10, times: [0, 20], min: [1, 1], avg: [2, 2.5], max: [3, 3], counts: [4, 4] });
    expect([mostPoints(lines), pointsOf(lines)]).toEqual([8, 12]);
  });

  it('of points join the entries of a long series', () => {
    const entry = (times: number[], values: number[]) => ({ device_id: 'a', metric_name: 'm', tags: {}, times, values });
    const answer: Samples = { series: [entry([1, 2], [5, 6]), entry([3], [7])], next_cursor: null, coverage: coverage(1, 1) };
    const values = ofSamples(answer).get(keyOf(line('a')))!;
    expect([values.bucketMs, values.times, values.avg, values.counts]).toEqual([0, [1, 2, 3], [5, 6, 7], [1, 1, 1]]);
  });

  it('with exact times have all nine digits, so that texts have the order of time', () => {
    const series = [{ device_id: 'a', metric_name: 'm', tags: {}, times: ['2026-01-01T00:00:00Z', '2026-01-01T00:00:00.25Z', '2026-01-01T00:00:00.250000001Z'], values: [1, 2, 3] }];
    expect(exactOfSamples({ series, next_cursor: null }).get(keyOf(line('a')))?.times.map((time) => time.slice(20))).toEqual(['000000000Z', '250000000Z', '250000001Z']);
  });

  it('of nothing are nothing', () => {
    expect(mostPoints(mergedLines([]))).toBe(0);
    expect(worstCoverage([])).toBeUndefined();
  });

  it('are as complete as the worst', () => {
    const [good, bad, worse] = [coverage(9, 9), coverage(9, 8), coverage(9, 3)];
    expect(worstCoverage([good, worse, bad])).toBe(worse);
    expect(worstCoverage([good, good])).toBe(good);
  });
});
