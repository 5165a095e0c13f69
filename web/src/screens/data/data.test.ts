import { describe, expect, it } from 'vitest';
import type { GapRow, Status } from '../../api/types';
import { faultOf, FIRST_PAGE, pageBefore, patternOf, placeOf } from './search';
import { bytesPerPoint, gapsBySeries, seriesKey } from './stored';

describe('a search', () => {
  it('is looked for anywhere, a pattern as it is, nothing not at all', () => {
    expect(patternOf('pump')).toBe('~(?is).*pump.*');
    expect(patternOf('line1/*')).toBe('line1/*');
    expect(patternOf('~pump_[0-9]+')).toBe('~pump_[0-9]+');
    expect(patternOf('  ')).toBeUndefined();
  });

  it('that is too long is told before the server is asked', () => {
    expect(faultOf('x'.repeat(990))).toBeUndefined();
    expect(faultOf('x'.repeat(991))).toContain('at most 990');
    expect(faultOf('1'.repeat(998))).toBeUndefined();
    expect(faultOf('1'.repeat(999))).toContain('at most 998');
  });
});

describe('pages', () => {
  it('go back to those that were seen, and always from the second to the first', () => {
    const seen = new Map([[1, ''], [2, 'b'], [3, 'c']]);
    expect(pageBefore({ page: 3, cursor: 'c' }, seen)).toEqual({ page: 2, cursor: 'b' });
    expect(pageBefore({ page: 2, cursor: 'b' }, new Map())).toEqual(FIRST_PAGE);
    expect(pageBefore({ page: 7, cursor: 'x' }, seen)).toBeUndefined();
    expect(pageBefore(FIRST_PAGE, seen)).toBeUndefined();
  });

  it.each([[3, '', FIRST_PAGE], [1, 'b', { page: 2, cursor: 'b' }], [2.5, 'b', { page: 2, cursor: 'b' }], [9, 'x', { page: 9, cursor: 'x' }]])(
    'of a URL: page %s, cursor %j', (page, cursor, place) => expect(placeOf(page, cursor)).toEqual(place));
});

describe('silences', () => {
  const gap: GapRow = {
    device_id: 'd', metric_name: 'm', tags: { b: '1', a: '2' },
    start_time: 0, end_time: 10, duration_s: 10, expected_interval_s: 1, ongoing: false,
  };

  it('are counted by series, whatever the order of tags', () => {
    const other = { ...gap, metric_name: 'n' };
    const found = gapsBySeries([gap, { ...gap, duration_s: 30, ongoing: true }, other, { ...gap, duration_s: 5 }]);
    const key = seriesKey({ device_id: 'd', metric_name: 'm', tags: { a: '2', b: '1' } });
    expect(found.get(key)).toEqual({ count: 3, longestS: 30, ongoing: true });
    expect(found.get(seriesKey(other))).toEqual({ count: 1, longestS: 10, ongoing: false });
  });
});

describe('bytes of a point', () => {
  function status(nodes: Status['nodes']): Status {
    return { ready: true, version: '', cluster: null, epoch: 1, delete_number: 0, nodes, bridges: {}, query: {} };
  }

  it('are those of all nodes that tell', () => {
    const nodes = {
      ing1: { segment_bytes: 300, segment_points: 100 },
      ing2: { segment_bytes: 100, segment_points: 100 },
      ing3: { ready: false, reason: 'not connected' },
    };
    expect(bytesPerPoint(status(nodes))).toBe(2);
  });

  it('are not known before anything is in a segment', () => {
    expect(bytesPerPoint(status({ ing1: { segment_bytes: 0, segment_points: 0 } }))).toBeNull();
    expect(bytesPerPoint(status({}))).toBeNull();
  });
});
