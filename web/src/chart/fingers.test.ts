import { expect, it } from 'vitest';
import { underFingers } from './fingers';

const FROM = { startMs: 1000, endMs: 2000 };

it('one finger moves', () => {
  expect(underFingers(FROM, [50], [30], 100)).toEqual({ startMs: 1200, endMs: 2200 });
});

it('two fingers that part zoom in, what was below each stays below it', () => {
  const now = underFingers(FROM, [40, 60], [20, 80], 100);
  const below = (px: number) => now.startMs + ((now.endMs - now.startMs) * px) / 100;
  expect(below(20)).toBeCloseTo(1400);
  expect(below(80)).toBeCloseTo(1600);
});

it('two fingers side by side move, and do not zoom wildly when they meet', () => {
  expect(underFingers(FROM, [20, 60], [40, 80], 100)).toEqual({ startMs: 800, endMs: 1800 });
  const met = underFingers(FROM, [20, 60], [40, 40], 100);
  expect(met.endMs - met.startMs).toBe(2000);
});
