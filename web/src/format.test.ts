import { describe, expect, test } from 'vitest';
import { formatBytes, formatCount, formatNumber, formatRate, formatShort } from './format';

describe('numbers', () => {
  test.each([
    [20.75, '20.75'], [0, '0'], [-0, '0'], [1234567, '1,234,567'], [0.1 + 0.2, '0.3'], [1 / 3, '0.333333'], [12345.678, '12,345.7'],
    [1234567.891, '1,234,568'], [1e20, '1e+20'], [1.5e-9, '1.5e-9'], [-2.5, '-2.5'], [1e15, '1e+15'],
  ])('%d is %j', (value, text) => {
    expect(formatNumber(value)).toBe(text);
  });

  test('what is no number', () => {
    expect(formatNumber(null)).toBe('–');
    expect(formatNumber(undefined)).toBe('–');
    expect(formatNumber(Number.NaN)).toBe('–');
    expect(formatNumber(Infinity)).toBe('Infinity');
  });

  test('counts', () => {
    expect(formatCount(1234567)).toBe('1,234,567');
    expect(formatCount(null)).toBe('–');
  });

  test.each([[0, '0 B'], [512, '512 B'], [1536, '1.5 KiB'], [20 * 1024 ** 2, '20 MiB'], [1023.9, '1 KiB'], [3 * 1024 ** 6, '3070 PiB']])(
    '%d bytes are %j', (value, text) => {
      expect(formatBytes(value)).toBe(text);
    },
  );

  test('short, and rates', () => {
    expect(formatShort(999)).toBe('999');
    expect(formatShort(999_900)).toBe('1M');
    expect(formatRate(1234)).toBe('1.23k/s');
    expect(formatRate(0.5)).toBe('0.5/s');
    expect(formatRate(undefined)).toBe('–');
  });
});
