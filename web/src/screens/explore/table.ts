/** What a chart shows, as rows: for CSV and for the table beside the chart. Pure. */
import { isWithin, type Window } from '../../chart/values';
import { keyOf, type Line } from './lines';
import { timeText, type ByLine, type ExactByLine } from './request';

export interface ValueRow {
  timeMs: number;
  line: Line;
  min: number;
  avg: number;
  max: number;
  count: number;
}

/** Values within the window by time, then by the order of the lines. Hidden lines have none. */
export function rowsOf(lines: Line[], values: ByLine, window: Window): ValueRow[] {
  const rows = lines.filter((line) => !line.hidden).flatMap((line) => {
    const found = values.get(keyOf(line));
    if (found === undefined) return [];
    return found.times.map((timeMs, at): ValueRow => (
      { timeMs, line, min: found.min[at]!, avg: found.avg[at]!, max: found.max[at]!, count: found.counts[at]! }));
  });
  const inside = rows.filter(({ timeMs, line }) => {
    const bucketMs = values.get(keyOf(line))?.bucketMs ?? 0;
    return isWithin(timeMs, bucketMs, window);
  });
  return inside.sort((a, b) => a.timeMs - b.timeMs);
}

/**
 * A text as a spreadsheet may have it: what would begin a formula there gets a ' in front, which spreadsheets do not show;
 * so does what looks as if it had one, so that taking one away gives each text back.
 */
function harmless(text: string): string {
  return /^'*[=+\-@\t\r\n]/.test(text) ? `'${text}` : text;
}

/** A field of RFC 4180: in quotes where it has a comma, a quote or an end of line. */
export function csvField(text: string): string {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csvOf(rows: (string | number)[][]): string {
  return rows.map((row) => row.map((field) => csvField(String(field))).join(',')).join('\r\n') + '\r\n';
}

/** What names a series, in three columns. */
function named(line: Line): string[] {
  return [harmless(line.device), harmless(line.metric), JSON.stringify(line.tags)];
}

const NAMES = ['device_id', 'metric_name', 'tags'];

/** Buckets, in columns as the API names them. Times are RFC 3339 in UTC. */
export function bucketsCsv(lines: Line[], values: ByLine, window: Window): string {
  const body = rowsOf(lines, values, window).map(({ timeMs, line, min, avg, max, count }) =>
    [timeText(timeMs), ...named(line), min, avg, max, count]);
  return csvOf([['time', ...NAMES, 'min', 'avg', 'max', 'count'], ...body]);
}

/** Points with their times to the nanosecond, which the milliseconds of a chart do not hold. */
export function pointsCsv(lines: Line[], points: ExactByLine): string {
  const rows = lines.flatMap((line) => {
    const { times, values } = points.get(keyOf(line)) ?? { times: [], values: [] };
    return times.map((time, at) => [time, ...named(line), values[at]!]);
  });
  rows.sort((a, b) => (a[0]! < b[0]! ? -1 : a[0]! > b[0]! ? 1 : 0));
  return csvOf([['time', ...NAMES, 'value'], ...rows]);
}

/** A name for a file: what the first line shows, how many others there are, and from when. */
export function fileName(lines: Line[], window: Window, ending: string): string {
  const shown = lines.filter((line) => !line.hidden);
  const first = shown[0] ?? lines[0];
  const what = first === undefined ? 'chart' : `${first.device}-${first.metric}`;
  const plain = what.normalize('NFC').replace(/[^\p{L}\p{N}_-]+/gu, '_').slice(0, 80);
  const others = shown.length > 1 ? `-and-${shown.length - 1}-more` : '';
  return `${plain}${others}-${new Date(window.startMs).toISOString().slice(0, 19).replaceAll(':', '')}.${ending}`;
}
