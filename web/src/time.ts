/** Times and ranges of the page: milliseconds since 1970 (UTC) inside, the browser's zone or UTC on the screen. */

export type Range =
  | { kind: 'last'; seconds: number }
  | { kind: 'all' }
  | { kind: 'fixed'; startMs: number; endMs: number };

export const QUICK_RANGES: { label: string; range: Range }[] = [
  { label: '15 min', range: { kind: 'last', seconds: 900 } },
  { label: '1 h', range: { kind: 'last', seconds: 3600 } },
  { label: '6 h', range: { kind: 'last', seconds: 6 * 3600 } },
  { label: '24 h', range: { kind: 'last', seconds: 86400 } },
  { label: '7 d', range: { kind: 'last', seconds: 7 * 86400 } },
  { label: '30 d', range: { kind: 'last', seconds: 30 * 86400 } },
  { label: 'All', range: { kind: 'all' } },
];

export const DEFAULT_RANGE: Range = { kind: 'last', seconds: 3600 };

/** Times that the server knows, in milliseconds: the years 1677 to 2262. */
export const LEAST_MS = -9223372036000;
export const MOST_MS = 9223372036000;

/** `3600s`, `all` or `START..END` in milliseconds. */
export function rangeToText(range: Range): string {
  if (range.kind === 'all') return 'all';
  return range.kind === 'last' ? `${range.seconds}s` : `${range.startMs}..${range.endMs}`;
}

/** What rangeToText wrote; anything else is the fallback, for a URL may hold anything. */
export function rangeFromText(text: string | undefined, fallback: Range = DEFAULT_RANGE): Range {
  if (text === 'all') return { kind: 'all' };
  const last = /^(\d{1,12}(?:\.\d{1,3})?)s$/.exec(text ?? '');
  if (last !== null && Number(last[1]) > 0) return { kind: 'last', seconds: Number(last[1]) };
  const fixed = /^(-?\d{1,13}(?:\.\d{1,6})?)\.\.(-?\d{1,13}(?:\.\d{1,6})?)$/.exec(text ?? '');
  if (fixed === null) return fallback;
  const [startMs, endMs] = [Number(fixed[1]), Number(fixed[2])];
  return startMs <= endMs && startMs >= LEAST_MS && endMs <= MOST_MS ? { kind: 'fixed', startMs, endMs } : fallback;
}

export function sameRange(a: Range, b: Range): boolean {
  return rangeToText(a) === rangeToText(b);
}

/** Both ends now; null is an open one. */
export function rangeToMs(range: Range, nowMs: number = Date.now()): { startMs: number | null; endMs: number | null } {
  if (range.kind === 'all') return { startMs: null, endMs: null };
  if (range.kind === 'last') return { startMs: nowMs - range.seconds * 1000, endMs: nowMs };
  return { startMs: range.startMs, endMs: range.endMs };
}

/** Milliseconds as the server takes a time: RFC 3339, so that 0 is no open end and nothing is rounded. */
export function apiTime(ms: number): string {
  return new Date(ms).toISOString();
}

/** The parameters start_time and end_time. The last hour is relative to the server's clock, not to this one's. */
export function rangeToTimes(range: Range): { start_time?: string; end_time?: string } {
  if (range.kind === 'all') return {};
  if (range.kind === 'last') return { start_time: `-${range.seconds}s` };
  return { start_time: apiTime(range.startMs), end_time: apiTime(range.endMs) };
}

function two(value: number): string {
  return String(value).padStart(2, '0');
}

function dateText(year: number, month: number, day: number): string {
  return `${String(year).padStart(4, '0')}-${two(month)}-${two(day)}`;
}

/** `2024-05-01 12:00:00` in the browser's zone; utc: with a Z behind it; precise: with milliseconds. */
export function formatTime(ms: number | null | undefined, how: { utc?: boolean; precise?: boolean } = {}): string {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return '–';
  const time = new Date(Math.floor(ms));
  if (Number.isNaN(time.getTime())) return '–';
  const fraction = how.precise === true ? `.${String(time.getUTCMilliseconds()).padStart(3, '0')}` : '';
  if (how.utc === true) {
    const day = dateText(time.getUTCFullYear(), time.getUTCMonth() + 1, time.getUTCDate());
    return `${day} ${two(time.getUTCHours())}:${two(time.getUTCMinutes())}:${two(time.getUTCSeconds())}${fraction}Z`;
  }
  const day = dateText(time.getFullYear(), time.getMonth() + 1, time.getDate());
  return `${day} ${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}${fraction}`;
}

/** Of the browser, such as Europe/Berlin. */
export function localZone(): string {
  return Intl.DateTimeFormat().resolvedOptions().timeZone || 'local time';
}

/** The value of an <input type="datetime-local"> for this time. */
export function toLocalInput(ms: number): string {
  const time = new Date(ms);
  const precise = time.getMilliseconds() !== 0;
  return formatTime(ms, { precise }).replace(' ', 'T');
}

/** Milliseconds of what such an input holds, undefined if that is no time. */
export function fromLocalInput(text: string): number | undefined {
  const parts = /^(\d{4,6})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,3}))?)?$/.exec(text.trim());
  if (parts === null) return undefined;
  const [year, month, day, hour, minute, second] = parts.slice(1, 7).map((part) => Number(part ?? 0)) as
    [number, number, number, number, number, number];
  const time = new Date(year, month - 1, day, hour, minute, second, Number((parts[7] ?? '0').padEnd(3, '0')));
  const same = time.getMonth() === month - 1 && time.getDate() === day && minute < 60 && second < 60 && hour < 24;
  return same && time.getTime() >= LEAST_MS && time.getTime() <= MOST_MS ? time.getTime() : undefined;
}

const UNITS: [string, number][] = [['d', 86400], ['h', 3600], ['min', 60], ['s', 1]];

/** Of SECONDS: `350 ms`, `12.5 s`, `3 min 20 s`, `2 d 4 h`. */
export function formatDuration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return '–';
  if (seconds < 0) return `-${formatDuration(-seconds)}`;
  if (seconds === 0) return '0 s';
  if (seconds < 0.001) return `${Math.max(1, Math.round(seconds * 1e6))} µs`;
  if (seconds < 0.9995) return `${Number((seconds * 1000).toPrecision(3))} ms`;
  if (seconds < 59.95) return `${Number(seconds.toPrecision(3))} s`;
  const whole = Math.round(seconds);
  const first = UNITS.findIndex(([, length]) => whole >= length);
  const [unit, length] = UNITS[first] as [string, number];
  const [nextUnit, nextLength] = UNITS[first + 1] as [string, number];
  const rest = Math.floor((whole % length) / nextLength);
  return `${Math.floor(whole / length)} ${unit}${rest > 0 ? ` ${rest} ${nextUnit}` : ''}`;
}

/** How long ago a time (MILLISECONDS since 1970) was: `3 s ago`, `in 2 min`, `now`. */
export function formatAgo(ms: number | null | undefined, nowMs: number = Date.now()): string {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return '–';
  const away = (nowMs - ms) / 1000;
  if (Math.abs(away) < 1) return 'now';
  const text = formatDuration(Math.abs(away) < 60 ? Math.floor(Math.abs(away)) : Math.abs(away));
  return away > 0 ? `${text} ago` : `in ${text}`;
}
