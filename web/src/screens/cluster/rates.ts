/** Rates from counters that are looked at now and then: a counter begins again when its process does. Pure. */

/** A counter as it was at a moment of the clock that counts for it. life: names the process that counts. */
export interface Reading {
  atS: number;
  life: string;
  count: number;
}

/** Readings of one counter, oldest first, and the rates that they gave. */
export interface Track {
  readings: Reading[];
  rates: number[];
}

export const EMPTY: Track = { readings: [], rates: [] };

/** Over so long a rate is taken: long enough to be calm, short enough to show a stop soon. */
export const WINDOW_S = 10;
/** So many rates are kept for the small chart. */
export const KEPT = 60;

/** The rate between the first and the last of some readings, per second; null where it cannot be told. */
export function rateOf(readings: readonly Reading[]): number | null {
  const first = readings[0];
  const last = readings[readings.length - 1];
  if (!first || !last || last.atS <= first.atS) return null;
  return Math.max(0, (last.count - first.count) / (last.atS - first.atS));
}

/** The track with one more reading. Readings of an earlier process are dropped, so are repeated ones. */
export function follow(track: Track, reading: Reading): Track {
  const last = track.readings[track.readings.length - 1];
  const isNew = !last || last.life !== reading.life || reading.count < last.count * 0.5;
  if (!isNew && reading.atS <= last.atS) return track;
  const before = isNew ? [] : track.readings.filter((each) => reading.atS - each.atS <= WINDOW_S);
  // One older than the window stays where nothing else would: a slow poll still gives a rate.
  const kept = before.length || isNew ? before : [last];
  const readings = [...kept, reading];
  const rate = rateOf(readings);
  return { readings, rates: rate === null ? track.rates : [...track.rates, rate].slice(-KEPT) };
}

/** The newest rate, null before there is one. */
export function newest(track: Track | undefined): number | null {
  return track ? rateOf(track.readings) : null;
}

/** Tracks by name with one more reading each; names that are not read any more lose their track. */
export function followAll(tracks: ReadonlyMap<string, Track>, readings: ReadonlyMap<string, Reading>): Map<string, Track> {
  const next = new Map<string, Track>();
  for (const [name, reading] of readings) next.set(name, follow(tracks.get(name) ?? EMPTY, reading));
  return next;
}
