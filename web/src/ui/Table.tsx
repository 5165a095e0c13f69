/** A table that scrolls sideways inside its own frame, so that a phone's page does not. */
import { Fragment, type ReactNode } from 'react';

export interface Column<Row> {
  key: string;
  title: ReactNode;
  cell: (row: Row) => ReactNode;
  /** Numbers stand at the right. */
  align?: 'right';
}

interface TableProps<Row> {
  /** Read out; shown only with showCaption. */
  caption: string;
  showCaption?: boolean;
  columns: Column<Row>[];
  rows: Row[];
  rowKey: (row: Row, index: number) => string;
  rowClass?: (row: Row) => string | undefined;
  onRow?: (row: Row) => void;
  /** Below a row, over its whole width; undefined: nothing. */
  below?: (row: Row) => ReactNode;
}

export function Table<Row>({ caption, showCaption = false, columns, rows, rowKey, rowClass, onRow, below }: TableProps<Row>) {
  const row = (one: Row, index: number) => {
    const extra = below?.(one);
    return (
      <Fragment key={rowKey(one, index)}>
        <tr className={rowClass?.(one)} onClick={onRow === undefined ? undefined : () => onRow(one)}>
          {columns.map(({ key, cell, align }) => <td key={key} className={align}>{cell(one)}</td>)}
        </tr>
        {extra !== undefined && extra !== null && <tr className="below"><td colSpan={columns.length}>{extra}</td></tr>}
      </Fragment>
    );
  };
  return (
    <div className="table-frame" role="group" aria-label={caption} tabIndex={0}>
      <table>
        <caption className={showCaption ? undefined : 'visually-hidden'}>{caption}</caption>
        <thead><tr>{columns.map(({ key, title, align }) => <th key={key} scope="col" className={align}>{title}</th>)}</tr></thead>
        <tbody>{rows.map(row)}</tbody>
      </table>
    </div>
  );
}
