import { describe, expect, it } from 'vitest';
import { showsPoints, STEPS, stepFor, toEdges } from './interval';

const HOUR = 3_600_000;

function stepText(spanMs: number, pixels: number): string {
  return stepFor({ startMs: 0, endMs: spanMs }, pixels).text;
}

describe('the interval', () => {
  it('is as fine as the pixels show', () => {
    expect(stepText(HOUR, 1000)).toBe('5s');
    expect(stepText(24 * HOUR, 1000)).toBe('2m');
    expect(stepText(30 * 24 * HOUR, 1000)).toBe('1h');
    expect(stepText(10_000, 1000)).toBe('20ms');
  });

  it('never gives more buckets than pixels, wherever the window begins', () => {
    for (const pixels of [50, 333, 800, 1921, 4000]) {
      for (const span of [1, 999, 60_000, 7 * HOUR + 1, 3e9, 6e11, 1.8e13]) {
        const step = stepFor({ startMs: 0, endMs: span }, pixels);
        for (const startMs of [0, 1, step.ms - 1, -7, 1_700_000_000_123]) {
          for (const utc of [true, false]) {
            const edges = toEdges({ startMs, endMs: startMs + span }, step, utc);
            expect(Math.round((edges.endMs - edges.startMs) / step.ms)).toBeLessThanOrEqual(pixels);
          }
        }
      }
    }
  });

  it('is the longest there is for a chart of no width', () => {
    expect(stepText(1.8e13, 0)).toBe(STEPS[STEPS.length - 1]!.text);
  });

  it('grows from step to step', () => {
    expect(STEPS.every((step, at) => at === 0 || step.ms > STEPS[at - 1]!.ms)).toBe(true);
  });
});

describe('edges', () => {
  const SECOND = { ms: 1000, text: '1s' };
  const DAYS = (days: number) => ({ ms: days * 24 * HOUR, text: `${days}d`, days });

  it('are whole buckets around the window', () => {
    expect(toEdges({ startMs: 1500, endMs: 3001 }, SECOND, true)).toEqual({ startMs: 1000, endMs: 4000 });
    expect(toEdges({ startMs: -1500, endMs: -1000 }, SECOND, false)).toEqual({ startMs: -2000, endMs: -1000 });
    expect(toEdges({ startMs: 1000, endMs: 1000 }, SECOND, true)).toEqual({ startMs: 1000, endMs: 2000 });
  });

  it('of days are midnights of the zone, of 23 hours too', () => {
    const inside = { startMs: Date.UTC(2024, 2, 31, 5), endMs: Date.UTC(2024, 2, 31, 6) }; // the clocks of Berlin go forward
    expect(toEdges(inside, DAYS(1), false)).toEqual({ startMs: Date.UTC(2024, 2, 30, 23), endMs: Date.UTC(2024, 2, 31, 22) });
    expect(toEdges(inside, DAYS(1), true)).toEqual({ startMs: Date.UTC(2024, 2, 31), endMs: Date.UTC(2024, 3, 1) });
  });

  it('of several days count from 1970', () => {
    const { startMs, endMs } = toEdges({ startMs: Date.UTC(2024, 5, 1), endMs: Date.UTC(2024, 5, 2) }, DAYS(30), false);
    const days = (ms: number) => (ms + 2 * HOUR) / (24 * HOUR); // summer time
    expect([days(startMs) % 30, days(endMs) - days(startMs)]).toEqual([0, 30]);
  });
});

describe('points themselves', () => {
  it('are shown while they are no more than the pixels', () => {
    expect([799, 800, 801].map((count) => showsPoints(count, 800.7))).toEqual([true, true, false]);
  });
});
