import { describe, expect, it } from 'vitest';
import { pointValues } from '../../chart/values';
import { rangeFromText } from '../../time';
import { readState, writeState } from '../../url';
import { keyOf, lineToText, linesFromTexts, type Line } from './lines';
import { chartLines, DEFAULTS, fixedRange, guessedWindow, spokenChart, withLog } from './view';

const A: Line = { device: 'a', metric: 'm', tags: {}, side: 'left', hidden: false };
const B: Line = { ...A, device: '~b', side: 'right' };
const COLOURS = ['#111111', '#222222'];

describe('the view in the URL', () => {
  it('comes back whole', () => {
    const view = {
      line: [A, B].map(lineToText), range: fixedRange({ startMs: 1.25, endMs: 7 }), log: 'r', band: false, utc: true, compare: 7,
      follow: false, drag: 'pan', table: true,
    };
    const read = readState(writeState('', DEFAULTS, view), DEFAULTS);
    expect(read).toEqual(view);
    expect(linesFromTexts(read.line)).toEqual([A, B]);
    expect(rangeFromText(read.range)).toEqual({ kind: 'fixed', startMs: 1.25, endMs: 7 });
  });

  it('is empty where everything is as by default', () => {
    expect(writeState('', DEFAULTS, DEFAULTS)).toBe('');
  });

  it('knows a logarithm for each axis', () => {
    expect([withLog('', 'r', true), withLog('r', 'l', true), withLog('lr', 'r', false)]).toEqual(['r', 'lr', 'l']);
  });
});

describe('what is drawn', () => {
  const values = new Map([[keyOf(A), pointValues([1], [2])]]);

  it('keeps the colours of lines when others are hidden', () => {
    const drawn = chartLines([{ ...A, hidden: true }, B], values, new Map(), 0, COLOURS);
    expect(drawn.map(({ colour, side }) => [colour, side])).toEqual([['#222222', 'right']]);
  });

  it('has the compared day below, faint, in the same colour', () => {
    const drawn = chartLines([A], values, values, 1, COLOURS);
    expect(drawn.map(({ label, faint, colour }) => [label, faint, colour])).toEqual([
      ['a m, the day before', true, '#111111'], ['a m', false, '#111111']]);
  });

  it('is said in a sentence, with hidden characters shown', () => {
    expect(spokenChart([A], 'Now')).toBe('Line over time: a m. Now');
    expect(spokenChart([A, { ...A, device: 'x\u202e' }], 'Now')).toBe('2 lines over time: a m, x⟨U+202E⟩ m. Now');
  });
});

describe('the window before there is an answer', () => {
  it('is the range as far as it is known', () => {
    expect(guessedWindow({ kind: 'last', seconds: 10 }, 50_000)).toEqual({ startMs: 40_000, endMs: 50_000 });
    expect(guessedWindow({ kind: 'fixed', startMs: 1, endMs: 2 }, 9)).toEqual({ startMs: 1, endMs: 2 });
    expect(guessedWindow({ kind: 'all' }, 3_600_000)).toEqual({ startMs: 0, endMs: 3_600_000 });
  });
});
