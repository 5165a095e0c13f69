/** Rows of nodes and bridges, from the ring, the status and what was seen before. Pure. */
import type { Repair, RingInfo, Status } from '../../api/types';
import { figure, part, texts, words, type Fields } from './answers';
import type { Reading } from './rates';

export type Tone = 'ok' | 'warn' | 'bad' | 'info';

export interface NodeRow {
  id: string;
  endpoint: string;
  zone: string;
  weight: number;
  /** Index in the ring's nodes: its colour. */
  index: number;
  answers: boolean;
  /** It answers, and lacks no acknowledged points. */
  isCurrent: boolean;
  tone: Tone;
  /** In a word or two: "up", "draining", "opening" (its store), "no answer". */
  state: string;
  /** What is to be said beside: why it does not answer, what it lacks, what is damaged. */
  remarks: string[];
  /** Since when it does not answer (ms of this machine's clock), null while it does. */
  silentSinceMs: number | null;
  owns: number;
  joins: number;
  series: number | null;
  points: number | null;
  bytes: number | null;
  bytesPerPoint: number | null;
  walBytes: number | null;
  walFiles: number | null;
  walAgeS: number | null;
  spool: SpoolFigures;
  diskFree: number | null;
  uptimeS: number | null;
  /** Unix seconds; null: none since it began; undefined: not told. */
  lastRepairS: number | null | undefined;
  lastRepairFound: number | null;
}

/** What all bridges keep for one node while it is away. */
export interface SpoolFigures {
  bytes: number;
  records: number;
  oldestS: number | null;
  errors: string[];
}

export interface BridgeRow {
  id: string;
  ready: boolean;
  tone: Tone;
  state: string;
  remarks: string[];
  broker: string;
  connected: boolean;
  messages: number | null;
  points: number | null;
  memoryBytes: number | null;
  spoolBytes: number;
  deadBytes: number | null;
  heardS: number | null;
}

/** When each silent node was first seen silent, in ms of this machine's clock. */
export type SilentSince = ReadonlyMap<string, number>;

/** The nodes that do not answer now, since when; those that do are forgotten. A bridge may have known it before. */
export function silentSince(before: SilentSince, status: Status, nowMs: number): Map<string, number> {
  const found = new Map<string, number>();
  for (const [id, told] of Object.entries(status.nodes)) {
    if (told.ready === false) found.set(id, before.get(id) ?? downSince(id, status, nowMs) ?? nowMs);
  }
  return found;
}

function downSince(id: string, status: Status, nowMs: number): number | null {
  const ages = Object.values(status.bridges).flatMap((bridge) => {
    const lane = part(part(bridge, 'owners'), id);
    const age = figure(lane, 'since_s_ago');
    return words(lane, 'state') === 'down' && age !== null ? [age + (figure(bridge, 'age_s') ?? 0)] : [];
  });
  return ages.length ? nowMs - Math.max(...ages) * 1000 : null;
}

/** What lies in the spools of all bridges for a node. */
export function spoolFor(id: string, bridges: Status['bridges']): SpoolFigures {
  const found: SpoolFigures = { bytes: 0, records: 0, oldestS: null, errors: [] };
  for (const [bridge, told] of Object.entries(bridges)) {
    const spool = part(part(told, 'spools'), id);
    found.bytes += figure(spool, 'bytes') ?? 0;
    found.records += figure(spool, 'records') ?? 0;
    const oldest = figure(spool, 'oldest_s_ago');
    if (oldest !== null) found.oldestS = Math.max(found.oldestS ?? 0, oldest);
    const error = words(spool, 'error');
    if (error) found.errors.push(`spool of ${bridge}: ${error}`);
  }
  return found;
}

/** Rows in the ring's order. repairs: the last one by node, undefined while nobody told. */
export function nodeRows(ring: RingInfo, status: Status | undefined, since: SilentSince, repairs?: readonly Repair[]): NodeRow[] {
  const joins = new Array<number>(ring.nodes.length).fill(0);
  for (const [, , target] of ring.moves ?? []) if (target in joins) joins[target] += 1;
  const last = new Map((repairs ?? []).map((each) => [each.node, each]));
  return ring.nodes.map((node, index) => {
    const told = status?.nodes[node.id];
    const answers = told?.ready === true;
    const behind = behindText(ring.behind?.[node.id], told);
    const spool = spoolFor(node.id, status?.bridges ?? {});
    const repair = last.get(node.id);
    const shown: NodeRow = {
      id: node.id,
      endpoint: node.endpoint,
      zone: node.zone,
      weight: node.weight,
      index,
      answers,
      isCurrent: (answers || told === undefined) && !behind,
      tone: 'ok',
      state: '',
      remarks: [],
      silentSinceMs: told?.ready === false ? (since.get(node.id) ?? null) : null,
      owns: node.partitions,
      joins: joins[index] ?? 0,
      series: figure(told, 'series'),
      points: figure(told, 'points'),
      bytes: figure(told, 'segment_bytes'),
      bytesPerPoint: figure(told, 'bytes_per_point'),
      walBytes: figure(told, 'wal_bytes'),
      walFiles: figure(told, 'wal_files'),
      walAgeS: figure(told, 'wal_age_s'),
      spool,
      diskFree: figure(told, 'disk_free_bytes'),
      uptimeS: figure(told, 'uptime_s'),
      lastRepairS: repair?.last_s,
      lastRepairFound: figure(repair, 'points'),
    };
    return { ...shown, ...judged(shown, told, node.state, behind, status?.epoch) };
  });
}

function behindText(marked: string | undefined, told: Fields | undefined): string {
  const own = part(told, 'behind');
  const count = figure(own, 'partitions');
  const why = marked ?? texts(own, 'reasons').join('; ');
  if (marked === undefined && !count) return '';
  return `lacks acknowledged points${count ? ` of ${count} partitions` : ''}${why ? `: ${why}` : ''}`;
}

function judged(row: NodeRow, told: Fields | undefined, ringState: string, behind: string, epoch: number | undefined) {
  const remarks = [...row.spool.errors];
  if (told === undefined) return { tone: 'info' as Tone, state: 'not told yet', remarks };
  if (!row.answers && words(told, 'state') === 'opening') return { tone: 'info' as Tone, state: 'opening', remarks: [words(told, 'reason'), ...remarks] };
  if (!row.answers) return { tone: 'bad' as Tone, state: 'no answer', remarks: [words(told, 'reason') || 'no reason given', ...remarks] };
  const damaged = told.damaged;
  if (Array.isArray(damaged) && damaged.length) remarks.unshift(`${damaged.length} damaged files or parts were set aside`);
  for (const name of ['ring_store', 'sealing_failure', 'compaction_failure']) {
    const trouble = words(told, name);
    if (trouble) remarks.unshift(`${TROUBLE[name]}: ${trouble}`);
  }
  const own = figure(told, 'epoch');
  if (own !== null && epoch && own < epoch) remarks.push(`has the ring of epoch ${own}, not ${epoch}`);
  if (behind) return { tone: 'warn' as Tone, state: 'behind', remarks: [behind, ...remarks] };
  const state = ringState === 'active' ? (row.joins ? 'joining' : 'up') : ringState;
  const tone: Tone = remarks.length ? 'warn' : state === 'up' ? 'ok' : 'info';
  return { tone, state, remarks };
}

const TROUBLE: Record<string, string> = {
  ring_store: 'cannot follow the ring store',
  sealing_failure: 'cannot write segments',
  compaction_failure: 'cannot compact',
};

/** Points that each node has taken in since its process began: what is sealed, and what is not yet. */
export function nodeReadings(status: Status): Map<string, Reading> {
  const found = new Map<string, Reading>();
  for (const [id, told] of Object.entries(status.nodes)) {
    const [sealed, waiting, atS] = [figure(told, 'sealed_rows'), figure(told, 'head_rows'), figure(told, 'uptime_s')];
    if (sealed === null || waiting === null || atS === null) continue;
    found.set(id, { atS, life: String(told.incarnation), count: sealed + waiting });
  }
  return found;
}

/** Points that each bridge has taken in. nowMs: when the status came; what a bridge told is older by its age. */
export function bridgeReadings(status: Status, nowMs: number): Map<string, Reading> {
  const found = new Map<string, Reading>();
  for (const [id, told] of Object.entries(status.bridges)) {
    const points = figure(told, 'points');
    if (points === null || told.ready === false) continue;
    found.set(id, { atS: nowMs / 1000 - (figure(told, 'age_s') ?? 0), life: String(told.incarnation), count: points });
  }
  return found;
}

export function bridgeRows(status: Status): BridgeRow[] {
  return Object.entries(status.bridges).map(([id, told]) => {
    const mqtt = part(told, 'mqtt');
    const dead = part(told, 'dead_letter');
    const connected = mqtt.connected === true;
    const spools = Object.values(part(told, 'spools')) as Fields[];
    const remarks = [told.ready === false ? words(told, 'reason') : '', ...texts(told, 'unhealthy'), trouble(dead)].filter(Boolean);
    const ready = told.ready !== false;
    return {
      id,
      ready,
      tone: !ready ? 'bad' : connected ? (remarks.length ? 'warn' : 'ok') : 'bad',
      state: !ready ? 'not heard' : connected ? 'connected' : 'no broker',
      remarks: [...new Set(remarks)],
      broker: words(mqtt, 'broker'),
      connected,
      messages: figure(told, 'messages'),
      points: figure(told, 'points'),
      memoryBytes: figure(told, 'memory_bytes'),
      spoolBytes: spools.reduce((sum, spool) => sum + (figure(spool, 'bytes') ?? 0), 0),
      deadBytes: figure(dead, 'bytes'),
      heardS: figure(told, 'age_s'),
    };
  });
}

function trouble(dead: Fields): string {
  const error = words(dead, 'error');
  return error ? `dead letter: ${error}` : '';
}

/** A sum of what is known, null where nothing is. */
export function total(values: readonly (number | null)[]): number | null {
  const known = values.filter((value): value is number => value !== null);
  return known.length ? known.reduce((sum, value) => sum + value, 0) : null;
}
