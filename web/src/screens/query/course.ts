/** Rows of an answer as the lines of a chart: one for each group, in the order of the answer. Pure. */
import type { Figure, QueryAnswer, QueryRow, Tags } from '../../api/types';
import type { ChartLine, Values, Window } from '../../chart/values';
import { tagsText } from '../../text';

/** More lines than this nobody tells apart; the table has all. */
export const MOST_LINES = 12;

const UNITS_MS: Record<string, number> = {
  ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000, mo: 30 * 86_400_000, y: 365 * 86_400_000,
};

/** How long a bucket of `15m` is, those of the calendar about; 0 of `all`, which has but one. */
export function intervalMs(interval: string): number {
  const parts = /^(\d+(?:\.\d+)?)(ms|s|m|h|d|w|mo|y)?$/.exec(interval);
  return parts === null ? 0 : Number(parts[1]) * (UNITS_MS[parts[2] ?? 's'] ?? 0);
}

export function operationsOf(answer: QueryAnswer): string[] {
  return Array.isArray(answer.operation) ? answer.operation : [answer.operation];
}

/** The columns that tell groups apart. */
export function groupColumns(answer: QueryAnswer): string[] {
  return (answer.group_by ?? []).flatMap((one) => (one === 'series' ? ['device_id', 'metric_name', 'tags'] : [one]));
}

function nameOf(row: QueryRow, columns: string[], operation: string): string {
  if (columns.length === 0) return operation;
  const parts = columns.map((name) => (name === 'tags' ? tagsText((row.tags ?? {}) as Tags) : String(row[name] ?? 'none')));
  return parts.filter((part) => part !== '').join(' ');
}

function put(values: Values, row: QueryRow, figure: Figure): void {
  if (typeof figure !== 'number' || row.time === undefined) return; // the stddev of one point is none
  values.times.push(Number(row.time));
  values.avg.push(figure);
  values.counts.push(row.count);
}

/** Values by group. min and max are the figure itself: the answer has no others. */
function grouped(answer: QueryAnswer): Map<string, { label: string; values: Values }> {
  const [operation = ''] = operationsOf(answer);
  const columns = groupColumns(answer);
  const bucketMs = intervalMs(answer.interval ?? '');
  const found = new Map<string, { label: string; values: Values }>();
  for (const row of answer.rows ?? []) {
    const key = JSON.stringify(columns.map((name) => row[name] ?? null));
    if (!found.has(key)) {
      const avg: number[] = [];
      found.set(key, { label: nameOf(row, columns, operation), values: { bucketMs, times: [], avg, min: avg, max: avg, counts: [] } });
    }
    put(found.get(key)!.values, row, row[operation] as Figure);
  }
  return found;
}

/** The first MOST_LINES groups as lines, and how many there are in all. */
export function linesOf(answer: QueryAnswer, colours: string[]): { lines: ChartLine[]; groups: number } {
  const found = [...grouped(answer)].filter(([, { values }]) => values.times.length > 0);
  const lines = found.slice(0, MOST_LINES).map(([key, { label, values }], place): ChartLine => ({
    key, label, values, side: 'left', colour: colours[place % colours.length]!, dash: place < colours.length ? [] : [7, 4], faint: false,
  }));
  return { lines, groups: found.length };
}

function timeMs(time: number | string | null | undefined): number | undefined {
  if (time === null || time === undefined) return undefined;
  return typeof time === 'number' ? time : Date.parse(time);
}

/** The range that was asked for; ends that are open are those of the rows. */
export function windowOf(answer: QueryAnswer, lines: ChartLine[]): Window {
  const { range, start_time: start, end_time: end } = answer;
  const firsts = lines.map(({ values }) => values.times[0]!);
  const lasts = lines.map(({ values }) => values.times[values.times.length - 1]! + values.bucketMs);
  const own = (time: number | string) => (time === 0 ? undefined : timeMs(time));
  const startMs = (range === undefined ? own(start) : timeMs(range.start_time)) ?? Math.min(...firsts);
  const endMs = (range === undefined ? own(end) : timeMs(range.end_time)) ?? Math.max(...lasts);
  return endMs > startMs ? { startMs, endMs } : { startMs, endMs: startMs + 1000 };
}
