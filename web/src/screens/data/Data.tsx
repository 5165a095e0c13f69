/** What is stored: devices page by page, the series of one device, and deletes. */

import { useEffect, useState } from 'react';
import { ask } from '../../api/client';
import { askMe } from '../../api/me';
import type { DeviceRow, RowsPage, Status } from '../../api/types';
import { formatBytes, formatCount, formatNumber } from '../../format';
import { useAsk, useDebounced, type Asked } from '../../hooks';
import { visible } from '../../text';
import { formatTime, rangeFromText, rangeToText, rangeToTimes, type Range } from '../../time';
import { Button, CoverageNote, Empty, ErrorBox, Field, Id, Loading, RangePicker, Stale, Table, TextInput, type Column } from '../../ui';
import { joinHash, splitHash, useUrlState, writeState } from '../../url';
import './data.css';
import { DeletesInForce } from './DeletesInForce';
import { DeviceDetail } from './DeviceDetail';
import { Pager, type Paging, usePaging } from './Pager';
import { faultOf, FIRST_PAGE, patternOf } from './search';
import { bytesPerPoint } from './stored';

const PAGE = 50;
const SETTLE_MS = 300;
const DEFAULTS = { search: '', metric: '', device: '', range: 'all', page: 1, cursor: '', part: 1, partCursor: '' };
type Url = typeof DEFAULTS;
type SetUrl = (patch: Partial<Url>, how?: 'push' | 'replace') => void;
/** What is asked for is another: both lists begin anew. */
const ANEW: Partial<Url> = { ...FIRST_PAGE, part: 1, partCursor: '' };

export default function Data() {
  const [url, setUrl] = useUrlState(DEFAULTS);
  const range = rangeFromText(url.range, { kind: 'all' });
  const status = useAsk((signal) => ask<Status>('/api/v1/status', { signal }), []);
  const me = useAsk((signal) => askMe({ signal }), []);
  const pointBytes = status.value === undefined ? null : bytesPerPoint(status.value);
  const [deleted, setDeleted] = useState(0);
  return (
    <div className="data panel">
      <RangePicker value={range} onChange={(next) => setUrl({ ...ANEW, range: rangeToText(next) })} />
      {url.device === ''
        ? <Devices url={url} range={range} pointBytes={pointBytes} setUrl={setUrl} />
        : (
          <DeviceDetail
            key={url.device}
            device={url.device}
            range={range}
            pointBytes={pointBytes}
            me={me}
            place={{ page: url.part, cursor: url.partCursor }}
            onPlace={({ page, cursor }) => setUrl({ part: page, partCursor: cursor }, 'push')}
            onDeleted={() => setDeleted((times) => times + 1)}
            onBack={() => setUrl({ device: '', part: 1, partCursor: '' }, 'push')}
          />
        )}
      <SizeNote status={status} pointBytes={pointBytes} />
      <DeletesInForce deleted={deleted} />
    </div>
  );
}

function SizeNote({ status, pointBytes }: { status: Asked<Status>; pointBytes: number | null }) {
  if (pointBytes !== null) {
    return <p className="hint">Sizes are points times {formatNumber(pointBytes, 3)} bytes, the average of all segments, of one copy.</p>;
  }
  if (status.value !== undefined) return <p className="hint">Sizes are not known yet: all points are still in memory and the log, none in segments.</p>;
  return status.error === undefined ? null : <p className="hint">Sizes are not known: {visible(status.error.message)}</p>;
}

interface DevicesProps {
  url: Url;
  range: Range;
  pointBytes: number | null;
  setUrl: SetUrl;
}

function Devices({ url, range, pointBytes, setUrl }: DevicesProps) {
  const { search, metric } = url;
  const [settledSearch, settledMetric] = [useDebounced(search, SETTLE_MS), useDebounced(metric, SETTLE_MS)];
  const of = JSON.stringify([settledSearch, settledMetric, rangeToText(range)]);
  const paging = usePaging(url.page, url.cursor, (place) => setUrl(place, 'push'), of);
  const find = (patch: Partial<Url>) => setUrl({ ...ANEW, ...patch });
  const fault = faultOf(search) ?? faultOf(metric);
  const page = useAsk(
    (signal) =>
      ask<RowsPage<DeviceRow>>('/api/v1/devices', {
        params: {
          device_id: patternOf(settledSearch), metric_name: patternOf(settledMetric), ...rangeToTimes(range),
          limit: PAGE, cursor: paging.cursor, time_unit: 'ms', allow_partial: true,
        },
        signal,
      }),
    [of, paging.cursor],
  );
  const faultAt = (field: string) => (page.error?.field === field ? page.error.message : undefined);
  return (
    <section aria-label="Devices">
      <div className="data-search">
        <Field label="Device" hint="Part of the id, a glob such as pump_*, or ~regex" error={faultOf(search) ?? faultAt('device_id')}>
          {(wiring) => <TextInput {...wiring} type="search" value={search} onChange={(text) => find({ search: text })} />}
        </Field>
        <Field label="Metric" hint="Only series of this metric count" error={faultOf(metric) ?? faultAt('metric_name')}>
          {(wiring) => <TextInput {...wiring} type="search" value={metric} onChange={(text) => find({ metric: text })} />}
        </Field>
      </div>
      {page.error !== undefined && fault === undefined && <ErrorBox error={page.error} retry={page.refresh} />}
      {page.error?.field === 'cursor' && <Button onClick={() => find({})}>Show the first page</Button>}
      {page.stale && (page.error !== undefined || page.late) && <Stale at={page.at} late={page.late} />}
      {page.value === undefined
        ? page.loading && <Loading what="Asking for devices" />
        : (
          <DevicesPage
            page={page.value}
            loading={page.loading}
            paging={paging}
            pointBytes={pointBytes}
            isSearch={search !== '' || metric !== ''}
            onClear={() => find({ search: '', metric: '' })}
          />
        )}
    </section>
  );
}

function deviceHref(device: string): string {
  const { search } = splitHash(window.location.hash);
  return joinHash('data', writeState(search, {}, { device }));
}

interface DevicesPageProps {
  page: RowsPage<DeviceRow>;
  loading: boolean;
  paging: Paging;
  pointBytes: number | null;
  isSearch: boolean;
  onClear: () => void;
}

function DevicesPage({ page, loading, paging, pointBytes, isSearch, onClear }: DevicesPageProps) {
  const columns: Column<DeviceRow>[] = [
    { key: 'device', title: 'Device', cell: (row) => <a href={deviceHref(row.device_id)}><Id text={row.device_id} /></a> },
    { key: 'series', title: 'Series', align: 'right', cell: (row) => formatCount(row.series) },
    { key: 'points', title: 'Points', align: 'right', cell: (row) => formatCount(row.count) },
    { key: 'first', title: 'First', cell: (row) => <Moment ms={row.first_time} /> },
    { key: 'last', title: 'Last', cell: (row) => <Moment ms={row.last_time} /> },
    { key: 'size', title: 'Size, about', align: 'right', cell: (row) => sizeText(row.count, pointBytes) },
  ];
  return (
    <>
      {!page.coverage.complete && <CoverageNote coverage={page.coverage} />}
      {page.rows.length === 0
        ? (
          <Empty title={isSearch ? 'No device is like that.' : 'Nothing is stored yet.'}>
            {isSearch
              ? <Button onClick={onClear}>Show all devices</Button>
              : 'Devices show up here when points of theirs have been stored.'}
          </Empty>
        )
        : <Table caption="Devices" columns={columns} rows={page.rows} rowKey={(row) => row.device_id} />}
      <Pager what="devices" paging={paging} loading={loading} next={page.next_cursor} />
    </>
  );
}

/** A time of the local zone; UTC when one points at it. */
export function Moment({ ms }: { ms: number | null | undefined }) {
  if (ms === null || ms === undefined) return <>–</>;
  return <time className="data-time" title={formatTime(ms, { utc: true, precise: true })}>{formatTime(ms)}</time>;
}

export function sizeText(points: number | null | undefined, pointBytes: number | null): string {
  return points === null || points === undefined || pointBytes === null ? '–' : formatBytes(points * pointBytes);
}

/** The document's top comes into sight when another device is shown. */
export function useTop(of: string): void {
  useEffect(() => {
    window.scrollTo(0, 0);
  }, [of]);
}
