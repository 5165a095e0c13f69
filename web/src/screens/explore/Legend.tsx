/** The lines by name, with what they are below the marker and in the window: the chart in words. */
import { useMemo } from 'react';
import { nearest, summaryOf, type Values, type Window } from '../../chart/values';
import { spanOf } from '../../chart/window';
import { formatCount, formatNumber } from '../../format';
import { useDebounced, useTokens } from '../../hooks';
import { useStore, type Store } from '../../store';
import { visible } from '../../text';
import { formatTime } from '../../time';
import { Button, Id, Table, type Column } from '../../ui';
import { keyOf, labelOf, looksOf, type Line } from './lines';
import type { ByLine } from './request';
import { comparisonLabel } from './view';

interface Props {
  lines: Line[];
  values: ByLine;
  compared: ByLine;
  compareDays: number;
  window: Window;
  pixels: number;
  utc: boolean;
  mark: Store<number | null>;
  onLine: (place: number, patch: Partial<Line> | null) => void;
}

/** How far from the marker a value may be to count as below it. */
const REACH_PX = 12;

function markedText(values: Values | undefined, mark: number | null, reachMs: number): string {
  const at = values === undefined || mark === null ? -1 : nearest(values, mark, reachMs);
  if (values === undefined || at < 0) return '–';
  const avg = formatNumber(values.avg[at]);
  return values.bucketMs === 0 ? avg : `${avg} (${formatNumber(values.min[at])} to ${formatNumber(values.max[at])})`;
}

function Swatch({ place, hidden }: { place: number; hidden: boolean }) {
  const { series } = useTokens();
  const { colour, dash } = looksOf(place, series.length);
  return (
    <svg width="26" height="10" aria-hidden="true" className="swatch">
      <line x1="0" y1="5" x2="26" y2="5" stroke={hidden ? 'var(--line)' : `var(--series-${colour + 1})`} strokeWidth="3"
        strokeDasharray={dash.join(' ') || undefined} />
    </svg>
  );
}

interface Row {
  line: Line;
  place: number;
  summary: ReturnType<typeof summaryOf>;
}

function nameColumn(onLine: Props['onLine']): Column<Row> {
  return {
    key: 'name',
    title: 'Series',
    cell: ({ line, place }) => (
      <label className="legend-name">
        <input type="checkbox" checked={!line.hidden} onChange={() => onLine(place, { hidden: !line.hidden })} />
        <Swatch place={place} hidden={line.hidden} />
        <Id text={labelOf(line)} />
      </label>
    ),
  };
}

function summaryColumns(utc: boolean, buckets: boolean): Column<Row>[] {
  const figure = (key: 'last' | 'min' | 'max', title: string): Column<Row> => (
    { key, title, align: 'right', cell: ({ summary }) => <span title={String(summary?.[key] ?? '')}>{formatNumber(summary?.[key])}</span> });
  return [
    figure('last', buckets ? 'Last average' : 'Last'),
    { key: 'when', title: 'At', cell: ({ summary }) => formatTime(summary?.lastMs, { utc }) },
    figure('min', 'Min'),
    figure('max', 'Max'),
    { key: 'points', title: 'Points', align: 'right', cell: ({ summary }) => formatCount(summary?.points ?? 0) },
  ];
}

function endColumns(onLine: Props['onLine']): Column<Row>[] {
  return [
    {
      key: 'axis',
      title: 'Axis',
      cell: ({ line, place }) => (
        <Button small aria-label={`Axis of ${visible(labelOf(line))}: ${line.side}, change`}
          onClick={() => onLine(place, { side: line.side === 'left' ? 'right' : 'left' })}>{line.side}</Button>
      ),
    },
    {
      key: 'remove',
      title: <span className="visually-hidden">Remove</span>,
      cell: ({ line, place }) => (
        <Button small kind="quiet" aria-label={`Remove ${visible(labelOf(line))}`} onClick={() => onLine(place, null)}>×</Button>
      ),
    },
  ];
}

interface MarkedProps {
  mark: Store<number | null>;
  values: Values | undefined;
  reachMs: number;
}

/** These alone are rendered anew while the marker moves. */
function Marked({ mark, values, reachMs }: MarkedProps) {
  return markedText(values, useStore(mark), reachMs);
}

interface TimeProps {
  mark: Store<number | null>;
  utc: boolean;
  precise: boolean;
}

function MarkedTime({ mark, utc, precise }: TimeProps) {
  const marked = useStore(mark);
  return marked === null ? 'At the marker' : formatTime(marked, { utc, precise });
}

/** What is below the marker, said when it rests. */
function Spoken({ mark, utc, precise, textOf }: TimeProps & { textOf: (marked: number) => string }) {
  const marked = useDebounced(useStore(mark), 500);
  return <p className="visually-hidden" role="status">{marked === null ? '' : `${formatTime(marked, { utc, precise })}: ${textOf(marked)}`}</p>;
}

export function Legend({ lines, values, compared, compareDays, window, pixels, utc, mark, onLine }: Props) {
  const rows = useMemo(() => lines.map((line, place): Row => {
    const found = values.get(keyOf(line));
    return { line, place, summary: found === undefined ? undefined : summaryOf(found, window) };
  }), [lines, values, window.startMs, window.endMs]);
  const reachMs = (spanOf(window) / Math.max(1, pixels)) * REACH_PX;
  const precise = spanOf(window) < 60_000;
  const below = (of: ByLine) => ({ line }: Row) => <Marked mark={mark} values={of.get(keyOf(line))} reachMs={reachMs} />;
  const columns: Column<Row>[] = [
    nameColumn(onLine),
    { key: 'marked', title: <MarkedTime mark={mark} utc={utc} precise={precise} />, align: 'right', cell: below(values) },
    ...(compareDays === 0 ? [] : [
      { key: 'before', title: comparisonLabel(compareDays), align: 'right' as const, cell: below(compared) },
    ]),
    ...summaryColumns(utc, [...values.values()].some(({ bucketMs }) => bucketMs > 0)),
    ...endColumns(onLine),
  ];
  const seen = lines.filter((line) => !line.hidden);
  const textOf = (marked: number) =>
    seen.map((line) => `${visible(labelOf(line))} ${markedText(values.get(keyOf(line)), marked, reachMs)}`).join('; ');
  return (
    <div className="legend">
      <Table caption="Series of the chart" columns={columns} rows={rows} rowKey={({ line }) => keyOf(line)}
        rowClass={({ line }) => (line.hidden ? 'hidden-line' : undefined)} />
      <Spoken mark={mark} utc={utc} precise={precise} textOf={textOf} />
    </div>
  );
}
