/** Nodes and bridges as they say they are. */
import type { ReactNode } from 'react';
import { formatBytes, formatCount, formatNumber, formatRate } from '../../format';
import { useNow } from '../../hooks';
import { visible } from '../../text';
import { formatAgo, formatDuration, formatTime } from '../../time';
import { Badge, Id, Spark, Table, type Column } from '../../ui';
import { NodeDot } from './NodeDot';
import type { BridgeRow, NodeRow, Tone } from './nodes';
import { newest, type Track } from './rates';

type Tracks = ReadonlyMap<string, Track>;

/** A column of figures, with what belongs to them below in small. */
function figure<Row>(key: string, title: string, of: (row: Row) => string, below?: (row: Row) => string | null): Column<Row> {
  const cell = (row: Row): ReactNode => {
    const more = below?.(row);
    return more ? <>{of(row)}<small>{more}</small></> : of(row);
  };
  return { key, title, align: 'right', cell };
}

export function NodesTable({ rows, tracks }: { rows: NodeRow[]; tracks: Tracks }) {
  const nowMs = useNow();
  const columns: Column<NodeRow>[] = [
    { key: 'node', title: 'Node', cell: (row) => <Name row={row} /> },
    { key: 'state', title: 'State', cell: (row) => <State tone={row.tone} state={row.state} remarks={row.remarks} sinceMs={row.silentSinceMs} nowMs={nowMs} /> },
    figure('series', 'Series', (row) => formatCount(row.series)),
    figure('points', 'Points', (row) => formatCount(row.points)),
    figure('bytes', 'In segments', (row) => formatBytes(row.bytes), perPoint),
    { key: 'rate', title: 'Taken in', align: 'right', cell: (row) => <Rate name={row.id} track={tracks.get(row.id)} /> },
    figure('wal', 'WAL', (row) => formatBytes(row.walBytes), (row) => (row.walAgeS ? `oldest ${formatDuration(Math.round(row.walAgeS))}` : null)),
    figure('spool', 'Spool for it', (row) => formatBytes(row.spool.bytes), spooled),
    { key: 'repair', title: 'Last repair', cell: (row) => <LastRepair row={row} nowMs={nowMs} /> },
    figure('free', 'Disk free', (row) => formatBytes(row.diskFree), (row) => (row.uptimeS === null ? null : `up ${formatDuration(Math.floor(row.uptimeS))}`)),
  ];
  return <Table caption="Storage nodes" columns={columns} rows={rows} rowKey={(row) => row.id} rowClass={classOf} />;
}

function classOf({ tone }: { tone: Tone }): string | undefined {
  return tone === 'bad' ? 'is-bad' : undefined;
}

function perPoint({ bytes, bytesPerPoint, points }: NodeRow): string | null {
  if (bytesPerPoint) return `${formatNumber(bytesPerPoint, 3)} bytes per point`;
  return bytes === 0 && points ? 'all in the WAL yet' : null;
}

function spooled({ spool }: NodeRow): string | null {
  if (!spool.records) return null;
  const oldest = spool.oldestS === null ? '' : `, oldest ${formatDuration(Math.round(spool.oldestS))}`;
  return `${formatCount(spool.records)} ${spool.records === 1 ? 'batch' : 'batches'}${oldest}`;
}

function Name({ row }: { row: NodeRow }) {
  return (
    <>
      <NodeDot index={row.index} />
      <strong><Id text={row.id} /></strong>
      <small>{visible(row.endpoint.replace(/^tcp:\/\//, ''))}</small>
      {row.zone && <small>zone {visible(row.zone)}</small>}
    </>
  );
}

interface StateProps {
  tone: Tone;
  state: string;
  remarks: string[];
  sinceMs?: number | null;
  nowMs?: number;
}

function State({ tone, state, remarks, sinceMs = null, nowMs }: StateProps) {
  return (
    <div className="cluster-state">
      <Badge tone={tone}>{state}</Badge>
      {remarks.map((remark) => <small key={remark}>{visible(remark)}</small>)}
      {sinceMs !== null && (
        <small>
          since <time dateTime={new Date(sinceMs).toISOString()}>{formatTime(sinceMs)}</time>, {formatAgo(sinceMs, nowMs)}
        </small>
      )}
    </div>
  );
}

function LastRepair({ row, nowMs }: { row: NodeRow; nowMs: number }) {
  if (row.lastRepairS === undefined) return '–';
  if (row.lastRepairS === null) return 'none since it began';
  return (
    <>
      {formatAgo(row.lastRepairS * 1000, nowMs)}
      {row.lastRepairFound !== null && <small>{row.lastRepairFound === 0 ? 'nothing was missing' : `${formatCount(row.lastRepairFound)} points were missing`}</small>}
    </>
  );
}

function Rate({ name, track }: { name: string; track: Track | undefined }) {
  const rates = track?.rates ?? [];
  return (
    <>
      {formatRate(newest(track))}
      {rates.length > 1 && <Spark values={rates} width={72} height={18} label={`Points a second taken in by ${visible(name)}`} />}
    </>
  );
}

export function BridgesTable({ rows, tracks }: { rows: BridgeRow[]; tracks: Tracks }) {
  if (!rows.length) return <p className="cluster-quiet">No node has heard a bridge lately: nothing comes in.</p>;
  const columns: Column<BridgeRow>[] = [
    { key: 'bridge', title: 'Bridge', cell: (row) => <><strong><Id text={row.id} /></strong><small>{visible(row.broker)}</small></> },
    { key: 'state', title: 'State', cell: (row) => <State tone={row.tone} state={row.state} remarks={row.remarks} /> },
    figure('messages', 'Messages', (row) => formatCount(row.messages)),
    figure('points', 'Points', (row) => formatCount(row.points)),
    { key: 'rate', title: 'Taken in', align: 'right', cell: (row) => <Rate name={row.id} track={tracks.get(row.id)} /> },
    figure('memory', 'In memory', (row) => formatBytes(row.memoryBytes)),
    figure('spools', 'Spools', (row) => formatBytes(row.spoolBytes)),
    figure('dead', 'Dead letters', (row) => formatBytes(row.deadBytes)),
  ];
  return <Table caption="Bridges heard by the nodes" columns={columns} rows={rows} rowKey={(row) => row.id} rowClass={classOf} />;
}
