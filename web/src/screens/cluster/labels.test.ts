import { describe, expect, it } from 'vitest';
import { labelPlaces } from './labels';

/** The boxes of names of a width, and how many pairs of them cover each other. */
function covered(turns: readonly number[], radius: number, line: number, width: number): number {
  const boxes = labelPlaces(turns, radius, line).map(({ x, y, anchor }) => {
    const left = anchor === 'start' ? x : anchor === 'end' ? x - width : x - width / 2;
    return { left, y };
  });
  return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => Math.abs(a.y - b.y) < line - 0.01 && Math.abs(a.left - b.left) < width - 0.01)).length;
}

describe('names beside the ring', () => {
  it('stand at their pieces, centred at top and bottom', () => {
    const [right, bottom, left] = labelPlaces([0.25, 0.5, 0.75], 100, 10);
    expect(right).toMatchObject({ x: 100, anchor: 'start' });
    expect(bottom?.y).toBeCloseTo(100);
    expect(bottom?.anchor).toBe('middle');
    expect(left).toMatchObject({ x: -100, anchor: 'end' });
  });

  it.each([
    ['two that join', [0.16, 0.5, 0.82, 0.978, 0.99], 10, 45],
    ['one beside a first that has little', [0.01, 0.4, 0.8, 0.99], 10, 45],
    ['thirty', Array.from({ length: 30 }, (_, i) => (i + 0.5) / 30), 8, 24],
    ['thirty, of which six have nothing', Array.from({ length: 30 }, (_, i) => (i < 24 ? (i + 0.5) / 26 : 0.93 + i / 500)), 8, 24],
  ])('do not cover each other: %s', (_, turns, line, width) => {
    expect(covered(turns, 115, line, width)).toBe(0);
  });
});
