/** The ring as shapes: which slices a node gets in each circle of the picture, and the SVG paths of them.
 *
 * A picture has one circle for each rank of owners, the first owner outermost. It is cut into slots; where the ring has
 * more partitions than an eye can tell apart, several neighbours share a slot. Pure.
 */

/** More slices than this are thinner than a pixel on most screens. */
export const MOST_SLOTS = 1024;

/** Slots `from` to `to` (not included) of one circle. */
export interface Run {
  from: number;
  to: number;
}

/** What one node has in one circle. */
export interface Band {
  node: number;
  rank: number;
  runs: Run[];
}

/** How many slots a ring of so many partitions is drawn with. */
export function slotsOf(partitions: number): number {
  let slots = partitions;
  while (slots > MOST_SLOTS) slots = Math.ceil(slots / 2);
  return Math.max(slots, 1);
}

/** The first partition of a slot. */
export function firstOf(slot: number, slots: number, partitions: number): number {
  return Math.floor((slot * partitions) / slots);
}

/** The slot in which a partition is drawn. */
export function slotOf(partition: number, slots: number, partitions: number): number {
  return Math.min(slots - 1, Math.floor(((partition + 0.5) * slots) / partitions));
}

/** The value that most partitions of a slot have, the lowest of several; `nobody` where none has one. */
function commonest(values: number[], nobody: number): number {
  const counts = new Map<number, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  let best = nobody;
  let most = 0;
  for (const [value, count] of [...counts].sort((a, b) => a[0] - b[0])) {
    if (value !== nobody && count > most) [best, most] = [value, count];
  }
  return best;
}

/** By slot the owner of one rank, -1 where there is none. */
export function ownersOfRank(owners: readonly (readonly number[])[], rank: number): number[] {
  const partitions = owners.length;
  const slots = slotsOf(partitions);
  return Array.from({ length: slots }, (_, slot) => {
    const within = owners.slice(firstOf(slot, slots, partitions), firstOf(slot + 1, slots, partitions));
    return commonest(within.map((each) => each[rank] ?? -1), -1);
  });
}

/** Neighbouring slots of which `wanted` is true, as runs. The ring is not closed: no run crosses slot 0. */
export function runsWhere(slots: number, wanted: (slot: number) => boolean): Run[] {
  const runs: Run[] = [];
  for (let slot = 0; slot < slots; slot++) {
    if (!wanted(slot)) continue;
    const last = runs[runs.length - 1];
    if (last && last.to === slot) last.to = slot + 1;
    else runs.push({ from: slot, to: slot + 1 });
  }
  return runs;
}

/** Everything that is owned, by rank and node. */
export function bandsOf(owners: readonly (readonly number[])[]): Band[] {
  const ranks = owners.reduce((most, each) => Math.max(most, each.length), 0);
  const bands: Band[] = [];
  for (let rank = 0; rank < ranks; rank++) {
    const bySlot = ownersOfRank(owners, rank);
    for (const node of [...new Set(bySlot)].filter((each) => each >= 0).sort((a, b) => a - b)) {
      bands.push({ node, rank, runs: runsWhere(bySlot.length, (slot) => bySlot[slot] === node) });
    }
  }
  return bands;
}

/** Runs of the slots in which any of some partitions lies. */
export function runsOf(chosen: Iterable<number>, partitions: number): Run[] {
  const slots = slotsOf(partitions);
  const hit = new Set<number>();
  for (const partition of chosen) hit.add(slotOf(partition, slots, partitions));
  return runsWhere(slots, (slot) => hit.has(slot));
}

/** The partitions whose owners are others than before, in whatever order. None where the rings cannot be compared. */
export function changedPartitions(
  before: readonly (readonly number[])[],
  after: readonly (readonly number[])[],
  namesBefore: readonly string[],
  namesAfter: readonly string[],
): number[] {
  if (before.length !== after.length) return [];
  const changed: number[] = [];
  after.forEach((owners, partition) => {
    const was = new Set((before[partition] ?? []).map((index) => namesBefore[index]));
    if (owners.length !== was.size || owners.some((index) => !was.has(namesAfter[index] ?? ''))) changed.push(partition);
  });
  return changed;
}

function point(radius: number, turn: number): string {
  const angle = turn * 2 * Math.PI;
  return `${(radius * Math.sin(angle)).toFixed(2)} ${(-radius * Math.cos(angle)).toFixed(2)}`;
}

/** The path of one slice of a circle around 0,0, from turn `from` to turn `to` (0 to 1, from the top, clockwise). */
export function slice(from: number, to: number, inner: number, outer: number): string {
  if (to - from >= 1) {
    return `${slice(from, from + 0.5, inner, outer)} ${slice(from + 0.5, from + 1, inner, outer)}`;
  }
  const large = to - from > 0.5 ? 1 : 0;
  return (
    `M${point(outer, from)}A${outer} ${outer} 0 ${large} 1 ${point(outer, to)}` +
    `L${point(inner, to)}A${inner} ${inner} 0 ${large} 0 ${point(inner, from)}Z`
  );
}

/** The path of some runs in one circle. */
export function pathOf(runs: readonly Run[], slots: number, inner: number, outer: number): string {
  return runs.map((run) => slice(run.from / slots, run.to / slots, inner, outer)).join('');
}

/** The slot below a place of the picture, given from its middle; null within `inner` or beyond `outer`. */
export function slotAt(x: number, y: number, slots: number, inner: number, outer: number): number | null {
  const distance = Math.hypot(x, y);
  if (distance < inner || distance > outer) return null;
  const turn = (Math.atan2(x, -y) / (2 * Math.PI) + 1) % 1;
  return Math.min(slots - 1, Math.floor(turn * slots));
}

/** Inner and outer radius of each rank's circle, the first owner outermost. */
export function circles(ranks: number, inner: number, outer: number): { inner: number; outer: number; }[] {
  const gap = 2;
  const thick = (outer - inner - gap * (ranks - 1)) / Math.max(ranks, 1);
  return Array.from({ length: ranks }, (_, rank) => {
    const top = outer - rank * (thick + gap);
    return { inner: top - thick, outer: top };
  });
}
