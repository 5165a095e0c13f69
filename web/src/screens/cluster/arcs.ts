/**
 * The ring as shapes. Partitions stand by owner and not by number: each node has one piece of the ring, as long as it is the
 * first owner of many, and within it partitions stand by their other owners. So a picture has a few dozen slices however
 * many partitions there are, and shows who shares with whom. Angles are turns, 0 to 1 from the top clockwise. Pure.
 */

/** What of the ring one node is the first owner of; node -1: what nobody owns. */
export interface Arc {
  node: number;
  /** Positions, `to` not included. */
  from: number;
  to: number;
  start: number;
  end: number;
}

export interface Layout {
  arcs: Arc[];
  /** By position: the partition that stands there. */
  order: number[];
  /** By partition: where it stands. */
  place: number[];
}

export interface Slice {
  start: number;
  end: number;
}

/** What one node has in one circle, the first owners in circle 0. */
export interface Band {
  node: number;
  rank: number;
  slices: Slice[];
}

type Owners = readonly (readonly number[])[];

/** Of all turns what is left free after each node, together. */
const GAPS = 0.06;
/** A node that is nobody's first owner (yet) has a place, too. */
const STUB = 0.015;

/** moves: partition, source, target. Those that go to the same node stand together. */
export function layoutOf(owners: Owners, nodes: number, moves: readonly (readonly [number, number, number])[] = []): Layout {
  const target = new Map(moves.map(([partition, , to]) => [partition, to]));
  const keys = owners.map((of, partition) => [of[0] ?? nodes, ...of.slice(1), target.get(partition) ?? -1]);
  const order = owners.map((_, partition) => partition).sort((a, b) => compare(keys[a] ?? [], keys[b] ?? []) || a - b);
  const place = new Array<number>(order.length);
  order.forEach((partition, position) => (place[partition] = position));
  const counts = new Array<number>(nodes + 1).fill(0);
  for (const [first = nodes] of keys) counts[first] = (counts[first] ?? 0) + 1;
  return { arcs: arcsOf(counts, nodes), order, place };
}

function compare(a: readonly number[], b: readonly number[]): number {
  for (let at = 0; at < Math.min(a.length, b.length); at += 1) if (a[at] !== b[at]) return (a[at] ?? 0) - (b[at] ?? 0);
  return a.length - b.length;
}

function arcsOf(counts: readonly number[], nodes: number): Arc[] {
  const shown = counts.map((count, node) => ({ count, node })).filter(({ count, node }) => node < nodes || count > 0);
  const gap = shown.length > 1 ? Math.min(0.006, GAPS / shown.length) : 0;
  const stubs = shown.filter(({ count }) => count === 0).length;
  const total = Math.max(1, counts.reduce((sum, count) => sum + count, 0));
  const stub = Math.min(STUB, 0.3 / Math.max(1, stubs));
  const room = 1 - gap * shown.length - stub * stubs;
  let [from, start] = [0, 0];
  return shown.map(({ count, node }) => {
    const end = start + (count === 0 ? stub : (room * count) / total);
    const arc = { node: node < nodes ? node : -1, from, to: from + count, start, end };
    [from, start] = [from + count, end + gap];
    return arc;
  });
}

function turnIn(arc: Arc, position: number): number {
  return arc.start + ((position - arc.from) / Math.max(1, arc.to - arc.from)) * (arc.end - arc.start);
}

/** Where a partition stands: the middle of its slice. */
export function turnOf(layout: Layout, partition: number): number {
  const position = layout.place[partition] ?? 0;
  const arc = layout.arcs.find(({ from, to }) => position >= from && position < to);
  return arc === undefined ? 0 : turnIn(arc, position + 0.5);
}

/** By each value the slices of what has it; neighbours within a node's arc are one. undefined: nowhere. */
export function slicesBy<T>(layout: Layout, valueOf: (partition: number) => T | undefined): Map<T, Slice[]> {
  const found = new Map<T, Slice[]>();
  for (const arc of layout.arcs) {
    let begun = arc.from;
    for (let position = arc.from; position < arc.to; position += 1) {
      const value = valueOf(layout.order[position] ?? 0);
      const next = position + 1 < arc.to ? valueOf(layout.order[position + 1] ?? 0) : undefined;
      if (position + 1 < arc.to && next === value) continue;
      if (value !== undefined) {
        const slices = found.get(value) ?? [];
        slices.push({ start: turnIn(arc, begun), end: turnIn(arc, position + 1) });
        found.set(value, slices);
      }
      begun = position + 1;
    }
  }
  return found;
}

/** Everything that is owned, by rank and node. */
export function bandsOf(owners: Owners, layout: Layout): Band[] {
  const ranks = owners.reduce((most, each) => Math.max(most, each.length), 0);
  return Array.from({ length: ranks }, (_, rank) => slicesBy(layout, (partition) => owners[partition]?.[rank]))
    .flatMap((byNode, rank) => [...byNode].sort(([a], [b]) => a - b).map(([node, slices]) => ({ node, rank, slices })));
}

/** The partition below a place of the picture, given from its middle; null where there is none. */
export function partitionAt(x: number, y: number, layout: Layout, inner: number, outer: number): number | null {
  const distance = Math.hypot(x, y);
  if (distance < inner || distance > outer) return null;
  const turn = (Math.atan2(x, -y) / (2 * Math.PI) + 1) % 1;
  const arc = layout.arcs.find(({ start, end, from, to }) => turn >= start && turn < end && to > from);
  if (arc === undefined) return null;
  const share = (turn - arc.start) / (arc.end - arc.start);
  return layout.order[arc.from + Math.min(arc.to - arc.from - 1, Math.floor(share * (arc.to - arc.from)))] ?? null;
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

/** A place at a distance from the middle, as SVG writes it. */
export function point(radius: number, turn: number): string {
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

export function pathOf(slices: readonly Slice[], inner: number, outer: number): string {
  return slices.map(({ start, end }) => slice(start, end, inner, outer)).join('');
}

/** A curve within the ring from one turn to another, which bends to the middle the farther they are apart. */
export function chord(from: number, to: number, radius: number): string {
  const apart = Math.abs(from - to) % 1;
  const distance = Math.min(apart, 1 - apart);
  const between = (from + to) / 2 + (apart > 0.5 ? 0.5 : 0);
  return `M${point(radius, from)}Q${point(radius * (0.95 - 1.2 * distance), between)} ${point(radius, to)}`;
}

/** Inner and outer radius of each rank's circle: the first owner outermost, and half as thick again as the others. */
export function circles(ranks: number, inner: number, outer: number): { inner: number; outer: number }[] {
  const gap = 1.5;
  const thick = (outer - inner - gap * (ranks - 1)) / (Math.max(ranks, 1) + 0.5);
  return Array.from({ length: ranks }, (_, rank) => {
    const top = outer - (rank === 0 ? 0 : rank * (thick + gap) + thick / 2);
    return { inner: top - thick * (rank === 0 ? 1.5 : 1), outer: top };
  });
}

/** An id that fits beside the ring: the end of a long one, which tells it from its like. */
export function labelOf(id: string, most: number): string {
  const characters = [...id];
  return characters.length <= most ? id : `…${characters.slice(1 - most).join('')}`;
}
