/** What the form holds, as the question that it asks and as the curl line that asks the same. Pure. */
import type { OnePattern, Pattern, QueryRequest } from '../../api/types';
import { patternOf, tagsFromList } from '../../text';
import { localZone, rangeFromText, rangeToTimes, type Range } from '../../time';

/** In the URL; device, metric and the values of tags as pickers hold them (text.ts). */
export type QueryState = {
  device: string[];
  metric: string[];
  tags: string[];
  exact: boolean;
  op: string;
  p: string;
  range: string;
  interval: string;
  group: string;
  partial: boolean;
};

export const DEFAULTS: QueryState = {
  device: [], metric: [], tags: [], exact: false, op: 'avg', p: '95', range: '3600s', interval: '', group: '', partial: false,
};

export const OPERATIONS = [
  { value: 'avg', label: 'average' },
  { value: 'min', label: 'minimum' },
  { value: 'max', label: 'maximum' },
  { value: 'sum', label: 'sum' },
  { value: 'count', label: 'count' },
  { value: 'first', label: 'first' },
  { value: 'last', label: 'last' },
  { value: 'spread', label: 'spread (max − min)' },
  { value: 'stddev', label: 'standard deviation' },
  { value: 'variance', label: 'variance' },
  { value: 'median', label: 'median' },
  { value: 'percentile', label: 'percentile …' },
  { value: 'rate', label: 'rate (counter, per second)' },
  { value: 'increase', label: 'increase (counter)' },
  { value: 'delta', label: 'delta' },
  { value: 'integral', label: 'integral' },
  { value: 'twa', label: 'time-weighted average' },
];

/** A screenful of buckets, for the interval that fits. */
const AUTO_POINTS = 100;
/** Rows that the page takes; the answer says when there are more. */
export const ROW_LIMIT = 5000;

function patterns(picked: string[]): Pattern {
  const all: OnePattern[] = picked.map(patternOf);
  const [only] = all;
  if (only === undefined) return '*';
  return all.length === 1 ? only : all;
}

export function operationOf(state: QueryState): string {
  return state.op === 'percentile' ? `percentile(${state.p.trim()})` : state.op;
}

/** Whether buckets may be days or longer, which are those of a calendar and so of a zone. */
export function isCalendar(interval: string): boolean {
  return interval === 'auto' || /(d|w|mo|y)$/.test(interval);
}

function bucketsOf(interval: string): Partial<QueryRequest> {
  if (interval === '') return {};
  const zone = isCalendar(interval) && localZone() !== 'local time' ? { timezone: localZone() } : {};
  return interval === 'auto' ? { max_points: AUTO_POINTS, ...zone } : { interval, ...zone };
}

export function requestOf(state: QueryState): QueryRequest {
  const tags = Object.entries(tagsFromList(state.tags)).map(([name, value]) => [name, patternOf(value)] as const);
  const rows = state.interval !== '' || state.group !== '';
  return {
    device_id: patterns(state.device),
    metric_name: patterns(state.metric),
    operation: operationOf(state),
    ...rangeToTimes(rangeFromText(state.range)),
    ...(tags.length > 0 ? { tags: Object.fromEntries(tags) } : {}),
    ...(tags.length > 0 && !state.exact ? { more_tags: true } : {}),
    ...bucketsOf(state.interval),
    ...(state.group === '' ? {} : { group_by: state.group }),
    ...(rows ? { limit: ROW_LIMIT } : {}),
    time_unit: 'ms',
    ...(state.partial ? { allow_partial: true } : {}),
  };
}

/** The range of a question that requestOf made. */
export function rangeOf({ start_time: start, end_time: end }: QueryRequest): Range {
  if (typeof start !== 'string') return { kind: 'all' };
  if (typeof end === 'string') return { kind: 'fixed', startMs: Date.parse(start), endMs: Date.parse(end) };
  return rangeFromText(start.slice(1));
}

/** The body of POST /api/v1/series for the series that a question is about, at most so many. */
export function seriesBody(request: QueryRequest, limit: number): Record<string, unknown> {
  const { device_id, metric_name, tags, more_tags, start_time, end_time } = request;
  return { device_id, metric_name, tags, more_tags, start_time, end_time, limit, details: false, allow_partial: true };
}

/** JSON in which nothing hides: what one cannot see is written as \uXXXX, so that what is copied is what is read. */
export function plainJson(value: unknown): string {
  return JSON.stringify(value).replace(/[^\x20-\x7e]/g, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** For a shell. The token itself is never in it. */
export function curlLine(origin: string, request: QueryRequest, signedIn: boolean): string {
  const header = signedIn ? ' -H "Authorization: Bearer $TOKEN"' : '';
  return `curl -s ${quoted(`${origin}/query`)}${header} -d ${quoted(plainJson(request))}`;
}

/** Which field of the form an error of the API speaks of. */
export function fieldOf(field: string | undefined): keyof QueryState | undefined {
  if (field === undefined) return undefined;
  if (field.startsWith('device_id')) return 'device';
  if (field.startsWith('metric_name')) return 'metric';
  if (field.startsWith('tags') || field === 'more_tags') return 'tags';
  if (field === 'operation') return 'op';
  if (field === 'start_time' || field === 'end_time') return 'range';
  if (field === 'interval' || field === 'max_points' || field === 'timezone') return 'interval';
  return field === 'group_by' ? 'group' : undefined;
}
