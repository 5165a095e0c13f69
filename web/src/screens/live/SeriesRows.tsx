/** A row for each series, of which only those in sight are in the document: there may be thousands. */

import { useEffect, useRef, useState } from 'react';
import { formatCount, formatNumber } from '../../format';
import { useSize } from '../../hooks';
import { visible } from '../../text';
import { formatDuration, formatTime } from '../../time';
import { Badge, Id, Spark } from '../../ui';
import { dataHref, exploreHref } from '../data/links';
import type { Series } from './series';
import type { LiveStore } from './store';
import { rowsInside } from './view';

const ROW_PX = 40; // as in live.css
const EXTRA_ROWS = 6; // above and below, so that scrolling shows no holes

interface SeriesRowsProps {
  store: LiveStore;
  rows: readonly Series[];
  nowMs: number;
}

export function SeriesRows({ store, rows, nowMs }: SeriesRowsProps) {
  const frame = useRef<HTMLDivElement>(null);
  const { height } = useSize(frame);
  const [top, setTop] = useState(0);
  const { first, end } = rowsInside(top, height, ROW_PX, rows.length, EXTRA_ROWS);
  useEffect(() => {
    // the browser moves the list up by itself when it gets shorter, without a word
    setTop((old) => Math.min(old, Math.max(0, rows.length * ROW_PX - height)));
  }, [rows.length, height]);
  return (
    <div
      ref={frame}
      className="live-frame"
      role="region"
      aria-label={`Newest points of ${formatCount(rows.length)} series`}
      tabIndex={0}
      onScroll={(event) => setTop(event.currentTarget.scrollTop)}
    >
      <table className="live-table" aria-rowcount={rows.length + 1}>
        <caption className="visually-hidden">Newest point of each series</caption>
        <thead>
          <tr aria-rowindex={1}>
            <th scope="col" className="live-device">Device</th>
            <th scope="col" className="live-metric">Metric</th>
            <th scope="col" className="live-value">Value</th>
            <th scope="col" className="live-spark">Lately</th>
            <th scope="col" className="live-heard">Heard</th>
            <th scope="col" className="live-every">Usually every</th>
          </tr>
        </thead>
        <tbody>
          <Space rows={first} />
          {rows.slice(first, end).map((series, index) => (
            <SeriesRow key={series.key} store={store} series={series} nowMs={nowMs} index={first + index} />
          ))}
          <Space rows={rows.length - end} />
        </tbody>
      </table>
    </div>
  );
}

/** The height of rows that are not there. */
function Space({ rows }: { rows: number }) {
  if (rows <= 0) return null;
  return (
    <tr className="live-space" aria-hidden="true">
      <td colSpan={6} style={{ height: `${rows * ROW_PX}px` }} />
    </tr>
  );
}

interface SeriesRowProps {
  store: LiveStore;
  series: Series;
  nowMs: number;
  index: number;
}

function SeriesRow({ store, series, nowMs, index }: SeriesRowProps) {
  const silent = store.isSilent(series, nowMs);
  const usual = series.usualMs;
  const quiet = store.quietMs(series, nowMs) / 1000;
  const tags = series.tags === '' ? '' : visible(series.tags);
  return (
    <tr className={silent ? 'silent' : undefined} aria-rowindex={index + 2}>
      <td className="live-device">
        <a href={dataHref(series.device)} title={visible(series.device)}>
          <Id text={series.device} />
        </a>
      </td>
      <td className="live-metric" title={`${visible(series.metric)} ${tags}`}>
        <a href={exploreHref({ device_id: series.device, metric_name: series.metric, tags: series.tagsOf })}><Id text={series.metric} /></a>{' '}
        {tags !== '' && <bdi className="live-tags">{tags}</bdi>}
      </td>
      <td className="live-value" title={series.last === null ? undefined : String(series.last)}>{formatNumber(series.last)}</td>
      <td className="live-spark"><Line series={series} /></td>
      <td className="live-heard" title={Number.isFinite(series.lastMs) ? formatTime(series.lastMs, { precise: true }) : undefined}>
        {silent
          ? <Badge tone="bad">silent {formatDuration(Math.round(quiet))}</Badge>
          : quiet < 1 ? 'now' : `${formatDuration(Math.floor(quiet))} ago`}
      </td>
      <td className="live-every">{usual === null ? '–' : formatDuration(usual / 1000)}</td>
    </tr>
  );
}

/** Drawn again only when the series has changed. */
function Line({ series }: { series: Series }) {
  const drawn = useRef<{ series: Series; changes: number; values: (number | null)[] }>(null);
  if (drawn.current === null || drawn.current.series !== series || drawn.current.changes !== series.changes) {
    drawn.current = { series, changes: series.changes, values: [...series.values] };
  }
  return <Spark values={drawn.current.values} width={120} height={28} label="Last values" />;
}
