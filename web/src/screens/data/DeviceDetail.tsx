/** The series of one device: what each holds, its silences, and the way to delete. */

import { useState } from 'react';
import { ask } from '../../api/client';
import type { GapRow, Me, RowsPage, SeriesPage, SeriesRow, Tags } from '../../api/types';
import { formatCount, formatNumber } from '../../format';
import { useAsk, type Asked } from '../../hooks';
import { tagsText, visible } from '../../text';
import { formatDuration, rangeToText, rangeToTimes, type Range } from '../../time';
import { Badge, Button, CopyButton, CoverageNote, Empty, ErrorBox, Id, Loading, Stale, Table, type Column } from '../../ui';
import { Moment, sizeText, useTop } from './Data';
import { DeleteDialog } from './DeleteDialog';
import { counted, mayDelete } from './deleting';
import { exploreHref, liveHref } from './links';
import { Pager, usePaging } from './Pager';
import type { Place } from './search';
import { gapsBySeries, seriesKey, sum, type Gaps } from './stored';

const PAGE = 100;
const GAP_SERIES = 1000; // series of one device whose silences are looked for
const GAPS_LISTED = 100;

interface DeviceDetailProps {
  device: string;
  range: Range;
  pointBytes: number | null;
  me: Asked<Me>;
  place: Place;
  onPlace: (place: Place) => void;
  onDeleted: () => void;
  onBack: () => void;
}

/** What a delete is asked for: the whole device, or one of its series. */
interface Chosen {
  metric: string | null;
  tags: Tags | null;
}

export function DeviceDetail({ device, range, pointBytes, me, place, onPlace, onDeleted, onBack }: DeviceDetailProps) {
  useTop(device);
  const [chosen, setChosen] = useState<Chosen | null>(null);
  const of = rangeToText(range);
  const paging = usePaging(place.page, place.cursor, onPlace, of);
  const named = { 'device_id.exact': device, ...rangeToTimes(range), time_unit: 'ms', allow_partial: true };
  const series = useAsk(
    (signal) => ask<SeriesPage>('/api/v1/series', { params: { ...named, limit: PAGE, cursor: paging.cursor }, signal }),
    [device, of, paging.cursor],
  );
  const gaps = useAsk(
    (signal) => ask<RowsPage<GapRow>>('/api/v1/gaps', { params: { ...named, limit: GAP_SERIES }, signal }),
    [device, of],
  );
  const refresh = () => {
    series.refresh();
    gaps.refresh();
  };
  return (
    <section aria-label="Device" className="data-device">
      <p><Button small kind="quiet" onClick={onBack}>← All devices</Button></p>
      <div className="data-device-head">
        <h2><Id text={device} /></h2>
        <CopyButton text={device} label="Copy id" />
        <a href={liveHref(device)}>Watch live</a>
        <Button small onClick={refresh} disabled={series.loading}>Look again</Button>
        <DeleteButton me={me} onDelete={() => setChosen({ metric: null, tags: null })} />
      </div>
      {series.error !== undefined && <ErrorBox error={series.error} retry={series.refresh} />}
      {series.stale && (series.error !== undefined || series.late) && <Stale at={series.at} late={series.late} />}
      {series.value === undefined
        ? series.loading && <Loading what="Asking for series" />
        : (
          <SeriesTable
            page={series.value}
            gaps={gaps}
            range={range}
            pointBytes={pointBytes}
            onDelete={me.value !== undefined && mayDelete(me.value) ? setChosen : undefined}
          />
        )}
      <Pager what="series" paging={paging} loading={series.loading} next={series.value?.next_cursor ?? null} />
      <GapList gaps={gaps} />
      {chosen !== null && (
        <DeleteDialog
          device={device}
          metric={chosen.metric}
          tags={chosen.tags}
          metrics={[...new Set((series.value?.series ?? []).map((row) => row.metric_name))]}
          range={range}
          onClose={() => setChosen(null)}
          onDeleted={() => { refresh(); onDeleted(); }}
        />
      )}
    </section>
  );
}

function DeleteButton({ me, onDelete }: { me: Asked<Me>; onDelete: () => void }) {
  if (me.value === undefined) {
    return me.error === undefined ? null : <span className="hint">Whether you may delete is not known: {visible(me.error.message)}</span>;
  }
  if (mayDelete(me.value)) return <Button small kind="danger" onClick={onDelete}>Delete …</Button>;
  return <span className="hint">The token {visible(me.value.name ?? '')} may not delete: it lacks the scope delete.</span>;
}

interface SeriesTableProps {
  page: SeriesPage;
  gaps: Asked<RowsPage<GapRow>>;
  range: Range;
  pointBytes: number | null;
  onDelete?: (chosen: Chosen) => void;
}

function SeriesTable({ page, gaps, range, pointBytes, onDelete }: SeriesTableProps) {
  if (page.series.length === 0) return <Empty title="No series of this device is stored." />;
  const found = gaps.value === undefined ? undefined : gapsBySeries(gaps.value.rows);
  const columns: Column<SeriesRow>[] = [
    { key: 'metric', title: 'Metric', cell: (row) => <a href={exploreHref(row, range)}><Id text={row.metric_name} /></a> },
    { key: 'tags', title: 'Tags', cell: (row) => (Object.keys(row.tags).length === 0 ? '–' : <bdi>{visible(tagsText(row.tags))}</bdi>) },
    { key: 'points', title: 'Points', align: 'right', cell: (row) => formatCount(row.count) },
    { key: 'first', title: 'First', cell: (row) => <Moment ms={row.first_time} /> },
    { key: 'last', title: 'Last', cell: (row) => <Moment ms={row.last_time} /> },
    { key: 'value', title: 'Last value', align: 'right', cell: (row) => formatNumber(row.last) },
    { key: 'every', title: 'Usually every', align: 'right', cell: (row) => formatDuration(row.expected_interval_s) },
    { key: 'gaps', title: 'Gaps', cell: (row) => <GapCell row={row} gaps={found?.get(seriesKey(row))} known={found !== undefined} failed={gaps.error !== undefined} /> },
    { key: 'size', title: 'Size, about', align: 'right', cell: (row) => sizeText(row.count, pointBytes) },
  ];
  if (onDelete !== undefined) {
    columns.push({
      key: 'delete',
      title: <span className="visually-hidden">Delete</span>,
      cell: (row) => (
        <Button small kind="quiet" aria-label={`Delete ${visible(row.metric_name)} ${visible(tagsText(row.tags))}`.trim()}
          onClick={() => onDelete({ metric: row.metric_name, tags: row.tags })}>
          Delete …
        </Button>
      ),
    });
  }
  return (
    <>
      {!page.coverage.complete && <CoverageNote coverage={page.coverage} />}
      <p className="data-sum">
        {formatCount(page.series.length)} series, {formatCount(sum(page.series, (row) => row.count))} points
        {page.next_cursor === null ? '' : ' on this page'}
      </p>
      <Table caption="Series of the device" columns={columns} rows={page.series} rowKey={seriesKey} />
    </>
  );
}

function GapCell({ row, gaps, known, failed }: { row: SeriesRow; gaps: Gaps | undefined; known: boolean; failed: boolean }) {
  if (!known) return <>{failed ? 'not known' : '…'}</>;
  if (gaps === undefined) return <>{row.expected_interval_s === null || row.expected_interval_s === undefined ? '–' : 'none'}</>;
  return (
    <>
      {formatCount(gaps.count)}, longest {formatDuration(gaps.longestS)}{' '}
      {gaps.ongoing && <Badge tone="warn" title="The last silence lasts until the end of the range">silent</Badge>}
    </>
  );
}

const GAP_COLUMNS: Column<GapRow>[] = [
  { key: 'metric', title: 'Metric', cell: (row) => <><Id text={row.metric_name} /> <bdi>{visible(tagsText(row.tags))}</bdi></> },
  { key: 'from', title: 'From', cell: (row) => <Moment ms={row.start_time} /> },
  { key: 'to', title: 'To', cell: (row) => (row.ongoing ? 'still silent' : <Moment ms={row.end_time} />) },
  { key: 'long', title: 'Length', align: 'right', cell: (row) => formatDuration(row.duration_s) },
  { key: 'every', title: 'Usually every', align: 'right', cell: (row) => formatDuration(row.expected_interval_s) },
];

function GapList({ gaps }: { gaps: Asked<RowsPage<GapRow>> }) {
  if (gaps.error !== undefined) return <ErrorBox error={gaps.error} retry={gaps.refresh} />;
  if (gaps.value === undefined) return null;
  const rows = [...gaps.value.rows].sort((a, b) => b.start_time - a.start_time);
  return (
    <details className="data-gaps">
      <summary>{rows.length === 0 ? 'No gaps' : counted(rows.length, 'gap')}: silences of more than three usual intervals</summary>
      {gaps.value.next_cursor !== null && <p className="hint">Of the first {formatCount(GAP_SERIES)} series.</p>}
      {rows.length > GAPS_LISTED && <p className="hint">The newest {GAPS_LISTED}.</p>}
      {rows.length > 0 && (
        <Table caption="Gaps, the newest first" columns={GAP_COLUMNS} rows={rows.slice(0, GAPS_LISTED)}
          rowKey={(row, index) => `${index} ${row.start_time}`} />
      )}
    </details>
  );
}
