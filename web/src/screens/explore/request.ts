/** What is asked for the lines of a chart, and what the answers say of each line. Pure. */
import type { Coverage, ExactSamples, QueryAnswer, QueryRequest, QueryRow, Samples } from '../../api/types';
import { noValues, pointValues, type Values, type Window } from '../../chart/values';
import { literally } from '../../text';
import { toEdges, type Step } from './interval';
import { LEAST_MS, localZone, MOST_MS } from '../../time';
import { keyOf, type Line } from './lines';

/** Lines that one request asks for: same metric, same tags. */
export interface Group {
  metric: string;
  tags: Record<string, string>;
  devices: string[];
}

export function groupsOf(lines: Line[]): Group[] {
  const groups = new Map<string, Group>();
  for (const { device, metric, tags } of lines) {
    const key = keyOf({ device: '', metric, tags });
    const group = groups.get(key) ?? { metric, tags, devices: [] };
    group.devices.push(device);
    groups.set(key, group);
  }
  return [...groups.values()];
}

function match(group: Group): Pick<QueryRequest, 'device_id' | 'metric_name' | 'tags'> {
  const tags = Object.fromEntries(Object.entries(group.tags).map(([name, value]) => [name, literally(value)]));
  return { device_id: group.devices.map(literally), metric_name: literally(group.metric), tags };
}

/** Within the times that the server knows: what is a little wider than the window may lie beyond them. */
function asked(ms: number): number {
  return Math.min(Math.max(ms, LEAST_MS), MOST_MS);
}

/** RFC 3339 to the nanosecond: 0 would mean an open end, and seconds are rounded to microseconds. */
export function timeText(ms: number): string {
  const whole = Math.floor(ms);
  const nanos = Math.min(999_999, Math.round((ms - whole) * 1e6));
  return new Date(whole).toISOString().replace('Z', `${String(nanos).padStart(6, '0')}Z`);
}

/** The last nanosecond before: both ends of a range belong to it. */
function justBefore(ms: number): string {
  return new Date(Math.ceil(ms) - 1).toISOString().replace('Z', '999999Z');
}

/** Body of POST /query: whole buckets that touch the window, each with points has a row. utc: whose days these are. */
export function bucketsBody(group: Group, window: Window, step: Step, utc: boolean): QueryRequest {
  const { startMs, endMs } = toEdges(window, step, utc);
  return {
    ...match(group),
    operation: ['min', 'avg', 'max'],
    start_time: timeText(asked(startMs)),
    end_time: justBefore(asked(endMs)),
    interval: step.text,
    ...(step.days === undefined || utc ? {} : { timezone: localZone() }),
    group_by: 'series',
    time_unit: 'ms',
    allow_partial: true,
  };
}

/** Body of POST /api/v1/samples. */
export function samplesBody(group: Group, window: Window, limit: number): Record<string, unknown> {
  return {
    ...match(group),
    start_time: timeText(asked(window.startMs)),
    end_time: timeText(asked(window.endMs)),
    limit,
    time_unit: 'ms',
    allow_partial: true,
  };
}

/** Body of POST /api/v1/series: when each line has its first and last point. */
export function extentBody(group: Group): Record<string, unknown> {
  return { ...match(group), limit: group.devices.length, time_unit: 'ms', allow_partial: true };
}

export type ByLine = Map<string, Values>;

/** Of one answer's rows with the same metric and tags: groupsOf asks for no others. */
function sameSeries(a: QueryRow, b: QueryRow): boolean {
  return a.device_id === b.device_id;
}

/** What POST /query answered, by line; a series' rows lie together. */
export function ofBuckets(answer: QueryAnswer, bucketMs: number): ByLine {
  const found: ByLine = new Map();
  let before: QueryRow | undefined;
  let values = noValues(bucketMs);
  for (const row of answer.rows ?? []) {
    if (before === undefined || !sameSeries(before, row)) {
      values = noValues(bucketMs);
      found.set(keyOf({ device: row.device_id ?? '', metric: row.metric_name ?? '', tags: row.tags ?? {} }), values);
    }
    before = row;
    if (typeof row.avg !== 'number') continue;
    values.times.push(Number(row.time));
    values.min.push(row.min as number);
    values.avg.push(row.avg);
    values.max.push(row.max as number);
    values.counts.push(row.count);
  }
  return found;
}

/** What POST /api/v1/samples answered, by line. A series may come in several entries, one behind the other. */
export function ofSamples(answer: Samples): ByLine {
  const found = new Map<string, { times: number[]; values: number[] }>();
  for (const { device_id: device, metric_name: metric, tags, times, values } of answer.series) {
    const key = keyOf({ device, metric, tags });
    const before = found.get(key);
    found.set(key, before === undefined
      ? { times, values }
      : { times: before.times.concat(times), values: before.values.concat(values) });
  }
  return new Map([...found].map(([key, { times, values }]) => [key, pointValues(times, values)]));
}

/** Points by line, their times as texts of one length, so that these have the order of time. */
export type ExactByLine = Map<string, { times: string[]; values: number[] }>;

/** RFC 3339 in UTC with nine digits of a second, of one with as many as it needs. */
function nineDigits(text: string): string {
  const [whole, fraction = ''] = text.replace('Z', '').split('.');
  return `${whole}.${fraction.padEnd(9, '0')}Z`;
}

/** What POST /api/v1/samples answered with time_unit rfc3339. */
export function exactOfSamples(answer: ExactSamples): ExactByLine {
  const found: ExactByLine = new Map();
  for (const { device_id: device, metric_name: metric, tags, times, values } of answer.series) {
    const key = keyOf({ device, metric, tags });
    const before = found.get(key) ?? { times: [], values: [] };
    found.set(key, { times: before.times.concat(times.map(nineDigits)), values: before.values.concat(values) });
  }
  return found;
}

export function mergedLines(answers: ByLine[]): ByLine {
  return new Map(answers.flatMap((answer) => [...answer]));
}

/** Points of the line that has most of them. */
export function mostPoints(lines: ByLine): number {
  return Math.max(0, ...[...lines.values()].map(({ counts }) => counts.reduce((sum, count) => sum + count, 0)));
}

export function pointsOf(lines: ByLine): number {
  return [...lines.values()].reduce((sum, { counts }) => sum + counts.reduce((all, count) => all + count, 0), 0);
}

/** Of several answers the one that says least of everything: a chart is as complete as its worst part. */
export function worstCoverage(all: Coverage[]): Coverage | undefined {
  const lack = (coverage: Coverage) => (coverage.complete ? 0 : 1 + coverage.partitions_asked - coverage.partitions_answered);
  return all.reduce<Coverage | undefined>((worst, one) => (worst === undefined || lack(one) > lack(worst) ? one : worst), undefined);
}
