/** The points of a chart once more, with their times to the nanosecond: for who takes them along. Knows no React. */
import type { ExactSamples } from '../../api/types';
import type { Window } from '../../chart/values';
import type { Line } from './lines';
import type { World } from './loader';
import { exactOfSamples, groupsOf, samplesBody, type ExactByLine } from './request';

/** Points of one answer; more come by pages. */
const PAGE = 100_000;

export async function exactPoints(lines: Line[], window: Window, ask: World['ask']): Promise<ExactByLine> {
  const found: ExactByLine = new Map();
  for (const group of groupsOf(lines)) {
    for (let cursor: string | null | undefined; cursor !== null;) {
      const body = { ...samplesBody(group, window, PAGE), time_unit: 'rfc3339', ...(cursor === undefined ? {} : { cursor }) };
      const answer: ExactSamples = await ask<ExactSamples>('/api/v1/samples', { method: 'POST', body });
      for (const [key, { times, values }] of exactOfSamples(answer)) {
        const before = found.get(key) ?? { times: [], values: [] };
        found.set(key, { times: before.times.concat(times), values: before.values.concat(values) });
      }
      cursor = answer.next_cursor;
    }
  }
  return found;
}
