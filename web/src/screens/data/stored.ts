/** What the data screen makes of the answers: silences by series, about how many bytes points take. Pure. */

import type { GapRow, Status, Tags } from '../../api/types';

/** The text that names a series: the same for the same device, metric and tags. */
export function seriesKey(of: { device_id: string; metric_name: string; tags: Tags }): string {
  const names = Object.keys(of.tags);
  if (names.length === 0) return JSON.stringify([of.device_id, of.metric_name]);
  return JSON.stringify([of.device_id, of.metric_name, names.sort().map((name) => [name, of.tags[name]])]);
}

export interface Gaps {
  count: number;
  longestS: number;
  ongoing: boolean;
}

export function gapsBySeries(rows: readonly GapRow[]): Map<string, Gaps> {
  const found = new Map<string, Gaps>();
  for (const row of rows) {
    const key = seriesKey(row);
    const before = found.get(key) ?? { count: 0, longestS: 0, ongoing: false };
    found.set(key, {
      count: before.count + 1,
      longestS: Math.max(before.longestS, row.duration_s),
      ongoing: before.ongoing || row.ongoing,
    });
  }
  return found;
}

/** Bytes of a point in the segments of all nodes, on average; null while nothing is in segments. */
export function bytesPerPoint(status: Status): number | null {
  let bytes = 0;
  let points = 0;
  for (const node of Object.values(status.nodes)) {
    if (typeof node.segment_bytes !== 'number' || typeof node.segment_points !== 'number') continue;
    bytes += node.segment_bytes;
    points += node.segment_points;
  }
  return points > 0 ? bytes / points : null;
}

export function sum<T>(rows: readonly T[], of: (row: T) => number | null | undefined): number {
  return rows.reduce((total, row) => total + (of(row) ?? 0), 0);
}
