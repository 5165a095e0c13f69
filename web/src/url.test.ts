import { describe, expect, test } from 'vitest';
import { joinHash, readState, splitHash, writeState } from './url';

const DEFAULTS = { device: [] as string[], range: '3600s', log: false, width: 10, only: ['a'], none: undefined as string | undefined };

describe('the screen in the URL', () => {
  test.each([
    ['', 'query', ''], ['#/', 'query', ''], ['#/explore', 'explore', ''], ['#/live?a=1&b=2', 'live', 'a=1&b=2'], ['#/nonsense?a=1', 'query', 'a=1'],
    ['#data', 'data', ''], ['#/query?q=%0A?x', 'query', 'q=%0A?x'],
  ])('%j is %s with %j', (hash, screen, search) => {
    expect(splitHash(hash)).toEqual({ screen, search });
  });

  test('written and read back', () => {
    expect(splitHash(joinHash('data', 'a=b'))).toEqual({ screen: 'data', search: 'a=b' });
    expect(joinHash('data', '')).toBe('#/data');
  });
});

describe('state in the URL', () => {
  test('hostile values read back the same', () => {
    const state = { device: ['a&b=c', '<script>', '"\'', '\u202e', 'x+y z%', '#?'], range: 'all', log: true, width: -1.5, only: [] as string[], none: 'x' };
    expect(readState(writeState('', DEFAULTS, state), DEFAULTS)).toEqual(state);
  });

  test('what is as by default is left out', () => {
    expect(writeState('', DEFAULTS, DEFAULTS)).toBe('');
    expect(writeState('range=all&log=true', DEFAULTS, { range: '3600s' })).toBe('log=true');
  });

  test('an empty list is told from no list', () => {
    expect(readState('only=', DEFAULTS).only).toEqual([]);
    expect(readState('', DEFAULTS).only).toEqual(['a']);
  });

  test('values of another type count as the default', () => {
    expect(readState('log=maybe&width=wide', DEFAULTS)).toEqual(DEFAULTS);
    expect(readState('width=', DEFAULTS).width).toBe(10);
    expect(readState('width=Infinity', DEFAULTS).width).toBe(10);
  });

  test('names that are not known stay', () => {
    expect(writeState('other=1&range=all', DEFAULTS, { log: true })).toBe('other=1&range=all&log=true');
  });

  test('a patch to undefined takes the name out', () => {
    expect(writeState('none=x&range=all', DEFAULTS, { none: undefined })).toBe('range=all');
  });
});
