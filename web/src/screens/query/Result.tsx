/** An answer of POST /query (times in ms): the figure or the rows, of how many points, how long it took, from whom. */
import type { Figure, QueryAnswer, QueryRow, Tags } from '../../api/types';
import { formatCount, formatNumber } from '../../format';
import { tagsText } from '../../text';
import { formatDuration, formatTime } from '../../time';
import { CoverageNote, Empty, Id, Spark, Table, type Column } from '../../ui';

function figure(value: Figure | undefined): string {
  return value === null || value === undefined ? 'none' : String(value);
}

function operationsOf(answer: QueryAnswer): string[] {
  return Array.isArray(answer.operation) ? answer.operation : [answer.operation];
}

function resultOf(answer: QueryAnswer, operation: string): Figure | undefined {
  const { result } = answer;
  return typeof result === 'object' && result !== null ? result[operation] : result;
}

function Figures({ answer }: { answer: QueryAnswer }) {
  return (
    <dl className="figures">
      {operationsOf(answer).map((operation) => {
        const value = resultOf(answer, operation);
        return (
          <div key={operation}>
            <dt>{operation}</dt>
            <dd className="figure" data-testid="result" title={formatNumber(value)}>{figure(value)}</dd>
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
  const groups = (answer.group_by ?? []).flatMap((one) => (one === 'series' ? ['device_id', 'metric_name', 'tags'] : [one]));
  const time: Column<QueryRow>[] = answer.interval === undefined ? [] : [{ key: 'time', title: 'time', cell: (row) => <Time ms={row.time} /> }];
  return [
    ...time,
    ...groups.map((name) => ({ key: name, title: <Id text={name} />, cell: (row: QueryRow) => cellOf(row, name) })),
    ...operationsOf(answer).map((name) => ({
      key: `figure ${name}`, title: name, align: 'right' as const, cell: (row: QueryRow) => figure(row[name] as Figure),
    })),
    { key: 'count', title: 'points', align: 'right', cell: (row) => formatCount(row.count) },
  ];
}

/** The course of a single group's rows, at a glance. */
function Course({ answer, rows }: { answer: QueryAnswer; rows: QueryRow[] }) {
  const [operation] = operationsOf(answer);
  if (operation === undefined || answer.interval === undefined || answer.group_by !== undefined || rows.length < 3) return null;
  return <Spark values={rows.map((row) => row[operation] as Figure)} width={320} height={48} label={operation} />;
}

function Rows({ answer, rows }: { answer: QueryAnswer; rows: QueryRow[] }) {
  if (rows.length === 0) return <Empty title="No points in this range"><p>A longer time, or other series, may have some.</p></Empty>;
  return (
    <>
      <Course answer={answer} rows={rows} />
      <Table caption="Rows of the answer" columns={columnsOf(answer)} rows={rows} rowKey={(_, index) => String(index)} />
      {answer.more === true && <p className="hint">There are more rows than the {formatCount(rows.length)} shown.</p>}
    </>
  );
}

function Range({ answer }: { answer: QueryAnswer }) {
  const own = (time: number | string) => (time === 0 ? null : typeof time === 'string' ? Date.parse(time) : time * 1000);
  const { start_time: start, end_time: end } = answer.range ?? { start_time: own(answer.start_time), end_time: own(answer.end_time) };
  if (start === null && end === null) return <>everything there is</>;
  return <>{start === null ? 'the beginning' : <Time ms={start} />} to {end === null ? 'the newest point' : <Time ms={end} />}</>;
}

export function Result({ answer }: { answer: QueryAnswer }) {
  const { rows, count, duration_ns: duration, interval, coverage } = answer;
  return (
    <>
      {rows === undefined ? <Figures answer={answer} /> : <Rows answer={answer} rows={rows} />}
      {rows === undefined && count === 0 && <p className="hint">The series have no points in this range.</p>}
      <dl className="facts">
        <div><dt>Points</dt><dd data-testid="count">{formatCount(count)}</dd></div>
        <div><dt>Time taken</dt><dd data-testid="duration">{formatDuration(duration / 1e9)}</dd></div>
        {interval !== undefined && <div><dt>Interval</dt><dd>{interval}</dd></div>}
        <div className="wide"><dt>Range</dt><dd><Range answer={answer} /></dd></div>
        <div className="wide"><dt>Coverage</dt><dd><CoverageNote coverage={coverage} /></dd></div>
      </dl>
    </>
  );
}
