import { describe, expect, it } from 'vitest';
import { bandsOf, changedPartitions, chord, circles, labelOf, layoutOf, partitionAt, pathOf, slice, slicesBy, turnOf } from './arcs';

/** A ring as ringctl makes one: owners of each partition in no order. */
function ring(partitions: number, nodes: number, replication = 2): number[][] {
  return Array.from({ length: partitions }, (_, at) =>
    Array.from({ length: replication }, (_, rank) => (at * 7 + Math.floor(at / nodes) + rank * (1 + (at % (nodes - 1)))) % nodes));
}

describe('the layout', () => {
  it('gives each node one piece as long as its share, in order of the nodes', () => {
    const { arcs, order } = layoutOf([[1, 0], [0, 1], [1, 0], [1, 0]], 2);
    expect(arcs.map(({ node, from, to }) => ({ node, from, to }))).toEqual([{ node: 0, from: 0, to: 1 }, { node: 1, from: 1, to: 4 }]);
    const [first, second] = arcs.map(({ start, end }) => end - start);
    expect(second! / first!).toBeCloseTo(3);
    expect(order).toEqual([1, 0, 2, 3]);
  });

  it('goes once around, whatever the nodes', () => {
    for (const [partitions, nodes] of [[1024, 2], [1024, 3], [4096, 30], [64, 30]] as const) {
      const { arcs, order, place } = layoutOf(ring(partitions, nodes), nodes);
      expect(arcs[0]!.start).toBe(0);
      expect(arcs.at(-1)!.end).toBeLessThanOrEqual(1);
      arcs.slice(1).forEach((arc, at) => expect(arc.start).toBeGreaterThan(arcs[at]!.end));
      expect(order.map((partition) => place[partition])).toEqual(order.map((_, position) => position));
    }
    expect(layoutOf([[0], [0]], 1).arcs).toEqual([{ node: 0, from: 0, to: 2, start: 0, end: 1 }]);
  });

  it('has a place for a node that is no first owner yet, and for what nobody owns', () => {
    const { arcs } = layoutOf([[0], [0], []], 2);
    expect(arcs.map(({ node }) => node)).toEqual([0, 1, -1]);
    expect(arcs[1]!.end - arcs[1]!.start).toBeGreaterThan(0.01);
  });

  it('has what goes to the same node together', () => {
    const { order } = layoutOf([[0, 1], [0, 1], [0, 1], [0, 1]], 3, [[1, 0, 2], [3, 0, 2]]);
    expect(order).toEqual([0, 2, 1, 3]);
  });
});

describe('slices', () => {
  it('are few, however many partitions there are, and cover each circle', () => {
    const owners = ring(4096, 5);
    const layout = layoutOf(owners, 5);
    const bands = bandsOf(owners, layout);
    expect(bands.flatMap(({ slices }) => slices).length).toBeLessThan(40);
    for (const rank of [0, 1]) {
      const covered = bands.filter((band) => band.rank === rank).flatMap(({ slices }) => slices).reduce((sum, { start, end }) => sum + end - start, 0);
      expect(covered).toBeCloseTo(layout.arcs.reduce((sum, { start, end }) => sum + end - start, 0));
    }
  });

  it('leave a hole where a partition has fewer owners', () => {
    const owners = [[0, 1], [0], [0, 1]];
    const layout = layoutOf(owners, 2);
    expect(bandsOf(owners, layout).find(({ rank }) => rank === 1)?.slices).toHaveLength(1);
    expect(slicesBy(layout, () => undefined).size).toBe(0);
  });

  it('are where a pointer finds their partition', () => {
    const owners = ring(64, 3);
    const layout = layoutOf(owners, 3);
    for (const partition of [0, 7, 33, 63]) {
      const angle = turnOf(layout, partition) * 2 * Math.PI;
      expect(partitionAt(80 * Math.sin(angle), -80 * Math.cos(angle), layout, 50, 100)).toBe(partition);
    }
    expect(partitionAt(0, -10, layout, 50, 100)).toBeNull();
    expect(partitionAt(0, -101, layout, 50, 100)).toBeNull();
  });
});

describe('changedPartitions', () => {
  it('goes by names: an index may mean another node after a change', () => {
    expect(changedPartitions([[0], [1]], [[1], [2]], ['b', 'c'], ['a', 'b', 'c'])).toEqual([]);
    expect(changedPartitions([[0], [1]], [[0], [2]], ['b', 'c'], ['a', 'b', 'c'])).toEqual([0]);
  });

  it('an order of owners is no change, one more owner is', () => {
    expect(changedPartitions([[0, 1], [0]], [[1, 0], [0, 1]], ['a', 'b'], ['a', 'b'])).toEqual([1]);
  });

  it('says nothing of rings of another size', () => {
    expect(changedPartitions([[0]], [[0], [0]], ['a'], ['a'])).toEqual([]);
  });
});

describe('shapes', () => {
  it('a slice goes out, around, in and back', () => {
    expect(slice(0, 0.25, 50, 100)).toBe('M0.00 -100.00A100 100 0 0 1 100.00 -0.00L50.00 -0.00A50 50 0 0 0 0.00 -50.00Z');
  });

  it('a whole circle is two halves, since an arc cannot end where it begins', () => {
    expect(pathOf([{ start: 0, end: 1 }], 50, 100).match(/A/g)).toHaveLength(4);
  });

  it('circles fill the room between inner and outer, the first rank outermost and thickest', () => {
    const [first, second] = circles(2, 60, 100);
    expect(first!.outer).toBe(100);
    expect(second!.inner).toBeCloseTo(60);
    expect(first!.inner - second!.outer).toBeCloseTo(1.5);
    expect(first!.outer - first!.inner).toBeGreaterThan(second!.outer - second!.inner);
  });

  it('a chord bends to the middle, the shorter way around', () => {
    expect(chord(0.1, 0.9, 50)).toMatch(/Q-?0\.00 -3/);
    expect(chord(0, 0.5, 50)).toContain('Q17.50 -0.00');
  });

  it('a label is the end of a long id', () => {
    expect(labelOf('ing1', 8)).toBe('ing1');
    expect(labelOf('storage-node-17', 8)).toBe('…node-17');
  });
});
