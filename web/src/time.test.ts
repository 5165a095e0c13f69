import { describe, expect, test } from 'vitest';
import {
  apiTime, DEFAULT_RANGE, formatAgo, formatDuration, formatTime, fromLocalInput, QUICK_RANGES, rangeFromText, rangeToMs, rangeToText,
  rangeToTimes, toLocalInput, type Range,
} from './time';

const MAY_MS = Date.UTC(2024, 4, 1, 10, 0, 0);

describe('ranges', () => {
  test('what is written for the URL reads back the same', () => {
    const ranges: Range[] = [...QUICK_RANGES.map(({ range }) => range), { kind: 'fixed', startMs: -5, endMs: MAY_MS + 0.25 }];
    for (const range of ranges) expect(rangeFromText(rangeToText(range))).toEqual(range);
  });

  test.each(['', 'nonsense', '0s', '-5s', '2..1', '1..', 'NaN..NaN', '1..99999999999999', 'ALL', '3600'])('%j in the URL is the default', (text) => {
    expect(rangeFromText(text)).toEqual(DEFAULT_RANGE);
  });

  test('no text is the default, or what is given as such', () => {
    expect(rangeFromText(undefined)).toEqual(DEFAULT_RANGE);
    expect(rangeFromText(undefined, { kind: 'all' })).toEqual({ kind: 'all' });
  });

  test('the last hour is asked relative to the clock of the server', () => {
    expect(rangeToTimes({ kind: 'last', seconds: 3600 })).toEqual({ start_time: '-3600s' });
  });

  test('all is asked without times', () => {
    expect(rangeToTimes({ kind: 'all' })).toEqual({});
  });

  test('a fixed range that begins with 1970 does not count as open', () => {
    expect(rangeToTimes({ kind: 'fixed', startMs: 0, endMs: 1500 }))
      .toEqual({ start_time: '1970-01-01T00:00:00.000Z', end_time: '1970-01-01T00:00:01.500Z' });
  });

  test('the ends by this clock, null where open', () => {
    expect(rangeToMs({ kind: 'last', seconds: 2 }, 10_000)).toEqual({ startMs: 8000, endMs: 10_000 });
    expect(rangeToMs({ kind: 'all' }, 10_000)).toEqual({ startMs: null, endMs: null });
  });
});

describe('times', () => {
  test('local in summer and winter, and UTC', () => {
    expect(formatTime(MAY_MS)).toBe('2024-05-01 12:00:00');
    expect(formatTime(Date.UTC(2024, 0, 1, 10))).toBe('2024-01-01 11:00:00');
    expect(formatTime(MAY_MS, { utc: true })).toBe('2024-05-01 10:00:00Z');
    expect(formatTime(MAY_MS + 7, { utc: true, precise: true })).toBe('2024-05-01 10:00:00.007Z');
  });

  test('no time, and times before 1970', () => {
    expect(formatTime(null)).toBe('–');
    expect(formatTime(Number.NaN)).toBe('–');
    expect(formatTime(1e300)).toBe('–');
    expect(formatTime(-1, { utc: true, precise: true })).toBe('1969-12-31 23:59:59.999Z');
  });

  test('the value of an input reads back the same', () => {
    for (const ms of [MAY_MS, MAY_MS + 123, 0, Date.UTC(1999, 11, 31, 22, 59, 59)]) expect(fromLocalInput(toLocalInput(ms))).toBe(ms);
  });

  test('inputs without seconds, and with a part of one', () => {
    expect(fromLocalInput('2024-05-01T12:00')).toBe(MAY_MS);
    expect(fromLocalInput('2024-05-01T12:00:00.5')).toBe(MAY_MS + 500);
  });

  test.each(['', '2024-05-01', '2024-02-30T00:00', '2024-05-01T25:00', '2024-05-01T12:60', '9999-01-01T00:00', 'x'])('%j is no time', (text) => {
    expect(fromLocalInput(text)).toBeUndefined();
  });

  test('RFC 3339 for the server', () => {
    expect(apiTime(MAY_MS)).toBe('2024-05-01T10:00:00.000Z');
  });
});

describe('durations', () => {
  test.each([
    [0, '0 s'], [0.0000123, '12 µs'], [0.0123, '12.3 ms'], [0.35, '350 ms'], [0.9996, '1 s'], [12.5, '12.5 s'], [59.99, '1 min'],
    [200, '3 min 20 s'], [3600, '1 h'], [187200, '2 d 4 h'], [-60, '-1 min'],
  ])('%d s is %j', (seconds, text) => {
    expect(formatDuration(seconds)).toBe(text);
  });

  test('none', () => {
    expect(formatDuration(null)).toBe('–');
  });

  test('ago and ahead', () => {
    expect(formatAgo(10_000, 13_900)).toBe('3 s ago');
    expect(formatAgo(10_000, 10_400)).toBe('now');
    expect(formatAgo(130_000, 10_000)).toBe('in 2 min');
    expect(formatAgo(undefined)).toBe('–');
  });
});
