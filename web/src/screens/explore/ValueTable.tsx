/** The chart as a table: every value that it draws, a page at a time. */
import { useMemo, useState } from 'react';
import type { Window } from '../../chart/values';
import { formatCount } from '../../format';
import { formatTime } from '../../time';
import { Button, Empty, Id, Table, type Column } from '../../ui';
import { labelOf, type Line } from './lines';
import type { ByLine } from './request';
import { rowsOf, type ValueRow } from './table';

const PAGE = 100;

interface Props {
  lines: Line[];
  values: ByLine;
  window: Window;
  points: boolean;
  utc: boolean;
}

function columns(points: boolean, utc: boolean): Column<ValueRow>[] {
  const figure = (key: 'min' | 'avg' | 'max' | 'count', title: string): Column<ValueRow> => (
    { key, title, align: 'right', cell: (row) => String(row[key]) });
  const figures = points ? [figure('avg', 'Value')] : [figure('min', 'Min'), figure('avg', 'Average'), figure('max', 'Max'), figure('count', 'Points')];
  return [
    { key: 'time', title: points ? 'Time' : 'From', cell: ({ timeMs }) => formatTime(timeMs, { utc, precise: true }) },
    { key: 'series', title: 'Series', cell: ({ line }) => <Id text={labelOf(line)} /> },
    ...figures,
  ];
}

export function ValueTable({ lines, values, window, points, utc }: Props) {
  const [page, setPage] = useState(0);
  const rows = useMemo(() => rowsOf(lines, values, window), [lines, values, window.startMs, window.endMs]);
  const last = Math.max(0, Math.ceil(rows.length / PAGE) - 1);
  const here = Math.min(page, last);
  if (rows.length === 0) return <Empty title="No values in this window" />;
  return (
    <section className="value-table" aria-label="Values">
      <Table caption="Values of the chart" columns={columns(points, utc)} rows={rows.slice(here * PAGE, (here + 1) * PAGE)}
        rowKey={(_, index) => String(index)} />
      <div className="actions">
        <Button small disabled={here === 0} onClick={() => setPage(here - 1)}>Earlier</Button>
        <span>{formatCount(here * PAGE + 1)} to {formatCount(Math.min(rows.length, (here + 1) * PAGE))} of {formatCount(rows.length)}</span>
        <Button small disabled={here === last} onClick={() => setPage(here + 1)}>Later</Button>
      </div>
    </section>
  );
}
