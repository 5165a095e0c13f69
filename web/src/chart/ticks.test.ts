import { describe, expect, it } from 'vitest';
import { linearRange, linearTexts, linearTicks, logRange, logTexts, logTicks } from './ticks';

const EXTREMES = [0, 5e-324, 1e-300, 1e-9, 0.1, 1, 20.5, 1e15, 1e300, 1.7e308];

describe('the range', () => {
  it('has room around the values, and 0 at the end where they come near it', () => {
    expect(linearRange(10, 20)).toEqual([9.4, 20.6]);
    expect(linearRange(0.1, 100)[0]).toBe(0);
    expect(linearRange(-100, -0.1)[1]).toBe(0);
    expect(linearRange(null, null)).toEqual([0, 1]);
  });

  it('is one of some length for any two values, equal ones too', () => {
    for (const a of EXTREMES) {
      for (const b of [a, ...EXTREMES.filter((other) => other > a)]) {
        for (const [min, max] of [linearRange(a, b), linearRange(-b, -a), linearRange(-a, b)] as const) {
          expect(max - min, `${a} to ${b}`).toBeGreaterThan(0);
          expect(Number.isFinite(max - min)).toBe(true);
        }
        if (a > 0) expect(logRange(a, b)[1] / logRange(a, b)[0]).toBeGreaterThan(1);
      }
    }
  });

  it('of a logarithm is whole decades', () => {
    expect([logRange(3, 40), logRange(10, 100), logRange(0, 5), logRange(null, null)]).toEqual([[1, 100], [10, 100], [1e-307, 10], [1, 10]]);
  });

  it('of a logarithm is closer where the values are less than a decade apart', () => {
    expect([logRange(22.9, 23.9), logRange(23, 23), logRange(10, 10), logRange(3, 21)]).toEqual([[22.8, 24], [20, 30], [10, 20], [3, 21]]);
  });

  it('of a logarithm holds near values of any size, and ticks of different labels', () => {
    for (const low of EXTREMES.filter((one) => one > 0)) {
      for (const factor of [1, 1 + 1e-12, 1.0001, 1.04, 1.5, 3, 9.99]) {
        const most = Math.min(low * factor, 1.79e308);
        const [min, max] = logRange(low, most);
        const name = `${low} to ${most}: ${min} to ${max}`;
        expect(min <= Math.max(low, 1e-307) * (1 + 1e-9) && max * (1 + 1e-9) >= most && min > 0 && min < max && Number.isFinite(max), name).toBe(true);
        const ticks = logTicks(min, max, 10);
        expect(ticks.length, name).toBeGreaterThan(1);
        expect(ticks.length, name).toBeLessThanOrEqual(12);
        expect(new Set(logTexts(ticks)).size, `${name}: ${logTexts(ticks).join(' ')}`).toBe(ticks.length);
      }
    }
  });
});

describe('ticks', () => {
  it('are round, within the range, and no more than have room', () => {
    expect(linearTicks(0, 1, 5)).toEqual([0, 0.2, 0.4, 0.6, 0.8, 1]);
    expect(linearTicks(9.4, 20.6, 10)).toEqual([10, 12, 14, 16, 18, 20]);
    expect(linearTicks(-0.35, 0.05, 5)).toEqual([-0.3, -0.2, -0.1, 0]);
  });

  it('have different labels whatever the size of the values', () => {
    for (const low of EXTREMES) {
      for (const high of EXTREMES.filter((other) => other >= low)) {
        const [min, max] = linearRange(low, high);
        const ticks = linearTicks(min, max, 10);
        expect(ticks.length, `${low} to ${high}`).toBeGreaterThan(0);
        expect(ticks.length).toBeLessThanOrEqual(12);
        expect(new Set(linearTexts(ticks)).size, `${low} to ${high}: ${linearTexts(ticks).join(' ')}`).toBe(ticks.length);
      }
    }
    expect(linearTexts(linearTicks(1e6, 1e6 + 1, 2))).toEqual(['1,000,000', '1,000,000.5', '1,000,001']);
  });

  it('of a logarithm are decades, fewer where there are many, 2 and 5 where there are few', () => {
    expect(logTicks(1, 100, 10)).toEqual([1, 2, 5, 10, 20, 50, 100]);
    expect(logTicks(1, 1e5, 10)).toEqual([1, 10, 100, 1000, 1e4, 1e5]);
    expect(logTicks(1, 10, 10)).toEqual([1, 2, 5, 10]);
    const wide = logTicks(1e-300, 1e300, 15);
    expect([wide[0], wide.at(-1), wide.length]).toEqual([1e-300, 1e300, 16]);
    expect(Math.max(...logTexts(logTicks(1e-201, 1e180, 12)).map((text) => text.length))).toBeLessThanOrEqual(6);
  });

  it('of less than a decade are equal steps, as far from each other at the upper end as they have to be', () => {
    expect(logTicks(22.8, 24, 10)).toEqual([22.8, 23, 23.2, 23.4, 23.6, 23.8, 24]);
    expect(logTicks(10, 50, 10)).toEqual([10, 20, 30, 40, 50]);
    for (const max of [11, 13, 20, 37, 60, 99]) {
      const ticks = logTicks(10, max, 10);
      const gaps = ticks.slice(1).map((tick, at) => Math.log(tick / ticks[at]!) / Math.log(max / 10));
      expect(Math.min(...gaps), `10 to ${max}: ${ticks.join(' ')}`).toBeGreaterThan(0.099);
    }
  });
});
