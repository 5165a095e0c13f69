/** A series as the live screen keeps it, and points and series as the server tells of them. Pure. */

export interface Named {
  device_id: string;
  metric_name: string;
  tags: Record<string, string>;
}

export interface Heard extends Named {
  time: number; // milliseconds
  value: number | null;
}

/** A series as /api/v1/series tells of it, times in milliseconds. */
export interface Known extends Named {
  last_time: number | null;
  last: number | null;
  expected_interval_s: number | null;
}

export interface Series {
  readonly key: string;
  readonly device: string;
  readonly metric: string;
  readonly tags: string; // "room=lab, side=left", for show and search
  readonly tagsOf: Record<string, string>;
  readonly sortKey: string;
  readonly searchText: string; // lower case
  last: number | null;
  lastMs: number; // time of the newest point, by the device's clock
  heard: number; // when it was heard last, on the store's listening clock
  points: number; // that came over the stream
  changes: number; // of this record, whatever they were
  intervals: number[]; // milliseconds between the newest points
  usualMs: number | null; // between points as a rule: the median of `intervals`, before that as the server told it
  values: number[]; // newest last; NaN where the stream was interrupted
  deafBreaks: number; // interruptions of the stream that `values` knows of
}

export interface Summary {
  series: number;
  devices: number;
  silentSeries: number;
  silentDevices: number;
}

/** A text under which s2 stands before s10. */
export function sortKeyOf(text: string): string {
  return text.replace(/\d+/g, (digits) => (digits.length < 12 ? digits.padStart(12, '0') : digits));
}

/** The points in the data of a `point` event; what is none of ours is left out. */
export function pointsOf(data: unknown): Heard[] {
  if (!Array.isArray(data)) return [];
  return data.filter((each): each is Heard => {
    if (typeof each !== 'object' || each === null) return false;
    const point = each as Partial<Heard>;
    return (
      typeof point.device_id === 'string' &&
      typeof point.metric_name === 'string' &&
      typeof point.tags === 'object' &&
      point.tags !== null &&
      typeof point.time === 'number' &&
      (typeof point.value === 'number' || point.value === null)
    );
  });
}
