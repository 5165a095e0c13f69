import { describe, expect, it } from 'vitest';
import { questionsFor } from './finding';

/** Whether a pattern of the API matches, as far as these tests need it. */
function matches(pattern: string | undefined, text: string): boolean {
  return pattern === undefined || new RegExp(`^${pattern.replace('~(?is)', '')}$`, 'is').test(text);
}

function found(words: string[], device: string, metric: string): boolean {
  return questionsFor(words, {}).some((one) => matches(one.device_id, device) && matches(one.metric_name, metric));
}

describe('questions for words', () => {
  it('find them in device and metric, in whatever order and case', () => {
    expect(found(['pump', 'flow'], 'Pump_7', 'flow')).toBe(true);
    expect(found(['flow', 'pump'], 'Pump_7', 'flow')).toBe(true);
    expect(found(['7', 'pump'], 'Pump_7', 'flow')).toBe(true);
    expect(found(['pump', 'heat'], 'Pump_7', 'flow')).toBe(false);
  });

  it('take words for text', () => {
    expect(found(['a.b(*'], 'x a.b(* y', 'm')).toBe(true);
    expect(found(['a.b'], 'axb', 'm')).toBe(false);
  });

  it('stay within what the stream is narrowed to', () => {
    expect(questionsFor(['flow'], { device_id: '*pump*' })).toEqual([
      { device_id: '*pump*', metric_name: '~(?is).*(?:flow).*' },
      { device_id: '*pump*', metric_name: undefined },
    ]);
  });

  it('are few and short, whatever is typed', () => {
    const many = questionsFor(Array.from({ length: 50 }, (_, at) => `${at}`.repeat(400)), {});
    expect(many.length).toBeLessThanOrEqual(8);
    for (const { device_id = '', metric_name = '' } of many) {
      expect(device_id.length).toBeLessThanOrEqual(1000);
      expect(metric_name.length).toBeLessThanOrEqual(1000);
    }
    expect(questionsFor([], {})).toEqual([]);
  });
});
