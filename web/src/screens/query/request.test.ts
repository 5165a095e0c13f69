import { describe, expect, test } from 'vitest';
import { curlLine, DEFAULTS, fieldOf, operationOf, plainJson, rangeOf, requestOf, type QueryState } from './request';
import { rangeToText } from '../../time';
import { readState, splitHash } from '../../url';
import { queryHref } from '../data/links';

function of(patch: Partial<QueryState>) {
  return requestOf({ ...DEFAULTS, ...patch });
}

describe('the question', () => {
  test('an empty form asks for everything of the last hour', () => {
    expect(of({})).toEqual({ device_id: '*', metric_name: '*', operation: 'avg', start_time: '-3600s', time_unit: 'ms' });
  });

  test('ids that look like patterns are taken literally, patterns are not', () => {
    expect(of({ device: ['=a*', 'line1/*'], metric: ['temperature'] })).toMatchObject({
      device_id: [{ exact: 'a*' }, 'line1/*'], metric_name: 'temperature',
    });
  });

  test('a link from Explore asks about its series and no other', () => {
    const tags = JSON.parse('{"__proto__": "~x", "a=b&c": "=d"}') as Record<string, string>;
    const href = queryHref({ device_id: '=a # %', metric_name: '*', tags }, { kind: 'last', seconds: 900 });
    const asked = requestOf(readState(splitHash(href).search, DEFAULTS));
    expect(asked).toMatchObject({ device_id: { exact: '=a # %' }, metric_name: { exact: '*' }, start_time: '-900s' });
    expect(Object.entries(asked.tags ?? {})).toEqual([['__proto__', { exact: '~x' }], ['a=b&c', { exact: '=d' }]]);
    expect(asked).not.toHaveProperty('more_tags');
    expect(queryHref({ device_id: 'a', metric_name: 'b', tags: {} }, { kind: 'all' })).toBe('#/query?device=a&metric=b&range=all');
  });

  test('tags let others beside them, unless exactly these are wanted', () => {
    expect(of({ tags: ['room=lab'] })).toMatchObject({ tags: { room: 'lab' }, more_tags: true });
    expect(of({ tags: ['room=lab'], exact: true })).not.toHaveProperty('more_tags');
  });

  test('days are those of the zone of the browser, hours need none', () => {
    expect(of({ interval: '1d' })).toMatchObject({ interval: '1d', timezone: 'Europe/Berlin', limit: 5000 });
    expect(of({ interval: '1h' })).not.toHaveProperty('timezone');
    expect(of({ interval: 'auto' })).toMatchObject({ max_points: 100, timezone: 'Europe/Berlin' }); // may be days, too
  });

  test('groups have rows, and rows a limit', () => {
    expect(of({ group: 'tags.room' })).toMatchObject({ group_by: 'tags.room', limit: 5000 });
    expect(of({})).not.toHaveProperty('limit');
  });

  test('percentiles', () => {
    expect(operationOf({ ...DEFAULTS, op: 'percentile', p: ' 99.9 ' })).toBe('percentile(99.9)');
  });
});

test.each(['900s', 'all', '1000..2500', '0..86400000'])('the range %s is told by its question', (range) => {
  expect(rangeToText(rangeOf(of({ range })))).toBe(range);
});

describe('the curl line', () => {
  test('quotes what a shell would take, and has the token as a variable only', () => {
    const line = curlLine('http://127.0.0.1:8080', of({ device: ["it's; rm -rf $HOME"] }), true);
    expect(line).toContain(`"device_id":"it'\\''s; rm -rf $HOME"`);
    expect(line).toContain('-H "Authorization: Bearer $TOKEN"');
    expect(curlLine('http://h', of({}), false)).not.toContain('Authorization');
  });

  test('nothing hides in it', () => {
    const text = plainJson({ id: 'a\u202eb\nü😀' });
    expect(text).toMatch(/^[\x20-\x7e]+$/);
    expect(JSON.parse(text)).toEqual({ id: 'a\u202eb\nü😀' });
  });
});

test.each([
  ['device_id', 'device'], ['metric_name', 'metric'], ['tags.room', 'tags'], ['operation', 'op'], ['end_time', 'range'], ['max_points', 'interval'],
  ['group_by', 'group'], ['limit', undefined], [undefined, undefined],
])('an error about %s stands at %s', (field, at) => {
  expect(fieldOf(field)).toBe(at);
});
