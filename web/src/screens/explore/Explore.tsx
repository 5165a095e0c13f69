/**
 * Explore: lines of several series on one chart. The view is the URL's; the chart tells where a hand wants it, the loader
 * brings what is in it at the grain that the pixels show.
 */
import { useMemo, useRef, useState, useSyncExternalStore, type ReactNode } from 'react';
import { ask, asApiError, type ApiError } from '../../api/client';
import { serverNow } from '../../api/me';
import { Chart, type ChartHandle } from '../../chart/Chart';
import { plotPixels } from '../../chart/options';
import { pngOf } from '../../chart/png';
import type { ChartLine, Window } from '../../chart/values';
import { panned, rounded, zoomed } from '../../chart/window';
import { formatCount } from '../../format';
import { useSize, useTokens } from '../../hooks';
import { makeStore, type Store } from '../../store';
import { visible } from '../../text';
import { formatDuration, formatTime, localZone, rangeFromText, rangeToText, type Range } from '../../time';
import { Badge, Button, CoverageNote, Empty, ErrorBox, Loading, RangePicker, Stale } from '../../ui';
import { useUrlState } from '../../url';
import { queryHref } from '../data/links';
import { AddLines } from './AddLines';
import { exactPoints } from './exact';
import './explore.css';
import { Legend } from './Legend';
import { joined, linesFromTexts, lineToText, type Line } from './lines';
import type { Loaded } from './loader';
import type { ByLine } from './request';
import { save } from './save';
import { comparisonOf } from './shift';
import { bucketsCsv, fileName, pointsCsv } from './table';
import { Takes, Toolbar, type Moves } from './Toolbar';
import { useLoaded, type LoadedState } from './useLoaded';
import { ValueTable } from './ValueTable';
import { chartLines, DEFAULTS, fixedRange, guessedWindow, spokenChart, type SetView, type View } from './view';

const NOTHING: ByLine = new Map();
const NARROW_PX = 600;
const LEAST_HEIGHT_PX = 300;
/** Of the height that one sees: the names and values below the chart are to be seen with it. */
const HEIGHT_SHARE = 0.56;
const NARROW_SHARE = 0.42;

function onResize(told: () => void): () => void {
  addEventListener('resize', told);
  return () => removeEventListener('resize', told);
}

/** Of the layout: on a phone it stays as it is when the address bar comes and goes. */
function layoutHeight(): number {
  return document.documentElement.clientHeight;
}

function useHeight(width: number): number {
  const seen = useSyncExternalStore(onResize, layoutHeight);
  return Math.max(LEAST_HEIGHT_PX, Math.round(seen * (width < NARROW_PX ? NARROW_SHARE : HEIGHT_SHARE)));
}

/** Zooming in leaves a trail that "back" follows; without one it shows twice as much. */
function useMoves(view: View, setView: SetView, range: Range, window: Window): Moves & { to(w: Window): void; zoomTo(w: Window): void } {
  const trail = useRef<string[]>([]);
  const zoomTo = (to: Window): void => {
    trail.current.push(view.range);
    setView({ range: fixedRange(to) }, 'push');
  };
  const to = (other: Window): void => {
    if (range.kind !== 'fixed') trail.current.push(view.range); // so that one comes back to what moves by itself
    setView({ range: fixedRange(other) });
  };
  const back = (): void => {
    const before = trail.current.pop();
    setView({ range: before ?? fixedRange(rounded(zoomed(window, 2))) }, 'push');
  };
  return {
    to,
    zoomTo,
    back,
    pan: (share) => to(rounded(panned(window, share))),
    zoom: (factor) => zoomTo(rounded(zoomed(window, factor))),
  };
}

function stepText({ step, points }: Loaded): string {
  const count = `${formatCount(points)} points`;
  return step === null ? `${count}, each of them drawn` : `${count}, as average and min to max of ${step.text}`;
}

interface FactsProps {
  data: Loaded;
  loading: boolean;
  follows: boolean;
  /** The last answer did not come: what is here is neither live nor known to be complete. */
  stale: boolean;
}

function Facts({ data, loading, follows, stale }: FactsProps) {
  const { coverage, tookMs } = data;
  return (
    <div className="explore-facts">
      <p>
        {follows && !stale && <Badge tone="info">live</Badge>} {stepText(data)} · {formatDuration(tookMs / 1000)}
        {coverage?.complete === true && !stale && <> · <Badge tone="ok">complete</Badge></>}
        <span aria-hidden="true">{loading ? ' · loading …' : ''}</span>
      </p>
      {data.utcDays && <p className="hint">The server does not know the time zone {visible(localZone())}: each day begins at midnight of UTC.</p>}
      {coverage !== undefined && !coverage.complete && <CoverageNote coverage={coverage} />}
    </div>
  );
}

function Trouble({ loaded }: { loaded: LoadedState }) {
  const { error, data, retryAtMs, refresh } = loaded;
  if (error === undefined) return null;
  if (data !== undefined && retryAtMs !== undefined) return <Stale at={data.atMs} error={error} />;
  return <ErrorBox error={error} retry={refresh} />;
}

function isEmpty(lines: ChartLine[]): boolean {
  return lines.every((line) => line.values.times.length === 0);
}

function Blank({ loaded, lines, onAll }: { loaded: LoadedState; lines: ChartLine[]; onAll: () => void }): ReactNode {
  if (loaded.data === undefined && loaded.loading) return <div className="chart-blank"><Loading what="Loading the chart" /></div>;
  if (loaded.data === undefined || loaded.old || loaded.loading || !isEmpty(lines)) return null;
  return (
    <div className="chart-blank">
      <Empty title="No points in this window"><Button small onClick={onAll}>Show all that there is</Button></Empty>
    </div>
  );
}

/** Whether the answer that is here tells the window: never an exact one, an open one even of other lines. */
function isKnownBy(range: Range, old: boolean): boolean {
  return range.kind === 'all' || (range.kind === 'last' && !old);
}

/** What the parts below the choice of lines share. */
function useView() {
  const [view, setView] = useUrlState(DEFAULTS);
  const lineKey = JSON.stringify(view.line);
  const lines = useMemo(() => linesFromTexts(view.line), [lineKey]);
  const range = useMemo(() => rangeFromText(view.range), [view.range]);
  const setLines = (next: Line[], how: 'push' | 'replace' = 'replace') => setView({ line: next.map(lineToText) }, how);
  return { view, setView, lines, range, setLines };
}

function windowText(window: Window, utc: boolean): string {
  return `From ${formatTime(window.startMs, { utc })} to ${formatTime(window.endMs, { utc })}`;
}

/** Query asks about one series: the first that is drawn. */
function queryOf(lines: Line[], range: Range): string {
  const { device, metric, tags } = (lines.find((line) => !line.hidden) ?? lines[0])!;
  return queryHref({ device_id: device, metric_name: metric, tags }, range);
}

interface BoardProps {
  view: View;
  setView: SetView;
  lines: Line[];
  range: Range;
  onLine: (place: number, patch: Partial<Line> | null) => void;
}

function Board({ view, setView, lines, range, onLine }: BoardProps) {
  const box = useRef<HTMLDivElement>(null);
  const chart = useRef<ChartHandle>(null);
  const tokens = useTokens();
  const { width } = useSize(box);
  const height = useHeight(width);
  const [mark] = useState<Store<number | null>>(() => makeStore<number | null>(null));
  const [failed, setFailed] = useState<ApiError>();
  const right = lines.some((line) => line.side === 'right' && !line.hidden);
  const pixels = plotPixels(width, right);
  const { utc, band, log, follow } = view;
  const compareDays = comparisonOf(view.compare);
  const loaded = useLoaded({ lines, range, pixels, compareDays, utc, follow });
  const { data, old } = loaded;
  const window = useMemo(
    () => (data !== undefined && isKnownBy(range, old) ? data.window : guessedWindow(range, serverNow())), [range, data, old]);
  const moves = useMoves(view, setView, range, window);
  const values = data?.lines ?? NOTHING;
  const compared = data?.compared ?? NOTHING;
  const drawn = useMemo(
    () => chartLines(lines, values, compared, compareDays, tokens.series), [lines, values, compared, compareDays, tokens]);
  const title = windowText(window, utc);
  const fail = (error: unknown): void => setFailed(asApiError(error));
  const csv = (): void => {
    const keep = (text: string): void => save(new Blob([text], { type: 'text/csv' }), fileName(lines, window, 'csv'));
    setFailed(undefined);
    if (data?.step !== null) return keep(bucketsCsv(lines, values, window));
    const shown = lines.filter((line) => !line.hidden);
    exactPoints(shown, window, ask).then((points) => keep(pointsCsv(shown, points))).catch(fail);
  };
  const png = (): void => {
    const canvas = chart.current?.canvas();
    if (canvas === undefined) return;
    void pngOf(canvas, drawn, title, tokens).then((blob) => save(blob, fileName(lines, window, 'png')), fail);
  };
  const has = data !== undefined && !isEmpty(drawn);
  return (
    <section className="panel board" aria-label="Chart">
      <div className="board-top">
        <RangePicker tucked value={range} onChange={(next) => setView({ range: rangeToText(next) }, 'push')} />
        <Takes queryHref={queryOf(lines, range)} more={lines.length > 1} onRefresh={loaded.refresh} onCsv={has ? csv : undefined} onPng={has ? png : undefined} />
      </div>
      <Toolbar view={view} setView={setView} range={range} right={right} moves={moves} />
      <Trouble loaded={loaded} />
      {failed !== undefined && <ErrorBox error={failed} />}
      <div ref={box} className="chart-box" data-loading={loaded.loading || old}>
        {width > 0 && (
          <Chart lines={drawn} window={window} width={width} height={height} band={band} logLeft={log.includes('l')}
            logRight={log.includes('r')} utc={utc} label={spokenChart(lines, title)} drag={view.drag === 'pan' ? 'pan' : 'zoom'}
            onZoom={moves.zoomTo} onPan={moves.to} onBack={moves.back} onMark={mark.set} handle={chart} />
        )}
        <Blank loaded={loaded} lines={drawn} onAll={() => setView({ range: 'all' }, 'push')} />
      </div>
      {data !== undefined && <Facts data={data} loading={loaded.loading} follows={follow && range.kind === 'last'} stale={loaded.error !== undefined} />}
      <Legend lines={lines} values={values} compared={compared} compareDays={compareDays} window={window} pixels={pixels} utc={utc}
        mark={mark} onLine={onLine} />
      {view.table && data !== undefined && <ValueTable lines={lines} values={values} window={window} points={data.step === null} utc={utc} />}
    </section>
  );
}

export default function Explore() {
  const { view, setView, lines, range, setLines } = useView();
  const [open, setOpen] = useState(lines.length === 0);
  const add = (more: Line[]): number => {
    const { lines: next, unused } = joined(lines, more);
    setLines(next, 'push');
    return unused;
  };
  const changeLine = (place: number, patch: Partial<Line> | null): void =>
    setLines(lines.flatMap((line, at) => (at !== place ? [line] : patch === null ? [] : [{ ...line, ...patch }])));
  return (
    <div className="explore">
      <details className="panel" open={open} onToggle={(event) => setOpen(event.currentTarget.open)}>
        <summary>Add series</summary>
        <AddLines onAdd={add} />
      </details>
      {lines.length === 0
        ? <section className="panel"><Empty title="Nothing on the chart yet"><p>Choose devices and metrics above, and add them.</p></Empty></section>
        : <Board view={view} setView={setView} lines={lines} range={range} onLine={changeLine} />}
    </div>
  );
}
