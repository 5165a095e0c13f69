/** The last rings and what each changed. */
import { visible } from '../../text';
import { formatTime } from '../../time';
import { Empty, Table, type Column } from '../../ui';
import type { HistoryAnswer, HistoryRow } from '../../api/types';

const COLUMNS: Column<HistoryRow>[] = [
  { key: 'epoch', title: 'Epoch', align: 'right', cell: (row) => row.epoch },
  { key: 'saved', title: 'Saved', cell: (row) => savedAt(row.saved_at) },
  { key: 'changes', title: 'What changed', cell: (row) => visible(row.summary) },
];

function savedAt(saved: HistoryRow['saved_at']): string {
  return typeof saved === 'number' ? formatTime(saved * 1000) : (saved ?? '–');
}

export function HistoryPanel({ told }: { told: HistoryAnswer }) {
  if (!told.rows.length) return <Empty title="The ring store keeps no earlier rings" />;
  return (
    <div className="cluster-history">
      <Table caption="History of the ring" columns={COLUMNS} rows={told.rows} rowKey={(row) => String(row.epoch)} />
    </div>
  );
}
