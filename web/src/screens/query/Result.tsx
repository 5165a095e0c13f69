/** An answer of POST /query (times in ms): the figure or the rows, of how many points, how long it took, from whom. */
import { lazy, Suspense, useState } from 'react';
import type { Figure, QueryAnswer, QueryRow, Tags } from '../../api/types';
import type { Window } from '../../chart/values';
import { formatCount, formatNumber } from '../../format';
import { tagsText } from '../../text';
import { formatDuration, formatTime } from '../../time';
import { Button, CopyButton, CoverageNote, Empty, Id, Loading, Table, type Column } from '../../ui';
import { groupColumns, operationsOf } from './course';

/** With the chart comes uPlot: only who sees one pays for it. */
const QueryChart = lazy(() => import('./QueryChart'));

/** Wishes for another window, by hands on the chart. */
export interface WindowWishes {
  onZoom: (window: Window) => void;
  onPan: (window: Window) => void;
  onBack: () => void;
}

const FIRST_ROWS = 100;
const MORE_ROWS = 1000;

function resultOf(answer: QueryAnswer, operation: string): Figure | undefined {
  const { result } = answer;
  return typeof result === 'object' && result !== null ? result[operation] : result;
}

/** Six digits to read; all of them when one points at it. */
function FigureText({ value }: { value: Figure | undefined }) {
  return value === null || value === undefined ? <span className="hint">none</span> : <span title={String(value)}>{formatNumber(value)}</span>;
}

function Figures({ answer }: { answer: QueryAnswer }) {
  return (
    <dl className="figures">
      {operationsOf(answer).map((operation) => {
        const value = resultOf(answer, operation);
        const has = value !== null && value !== undefined;
        return (
          <div key={operation}>
            <dt>{operation}</dt>
            <dd className="figure" data-testid="result" title={has ? String(value) : undefined}>{has ? formatNumber(value) : 'none'}</dd>
            {has && <dd className="exact">{formatNumber(value) !== String(value) && <code>{String(value)}</code>} <CopyButton text={String(value)} /></dd>}
          </div>
        );
      })}
    </dl>
  );
}

/** Times of rows come as numbers of milliseconds. */
function Time({ ms }: { ms: number | string | null | undefined }) {
  if (ms === null || ms === undefined) return <>–</>;
  const at = Number(ms);
  const precise = at % 1000 !== 0;
  return (
    <span className="both-times">
      <time dateTime={new Date(at).toISOString()}>{formatTime(at, { precise })}</time>
      <span className="hint utc">{formatTime(at, { utc: true, precise })}</span>
    </span>
  );
}

function cellOf(row: QueryRow, column: string) {
  const value = row[column];
  if (column === 'tags') return <Id text={tagsText((value ?? {}) as Tags) || 'none'} />;
  return value === null || value === undefined ? <span className="hint">none</span> : <Id text={String(value)} />;
}

function columnsOf(answer: QueryAnswer): Column<QueryRow>[] {
  const time: Column<QueryRow>[] = answer.interval === undefined ? [] : [{ key: 'time', title: 'Time', cell: (row) => <Time ms={row.time} /> }];
  return [
    ...time,
    ...groupColumns(answer).map((name) => ({ key: name, title: <Id text={name} />, cell: (row: QueryRow) => cellOf(row, name) })),
    ...operationsOf(answer).map((name) => ({
      key: `figure ${name}`, title: name, align: 'right' as const, cell: (row: QueryRow) => <FigureText value={row[name] as Figure} />,
    })),
    { key: 'count', title: 'Points', align: 'right', cell: (row) => formatCount(row.count) },
  ];
}

function Rows({ answer, rows, wishes }: { answer: QueryAnswer; rows: QueryRow[]; wishes: WindowWishes }) {
  const [shown, setShown] = useState(FIRST_ROWS);
  if (rows.length === 0) return <Empty title="No points in this range"><p>A longer time, or other series, may have some.</p></Empty>;
  const left = rows.length - shown;
  return (
    <>
      {answer.interval !== undefined && rows.length > 1 && (
        <Suspense fallback={<div className="query-chart"><Loading what="Loading the chart" /></div>}><QueryChart answer={answer} {...wishes} /></Suspense>
      )}
      <Table caption="Rows of the answer" columns={columnsOf(answer)} rows={rows.slice(0, shown)} rowKey={(_, index) => String(index)} />
      {left > 0 && <p className="actions"><Button small onClick={() => setShown(shown + MORE_ROWS)}>Show {formatCount(Math.min(left, MORE_ROWS))} more of {formatCount(rows.length)} rows</Button></p>}
      {answer.more === true && <p className="hint">The answer was cut after {formatCount(rows.length)} rows: a longer interval or a shorter time has fewer.</p>}
    </>
  );
}

function Range({ answer }: { answer: QueryAnswer }) {
  const own = (time: number | string) => (time === 0 ? null : typeof time === 'string' ? Date.parse(time) : time * 1000);
  const { start_time: start, end_time: end } = answer.range ?? { start_time: own(answer.start_time), end_time: own(answer.end_time) };
  if (start === null && end === null) return <>everything there is</>;
  return <>{start === null ? 'the beginning' : <Time ms={start} />} to {end === null ? 'the newest point' : <Time ms={end} />}</>;
}

export function Result({ answer, wishes }: { answer: QueryAnswer; wishes: WindowWishes }) {
  const { rows, count, duration_ns: duration, interval, coverage } = answer;
  return (
    <>
      {rows === undefined ? <Figures answer={answer} /> : <Rows answer={answer} rows={rows} wishes={wishes} />}
      {rows === undefined && count === 0 && <p className="hint">The series have no points in this range.</p>}
      <dl className="facts">
        <div><dt>Points</dt><dd data-testid="count">{formatCount(count)}</dd></div>
        <div><dt>Time taken</dt><dd data-testid="duration">{formatDuration(duration / 1e9)}</dd></div>
        {interval !== undefined && <div><dt>Interval</dt><dd data-testid="interval">{interval}</dd></div>}
        <div className="wide"><dt>Range</dt><dd><Range answer={answer} /></dd></div>
        <div className="wide"><dt>Coverage</dt><dd><CoverageNote coverage={coverage} /></dd></div>
      </dl>
    </>
  );
}
