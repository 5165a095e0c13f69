import { describe, expect, it } from 'vitest';
import { EMPTY, KEPT, follow, followAll, newest, type Track } from './rates';

function tracked(...readings: [number, number, string?][]): Track {
  return readings.reduce((track, [atS, count, life = 'a']) => follow(track, { atS, count, life }), EMPTY);
}

describe('rates', () => {
  it('need two readings', () => {
    expect(newest(undefined)).toBeNull();
    expect(newest(tracked([10, 500]))).toBeNull();
    expect(newest(tracked([10, 500], [12, 700]))).toBe(100);
  });

  it('are taken over the window', () => {
    expect(newest(tracked([0, 0], [2, 1000], [12, 2000], [14, 2200]))).toBeCloseTo(100);
  });

  it('come from the last two where polls are slower than the window', () => {
    expect(newest(tracked([0, 0], [30, 300]))).toBe(10);
  });

  it('a restarted process begins anew instead of giving a negative rate', () => {
    const track = tracked([0, 1000], [2, 1200], [1, 5, 'b']);
    expect(newest(track)).toBeNull();
    expect(newest(follow(track, { atS: 3, count: 25, life: 'b' }))).toBe(10);
  });

  it('a counter that went back a little is no negative rate', () => {
    expect(newest(tracked([0, 1000], [2, 990]))).toBe(0);
  });

  it('the same reading again changes nothing', () => {
    const track = tracked([0, 0], [2, 20]);
    expect(follow(track, { atS: 2, count: 20, life: 'a' })).toBe(track);
  });

  it('keeps so many for the small chart', () => {
    let track = EMPTY;
    for (let at = 0; at < 2 * KEPT; at++) track = follow(track, { atS: at, count: at * 3, life: 'a' });
    expect(track.rates).toHaveLength(KEPT);
    expect(track.rates[0]).toBeCloseTo(3);
  });

  it('forgets who is not there any more', () => {
    const before = followAll(new Map(), new Map([['ing1', { atS: 0, life: 'a', count: 1 }], ['ing2', { atS: 0, life: 'a', count: 1 }]]));
    const after = followAll(before, new Map([['ing1', { atS: 2, life: 'a', count: 5 }]]));
    expect([...after.keys()]).toEqual(['ing1']);
    expect(newest(after.get('ing1'))).toBe(2);
  });
});
