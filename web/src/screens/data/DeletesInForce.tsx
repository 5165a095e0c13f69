/** The deletes that the cluster remembers, asked for when somebody opens the list. */

import { useState } from 'react';
import { ask } from '../../api/client';
import type { DeleteRecord, Deletes } from '../../api/types';
import { formatCount } from '../../format';
import { useAsk } from '../../hooks';
import { tagsText, visible } from '../../text';
import { Button, Empty, ErrorBox, Id, Loading, Table, type Column } from '../../ui';
import { Moment } from './Data';

const SHOWN = 100;

const COLUMNS: Column<DeleteRecord>[] = [
  { key: 'number', title: 'Number', align: 'right', cell: (row) => formatCount(row.number) },
  { key: 'device', title: 'Device', cell: (row) => <Id text={row.device_id} /> },
  { key: 'metric', title: 'Metric', cell: (row) => (row.metric_name === null ? 'every' : <Id text={row.metric_name} />) },
  { key: 'tags', title: 'Tags', cell: (row) => tagsCell(row) },
  { key: 'from', title: 'From', cell: (row) => (row.start_time === null ? 'the beginning' : <Moment ms={row.start_time} />) },
  { key: 'to', title: 'To', cell: (row) => (row.end_time === null ? 'the end' : <Moment ms={row.end_time} />) },
];

function tagsCell({ tags }: DeleteRecord) {
  if (tags === null) return 'any';
  return Object.keys(tags).length === 0 ? 'none' : <bdi>{visible(tagsText(tags))}</bdi>;
}

/** deleted: how often something was deleted here; the list is asked for anew when it changes. */
export function DeletesInForce({ deleted }: { deleted: number }) {
  const [open, setOpen] = useState(false);
  return (
    <details className="data-deletes" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Deletes in force</summary>
      {open && <List deleted={deleted} />}
    </details>
  );
}

function List({ deleted }: { deleted: number }) {
  const { value, error, loading, refresh } = useAsk(
    (signal) => ask<Deletes>('/api/v1/deletes', { params: { time_unit: 'ms' }, signal }),
    [deleted],
  );
  if (value === undefined) return error === undefined ? <Loading what="Asking for deletes" /> : <ErrorBox error={error} retry={refresh} />;
  const newest = [...value.deletes].reverse();
  return (
    <>
      {error !== undefined && <ErrorBox error={error} retry={refresh} />}
      {newest.length === 0
        ? <Empty title="Nothing was ever deleted." />
        : <Table caption="Deletes, the newest first" columns={COLUMNS} rows={newest.slice(0, SHOWN)} rowKey={(row) => String(row.number)} />}
      {newest.length > SHOWN && <p className="hint">The newest {SHOWN} of {formatCount(newest.length)}; tools/ringctl and /api/v1/deletes show all.</p>}
      <Button small onClick={refresh} disabled={loading}>Look again</Button>
    </>
  );
}
