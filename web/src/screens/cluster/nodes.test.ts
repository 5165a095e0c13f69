import { describe, expect, it } from 'vitest';
import type { RingInfo, Status, WorkerStatus } from '../../api/types';
import { bridgeReadings, bridgeRows, nodeReadings, nodeRows, silentSince, spoolFor, total } from './nodes';

const RING: RingInfo = {
  epoch: 7,
  partitions: 4,
  replication: 2,
  delete_number: 0,
  nodes: [
    { id: 'ing1', endpoint: 'tcp://h:1', zone: 'a', weight: 1, state: 'active', partitions: 4 },
    { id: 'ing2', endpoint: 'tcp://h:4', zone: 'b', weight: 1, state: 'active', partitions: 4 },
    { id: 'ing3', endpoint: 'tcp://h:7', zone: 'b', weight: 1, state: 'active', partitions: 0 },
  ],
  owners: [[0, 1], [1, 0], [0, 1], [1, 0]],
  moves: [[1, 0, 2], [3, -1, 2]],
};

const UP: WorkerStatus = {
  ready: true, epoch: 7, incarnation: 11, uptime_s: 50, series: 9, points: 1000, segment_bytes: 2000,
  bytes_per_point: 2.5, sealed_rows: 700, head_rows: 300, wal_bytes: 4096, wal_files: 2, wal_age_s: 3, damaged: [],
  behind: null,
};

function bridge(more: Record<string, unknown> = {}): WorkerStatus {
  return {
    ready: true, age_s: 0.5, incarnation: 3, points: 5000, messages: 4000, memory_bytes: 10, unhealthy: [],
    mqtt: { connected: true, broker: 'mqtt://b' }, dead_letter: { bytes: 77, error: '' }, owners: {}, spools: {}, ...more,
  };
}

function status(nodes: Record<string, WorkerStatus>, bridges: Record<string, WorkerStatus> = {}): Status {
  return { ready: true, version: '1', cluster: 'c', epoch: 7, delete_number: 0, nodes, bridges, query: {} };
}

describe('nodeRows', () => {
  it('tells what an answering node holds', () => {
    const [row] = nodeRows(RING, status({ ing1: UP }), new Map(), [{ node: 'ing1', last_s: 1700, points: 3 }]);
    expect(row).toMatchObject({
      id: 'ing1', index: 0, answers: true, isCurrent: true, tone: 'ok', state: 'up', series: 9, points: 1000, bytes: 2000,
      bytesPerPoint: 2.5, walBytes: 4096, lastRepairS: 1700, lastRepairFound: 3, silentSinceMs: null, remarks: [],
    });
  });

  it('a node without an answer is bad, with the reason and since when', () => {
    const told = status({ ing1: { ready: false, reason: 'not connected' } });
    const [row] = nodeRows(RING, told, new Map([['ing1', 1234]]));
    expect(row).toMatchObject({ answers: false, isCurrent: false, tone: 'bad', state: 'no answer', silentSinceMs: 1234, points: null });
    expect(row.remarks).toEqual(['not connected']);
  });

  it('a node that opens its store is on its way and not current', () => {
    const told = status({ ing1: { ready: false, state: 'opening', reason: 'opening: the store is being opened' } });
    const [row] = nodeRows(RING, told, new Map([['ing1', 1234]]));
    expect(row).toMatchObject({ answers: false, isCurrent: false, tone: 'info', state: 'opening' });
    expect(row.remarks).toEqual(['opening: the store is being opened']);
  });

  it('before the first status nothing is called broken', () => {
    const rows = nodeRows(RING, undefined, new Map());
    expect(rows.map((row) => [row.tone, row.isCurrent])).toEqual([['info', true], ['info', true], ['info', true]]);
  });

  it('a node to which partitions move is joining', () => {
    const rows = nodeRows(RING, status({ ing3: UP }), new Map());
    expect(rows[2]).toMatchObject({ joins: 2, state: 'joining', tone: 'info' });
  });

  it('a node that lacks points is behind, whoever says so', () => {
    const marked = nodeRows({ ...RING, behind: { ing1: 'spool lost' } }, status({ ing1: UP }), new Map());
    expect(marked[0]).toMatchObject({ state: 'behind', tone: 'warn', isCurrent: false });
    expect(marked[0].remarks[0]).toContain('spool lost');
    const own = nodeRows(RING, status({ ing1: { ...UP, behind: { partitions: 3, reasons: ['disk lost'] } } }), new Map());
    expect(own[0].remarks[0]).toBe('lacks acknowledged points of 3 partitions: disk lost');
  });

  it('remarks name damage, troubles and another ring', () => {
    const told = status({ ing1: { ...UP, damaged: ['x'], ring_store: 'gone', epoch: 6 } });
    const [row] = nodeRows(RING, told, new Map());
    expect(row.tone).toBe('warn');
    expect(row.remarks.join()).toContain('1 damaged');
    expect(row.remarks.join()).toContain('cannot follow the ring store: gone');
    expect(row.remarks.join()).toContain('has the ring of epoch 6, not 7');
  });

  it('a status of an unknown shape breaks nothing', () => {
    const odd = status({ ing1: { ready: true, points: 'many', behind: 7, damaged: 'x' } });
    expect(nodeRows(RING, odd, new Map())[0]).toMatchObject({ points: null, state: 'up' });
  });
});

describe('silentSince', () => {
  const silent = { ready: false, reason: 'no answer' };

  it('keeps the first moment, and forgets a node that is back', () => {
    const first = silentSince(new Map(), status({ ing1: silent, ing2: UP }), 1000);
    expect(first).toEqual(new Map([['ing1', 1000]]));
    const second = silentSince(first, status({ ing1: silent, ing2: UP }), 5000);
    expect(second.get('ing1')).toBe(1000);
    expect(silentSince(second, status({ ing1: UP, ing2: UP }), 9000).size).toBe(0);
  });

  it('believes a bridge that saw it go down before this page looked', () => {
    const told = status({ ing1: silent }, { b: bridge({ owners: { ing1: { state: 'down', since_s_ago: 60 } } }) });
    expect(silentSince(new Map(), told, 100_000).get('ing1')).toBe(100_000 - 60_500);
  });
});

describe('spools and readings', () => {
  it('adds the spools of all bridges for a node', () => {
    const spool = { bytes: 10, records: 1, oldest_s_ago: 5, error: '' };
    const bridges = { b1: bridge({ spools: { ing1: spool } }), b2: bridge({ spools: { ing1: { ...spool, oldest_s_ago: 9, error: 'full' } } }) };
    expect(spoolFor('ing1', bridges)).toEqual({ bytes: 20, records: 2, oldestS: 9, errors: ['spool of b2: full'] });
    expect(spoolFor('ing2', bridges)).toEqual({ bytes: 0, records: 0, oldestS: null, errors: [] });
  });

  it('counts what a node took in, sealed or not, by its own clock', () => {
    expect(nodeReadings(status({ ing1: UP, ing2: { ready: false } }))).toEqual(new Map([['ing1', { atS: 50, life: '11', count: 1000 }]]));
  });

  it('a bridge told its count some time ago; one that is not heard tells nothing', () => {
    const found = bridgeReadings(status({}, { b1: bridge(), b2: bridge({ ready: false }) }), 10_000);
    expect(found).toEqual(new Map([['b1', { atS: 9.5, life: '3', count: 5000 }]]));
  });
});

describe('bridgeRows', () => {
  it('shows connection, spools and troubles', () => {
    const told = status({}, {
      b1: bridge(),
      b2: bridge({ mqtt: { connected: false, broker: 'mqtt://b' }, unhealthy: ['not connected'] }),
      b3: bridge({ ready: false, reason: 'not heard for 9 s', spools: { ing1: { bytes: 5 } } }),
    });
    const rows = bridgeRows(told);
    expect(rows.map((row) => [row.tone, row.state])).toEqual([['ok', 'connected'], ['bad', 'no broker'], ['bad', 'not heard']]);
    expect(rows[1].remarks).toEqual(['not connected']);
    expect(rows[2]).toMatchObject({ remarks: ['not heard for 9 s'], spoolBytes: 5 });
  });
});

describe('total', () => {
  it('is null only where nothing is known', () => {
    expect(total([null, null])).toBeNull();
    expect(total([1, null, 2])).toBe(3);
  });
});
