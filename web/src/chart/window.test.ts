import { describe, expect, it } from 'vitest';
import { isMove, shiftPx } from './glide';
import { actOf } from './keys';
import { faded, plotPixels } from './options';
import { legendPlaces } from './png';
import { pointValues, type ChartLine } from './values';
import { kept, panned, rounded, spanOf, zoomed } from './window';

const WINDOW = { startMs: 1000, endMs: 3000 };

describe('windows', () => {
  it('zoom around their middle', () => {
    expect(zoomed(WINDOW, 0.5)).toEqual({ startMs: 1500, endMs: 2500 });
    expect(zoomed(WINDOW, 2)).toEqual({ startMs: 0, endMs: 4000 });
  });

  it('zoom around a time, which stays where it is', () => {
    expect(zoomed(WINDOW, 0.5, 1000)).toEqual({ startMs: 1000, endMs: 2000 });
  });

  it('never become shorter than a millisecond', () => {
    expect(spanOf(zoomed(WINDOW, 1e-9))).toBe(1);
    expect(spanOf(kept({ startMs: 5, endMs: 5 }))).toBe(1);
  });

  it('stay within the times that exist', () => {
    expect(kept({ startMs: -1e16, endMs: 1e16 })).toEqual({ startMs: -9_223_372_036_000, endMs: 9_223_372_036_000 });
    expect(panned({ startMs: 9_223_372_035_000, endMs: 9_223_372_036_000 }, 3)).toEqual({ startMs: 9_223_372_035_000, endMs: 9_223_372_036_000 });
  });

  it('pan by a share of their length', () => {
    expect(panned(WINDOW, -0.25)).toEqual({ startMs: 500, endMs: 2500 });
  });

  it('have whole milliseconds and their ends in order in the URL', () => {
    expect(rounded({ startMs: 5000.4, endMs: 1000.6 })).toEqual({ startMs: 1001, endMs: 5000 });
    expect(rounded({ startMs: 1.25, endMs: 2.75 })).toEqual({ startMs: 1.25, endMs: 2.75 });
  });
});

describe('keys', () => {
  const press = (key: string, more = {}) => actOf({ key, shiftKey: false, ctrlKey: false, metaKey: false, altKey: false, ...more });

  it('move, zoom, go back', () => {
    expect(press('ArrowRight')).toEqual({ kind: 'pan', share: 0.1 });
    expect(press('+')).toEqual({ kind: 'zoom', factor: 0.5 });
    expect(press('Backspace')).toEqual({ kind: 'back' });
  });

  it('step from value to value with Shift, and zoom where plus needs it', () => {
    expect(press('ArrowLeft', { shiftKey: true })).toEqual({ kind: 'step', by: -1 });
    expect(press('+', { shiftKey: true })).toEqual({ kind: 'zoom', factor: 0.5 });
  });

  it('stay the browser\'s otherwise', () => {
    expect(press('ArrowLeft', { altKey: true })).toBeUndefined();
    expect(press('Tab')).toBeUndefined();
  });
});

describe('the looks', () => {
  it('leave so many pixels for values', () => {
    expect(plotPixels(1000, false)).toBe(902);
    expect(plotPixels(1000, true)).toBe(856);
    expect(plotPixels(0, true)).toBe(0);
  });

  it('fade colours', () => {
    expect(faded('#1f5fae', 0.5)).toBe('#1f5fae80');
    expect(faded('red', 0.1)).toBe('color-mix(in srgb, red 10%, transparent)');
  });

  it('put the names of a PNG into as many rows as they need', () => {
    const line = (label: string): ChartLine => (
      { key: label, label, side: 'left', colour: '#000000', dash: [], faint: false, values: pointValues([], []) });
    const places = legendPlaces([line('aa'), line('bb'), line('cc')], 150, (text) => text.length * 10);
    expect(places.map(({ x, y }) => [x, y])).toEqual([[12, 0], [78, 0], [12, 20]]);
  });
});

describe('a picture that is moved', () => {
  it('goes to the left when the window goes on', () => {
    expect(shiftPx(WINDOW, { startMs: 1500, endMs: 3500 }, 1000)).toBe(-250);
    expect(shiftPx(WINDOW, WINDOW, 1000)).toBe(0);
  });

  it('does for moves alone', () => {
    expect(isMove(WINDOW, { startMs: 5000.1, endMs: 7000.1 })).toBe(true);
    expect(isMove(WINDOW, { startMs: 1000, endMs: 2000 })).toBe(false);
  });
});
