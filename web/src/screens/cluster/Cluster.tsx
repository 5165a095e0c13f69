/** The cluster as it is now: the ring, nodes, bridges, what moves, what was refused, and how the ring came to be. */
import { useEffect, useMemo, useRef, useState, type ReactNode } from 'react';
import { ask } from '../../api/client';
import { formatBytes, formatCount, formatNumber, formatRate } from '../../format';
import { usePolled } from '../../hooks';
import { Badge } from '../../ui';
import type { DeadAnswer, HistoryAnswer, MovesAnswer, RingInfo, Status } from '../../api/types';
import { changedPartitions } from './arcs';
import './cluster.css';
import { DeadLettersPanel } from './DeadLettersPanel';
import { HistoryPanel } from './HistoryPanel';
import { MovesPanel } from './MovesPanel';
import { BridgesTable, NodesTable } from './NodesTable';
import { bridgeReadings, bridgeRows, nodeReadings, nodeRows, silentSince, total, type NodeRow, type SilentSince } from './nodes';
import { followChange, type Change } from './progress';
import { followAll, newest, type Track } from './rates';
import { gapsOf, gapsText, type Gaps } from './replication';
import { RingPanel } from './RingPanel';
import { Notice, Section } from './Section';

const OFTEN_MS = 2_000;
const SELDOM_MS = 10_000;
/** How long partitions that got other owners are pointed out. */
const FLASH_MS = 4_000;

/** What one answer alone does not tell. */
interface Seen {
  nodes: ReadonlyMap<string, Track>;
  bridges: ReadonlyMap<string, Track>;
  silent: SilentSince;
}

const NOTHING_SEEN: Seen = { nodes: new Map(), bridges: new Map(), silent: new Map() };

function useSeen(status: Status | undefined, at: number | undefined): Seen {
  const [seen, setSeen] = useState(NOTHING_SEEN);
  useEffect(() => {
    if (!status || at === undefined) return;
    setSeen((before) => ({
      nodes: followAll(before.nodes, nodeReadings(status)),
      bridges: followAll(before.bridges, bridgeReadings(status, at)),
      silent: silentSince(before.silent, status, at),
    }));
  }, [status, at]);
  return seen;
}

function names(ring: RingInfo): string[] {
  return ring.nodes.map((node) => node.id);
}

/** Partitions that got other owners a moment ago, and how far the moves are. */
function useChange(ring: RingInfo | undefined): { changed: number[]; change: Change } {
  const before = useRef<RingInfo>(undefined);
  const [changed, setChanged] = useState<number[]>([]);
  const [change, setChange] = useState<Change>({ total: 0, open: 0 });
  useEffect(() => {
    const was = before.current;
    before.current = ring;
    if (!ring) return;
    setChange((since) => followChange(since, ring.moves?.length ?? 0));
    if (was?.owners && ring.owners && was.epoch !== ring.epoch) {
      setChanged(changedPartitions(was.owners, ring.owners, names(was), names(ring)));
    }
  }, [ring]);
  useEffect(() => {
    if (!changed.length) return;
    const timer = setTimeout(() => setChanged([]), FLASH_MS);
    return () => clearTimeout(timer);
  }, [changed]);
  return { changed, change };
}

export default function Cluster() {
  const status = usePolled((signal) => ask<Status>('/api/v1/status', { signal }), OFTEN_MS, []);
  const ring = usePolled((signal) => ask<RingInfo>('/api/v1/ring', { params: { owners: true }, signal }), OFTEN_MS, []);
  const moves = usePolled((signal) => ask<MovesAnswer>('/api/v1/moves', { signal }), OFTEN_MS, []);
  const dead = usePolled((signal) => ask<DeadAnswer>('/api/v1/dead-letters', { signal }), SELDOM_MS, []);
  // A new ring has a new history: it is asked for with it, and then seldom.
  const history = usePolled((signal) => ask<HistoryAnswer>('/api/v1/history', { signal }), 6 * SELDOM_MS, [ring.value?.epoch]);
  const seen = useSeen(status.value, status.at);
  const { changed, change } = useChange(ring.value);
  const rows = useMemo(
    () => (ring.value ? nodeRows(ring.value, status.value, seen.silent, moves.value?.repairs) : []),
    [ring.value, status.value, seen, moves.value],
  );
  const gaps = useMemo(
    () => gapsOf(ring.value?.owners ?? [], ring.value?.replication ?? 0, rows.map((row) => row.isCurrent)),
    [ring.value, rows],
  );
  // Where the status fails, so does the rest, for the same reason: it is said once.
  const isTold = status.error !== undefined;
  return (
    <div className="cluster">
      <Notice of={status} />
      {ring.value && status.value && (
        <Tiles ring={ring.value} status={status.value} rows={rows} gaps={gaps} bridges={seen.bridges} isStale={isTold} />
      )}
      <Section title="Ring" of={ring} isTold={isTold} className="cluster-ring">
        {(told) => (
          <>
            <p role="status" className={gaps.none ? 'ring-bad' : gaps.reduced ? 'ring-warn' : ''}>
              {gapsText(gaps, told.replication)}
            </p>
            <RingPanel ring={told} gaps={gaps} changed={changed} rows={rows} />
          </>
        )}
      </Section>
      <Section title="Nodes" of={status} isTold={isTold}>
        {() => <NodesTable rows={rows} tracks={seen.nodes} />}
      </Section>
      <Section title="Bridges" of={status} isTold={isTold}>
        {(told) => <BridgesTable rows={bridgeRows(told)} tracks={seen.bridges} />}
      </Section>
      <Section title="Moves and repairs" of={moves} isTold={isTold}>
        {(told) => <MovesPanel told={told} change={change} />}
      </Section>
      <Section title="Dead letters" of={dead} isTold={isTold}>
        {(told) => <DeadLettersPanel told={told} />}
      </Section>
      <Section title="History" of={history} isTold={isTold}>
        {(told) => <HistoryPanel told={told} />}
      </Section>
    </div>
  );
}

interface TilesProps {
  ring: RingInfo;
  status: Status;
  rows: NodeRow[];
  gaps: Gaps;
  bridges: ReadonlyMap<string, Track>;
  /** The figures are older than they should be: what they were is no promise. */
  isStale: boolean;
}

function Tiles({ ring, status, rows, gaps, bridges, isStale }: TilesProps) {
  const silent = rows.filter((row) => row.tone === 'bad');
  const answering = rows.filter((row) => row.answers);
  const untold = rows.length - silent.length - answering.length;
  const points = total(rows.map((row) => row.points));
  const bytes = total(rows.map((row) => row.bytes));
  const wal = total(rows.map((row) => row.walBytes));
  const perPoint = mean(rows);
  const rate = total([...bridges.values()].map((track) => newest(track)));
  return (
    <dl className="cluster-tiles">
      <Tile name="State">
        <Health gaps={gaps} silent={silent.length} untold={untold} isStale={isStale} />
      </Tile>
      <Tile name="Nodes that answer">
        {answering.length} of {rows.length}
        {untold > 0 && <small>{formatCount(untold)} not told yet</small>}
      </Tile>
      <Tile name="Points a second in">{formatRate(rate)}</Tile>
      <Tile name="Points stored">
        {formatCount(points)}
        <small>every copy counted</small>
      </Tile>
      <Tile name="On disk">
        {formatBytes(total([bytes, wal]))}
        {(perPoint !== null || (wal ?? 0) > 0) && (
          <small>{perPoint === null ? 'all of it in the WAL yet' : `${formatBytes(wal)} in the WAL, segments ${formatNumber(perPoint, 3)} bytes per point`}</small>
        )}
      </Tile>
      <Tile name="Epoch">
        {ring.epoch}
        <small>version {status.version}</small>
      </Tile>
    </dl>
  );
}

interface HealthProps {
  gaps: Gaps;
  silent: number;
  untold: number;
  isStale: boolean;
}

function Health({ gaps, silent, untold, isStale }: HealthProps) {
  if (isStale) return <Badge tone="info">not known now</Badge>;
  if (gaps.none) return <Badge tone="bad">points cannot be read</Badge>;
  if (silent) return <Badge tone="warn">works, nodes are away</Badge>;
  if (gaps.reduced) return <Badge tone="warn">works, copies are missing</Badge>;
  return untold ? <Badge tone="info">not all is told yet</Badge> : <Badge tone="ok">all is well</Badge>;
}

/** Bytes per point of all nodes together, from what is in segments. */
function mean(rows: readonly NodeRow[]): number | null {
  const known = rows.filter((row) => row.bytes !== null && row.bytesPerPoint);
  const points = known.reduce((sum, row) => sum + (row.bytes ?? 0) / (row.bytesPerPoint ?? 1), 0);
  return points > 0 ? known.reduce((sum, row) => sum + (row.bytes ?? 0), 0) / points : null;
}

function Tile({ name, children }: { name: string; children: ReactNode }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}
