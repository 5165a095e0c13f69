/**
 * What the live screen knows: the newest of each series, how often it speaks, and how much comes by the second.
 *
 * Bounded: at most MOST_SERIES series of SPARK_POINTS values each, whatever comes. Who speaks has a place before who is only
 * known of, and before who spoke last longest ago and is silent by now: ids that come and go do not fill it for good.
 * Owns no clock and no timer: each call is told the time, in milliseconds since 1970 by this browser's clock.
 */

import { tagsText } from '../../text';
import { seriesKey } from '../data/stored';
import { sortKeyOf, type Heard, type Known, type Named, type Series, type Summary } from './series';

export const MOST_SERIES = 20_000; // 28 MB of them were measured; see below for who has to go
export const SPARK_POINTS = 60; // a sparkline is about as many pixels wide
export const RATE_SECONDS = 60; // seconds whose points are counted apart
const RATE_OVER_S = 5; // a rate over less jumps with each batch
const INTERVALS = 9; // the median of nine forgives four that were late or lost
const SILENT_FACTOR = 3; // as in /api/v1/gaps
const SILENT_LEAST_MS = 5_000; // batches and retries make short silences that mean nothing
const SILENT_UNKNOWN_MS = 60_000; // of a series whose usual interval is not known yet

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[(sorted.length - 1) >> 1] ?? 0;
}

/** Milliseconds without a point after which a series counts as silent. */
export function patienceMs(series: Series): number {
  const usual = series.usualMs;
  return usual === null ? SILENT_UNKNOWN_MS : Math.max(SILENT_LEAST_MS, SILENT_FACTOR * usual);
}

export class LiveStore {
  /** Points that came since the beginning. */
  points = 0;
  /** Points of series for which there was no room. */
  notKept = 0;
  /** Changes when a series is added: what was sorted has to be sorted again. */
  version = 0;
  /** Who spoke last is last. */
  private readonly byKey = new Map<string, Series>();
  /** Those that never spoke over the stream, the first known first. */
  private readonly mute = new Set<Series>();
  private readonly perSecond = new Array<number>(RATE_SECONDS).fill(0);
  private second: number;
  private readonly sinceSecond: number;
  private deafSince: number | null;
  private deafMs = 0;
  private deafBreaks = 0;

  /** A store that listens to nothing yet. */
  constructor(
    nowMs: number,
    private readonly most: number = MOST_SERIES,
  ) {
    this.second = Math.floor(nowMs / 1000);
    this.sinceSecond = this.second;
    this.deafSince = nowMs;
  }

  get all(): IterableIterator<Series> {
    return this.byKey.values();
  }

  get size(): number {
    return this.byKey.size;
  }

  /** Whether the stream is open. Time without it is nobody's silence. */
  listen(open: boolean, nowMs: number): void {
    if (open && this.deafSince !== null) {
      this.deafMs += nowMs - this.deafSince;
      this.deafSince = null;
    } else if (!open && this.deafSince === null) {
      this.deafSince = nowMs;
      this.deafBreaks += 1;
    }
  }

  /** The clock that stands still while the stream is away. */
  listened(nowMs: number): number {
    return (this.deafSince ?? nowMs) - this.deafMs;
  }

  take(points: readonly Heard[], nowMs: number): void {
    this.advance(nowMs);
    this.points += points.length;
    const slot = this.second % RATE_SECONDS;
    this.perSecond[slot] = (this.perSecond[slot] ?? 0) + points.length;
    const heard = this.listened(nowMs);
    for (const point of points) {
      const series = this.find(point) ?? this.inPlaceOfAnother(point, nowMs);
      if (series === null) {
        this.notKept += 1;
        continue;
      }
      this.speaks(series);
      series.points += 1;
      series.changes += 1;
      series.heard = heard;
      this.put(series, point.time, point.value);
    }
  }

  /**
   * What the server holds of series: those that are silent since before the stream began, and what it missed.
   * serverMs: now by the server's clock, where that differs from this browser's. wanted: they were asked for by name, and
   * have a place before others that are silent.
   */
  seed(rows: readonly Known[], nowMs: number, serverMs: number = nowMs, wanted = false): void {
    const listened = this.listened(nowMs);
    for (const row of rows) {
      if (row.last_time === null) continue;
      const series = this.find(row) ?? (wanted ? this.inPlaceOfAnother(row, nowMs) : null);
      if (series === null) continue;
      series.changes += 1;
      if (row.expected_interval_s !== null && series.intervals.length < 2) series.usualMs = row.expected_interval_s * 1000;
      if (row.last_time <= series.lastMs) continue;
      series.heard = Math.max(series.heard, listened - Math.max(0, serverMs - row.last_time));
      series.intervals.length = 0; // points between were not seen: the time between is no interval
      series.lastMs = -Infinity;
      this.put(series, row.last_time, row.last);
    }
  }

  isSilent(series: Series, nowMs: number): boolean {
    return this.quietMs(series, nowMs) > patienceMs(series);
  }

  /** Milliseconds of listening since a series was heard. */
  quietMs(series: Series, nowMs: number): number {
    return Math.max(0, this.listened(nowMs) - series.heard);
  }

  /** A device is silent when all of its series are. */
  summary(nowMs: number): Summary {
    const devices = new Map<string, boolean>();
    let silentSeries = 0;
    for (const series of this.byKey.values()) {
      const silent = this.isSilent(series, nowMs);
      if (silent) silentSeries += 1;
      devices.set(series.device, silent && (devices.get(series.device) ?? true));
    }
    let silentDevices = 0;
    for (const silent of devices.values()) if (silent) silentDevices += 1;
    return { series: this.byKey.size, devices: devices.size, silentSeries, silentDevices };
  }

  /** Points per second over the last whole seconds. */
  rate(nowMs: number): number {
    const counted = this.rates(nowMs);
    const seconds = Math.max(1, Math.min(RATE_OVER_S, this.second - this.sinceSecond));
    return counted.slice(-seconds).reduce((sum, each) => sum + each, 0) / seconds;
  }

  /** Points of each of the last whole seconds, the newest last. */
  rates(nowMs: number): number[] {
    this.advance(nowMs);
    const counted: number[] = [];
    const from = Math.max(this.sinceSecond, this.second - RATE_SECONDS + 1);
    for (let second = from; second < this.second; second += 1) counted.push(this.perSecond[second % RATE_SECONDS] ?? 0);
    return counted;
  }

  /** A copy that nothing changes any more, for a screen that is paused. */
  frozen(nowMs: number): LiveStore {
    const copy = new LiveStore(nowMs, this.most);
    copy.points = this.points;
    copy.notKept = this.notKept;
    copy.version = this.version;
    for (const [key, series] of this.byKey) {
      copy.byKey.set(key, { ...series, intervals: [...series.intervals], values: [...series.values] });
    }
    copy.deafSince = this.deafSince;
    copy.deafMs = this.deafMs;
    return copy;
  }

  /** The series, made where there is room for it. */
  private find(of: Named): Series | null {
    const known = this.byKey.get(seriesKey(of));
    if (known !== undefined) return known;
    return this.byKey.size < this.most ? this.add(of) : null;
  }

  /** A new series instead of one that never spoke, or else of the one that is silent for longest. */
  private inPlaceOfAnother(of: Named, nowMs: number): Series | null {
    const [muted] = this.mute;
    const [oldest] = this.byKey.values();
    const leaves = muted ?? (oldest !== undefined && this.isSilent(oldest, nowMs) ? oldest : undefined);
    if (leaves === undefined) return null;
    this.mute.delete(leaves);
    this.byKey.delete(leaves.key);
    return this.add(of);
  }

  private speaks(series: Series): void {
    this.mute.delete(series);
    this.byKey.delete(series.key);
    this.byKey.set(series.key, series);
  }

  private add(of: Named): Series {
    const tags = tagsText(of.tags);
    const made: Series = {
      key: seriesKey(of),
      device: of.device_id,
      metric: of.metric_name,
      tags,
      tagsOf: of.tags,
      sortKey: sortKeyOf(`${of.device_id}\u0000${of.metric_name}\u0000${tags}`),
      searchText: `${of.device_id}\n${of.metric_name}\n${tags}`.toLowerCase(),
      last: null,
      lastMs: -Infinity,
      heard: -Infinity,
      points: 0,
      changes: 0,
      intervals: [],
      usualMs: null,
      values: [],
      deafBreaks: this.deafBreaks,
    };
    this.byKey.set(made.key, made);
    this.mute.add(made);
    this.version += 1;
    return made;
  }

  /** A late point, older than the newest, is not the last value and has no place in the sparkline. */
  private put(series: Series, timeMs: number, value: number | null): void {
    if (timeMs < series.lastMs) return;
    if (timeMs === series.lastMs) {
      series.last = value;
      if (series.values.length > 0) series.values[series.values.length - 1] = value ?? NaN;
      return;
    }
    const interrupted = series.deafBreaks !== this.deafBreaks;
    if (series.lastMs !== -Infinity && !interrupted) {
      series.intervals.push(timeMs - series.lastMs);
      if (series.intervals.length > INTERVALS) series.intervals.shift();
      if (series.intervals.length >= 2) series.usualMs = median(series.intervals);
    }
    if (interrupted && series.values.length > 0) series.values.push(NaN);
    series.deafBreaks = this.deafBreaks;
    series.values.push(value ?? NaN);
    while (series.values.length > SPARK_POINTS) series.values.shift();
    series.last = value;
    series.lastMs = timeMs;
  }

  /** Seconds in which nothing came count as 0. */
  private advance(nowMs: number): void {
    const now = Math.floor(nowMs / 1000);
    const missed = Math.min(RATE_SECONDS, now - this.second);
    for (let step = 0; step < missed; step += 1) this.perSecond[(now - step) % RATE_SECONDS] = 0;
    if (now > this.second) this.second = now;
  }
}
