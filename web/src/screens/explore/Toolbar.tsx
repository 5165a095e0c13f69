/** What is done with the chart by buttons: everything that hand and keys do, and what only stands here. */
import type { ReactNode } from 'react';
import type { Range } from '../../time';
import { Button, CopyButton, Field, Select } from '../../ui';
import { COMPARISONS, comparisonOf } from './shift';
import { withLog, type SetView, type View } from './view';

export interface Moves {
  pan(share: number): void;
  zoom(factor: number): void;
  back(): void;
}

interface Props {
  view: View;
  setView: SetView;
  range: Range;
  right: boolean;
  moves: Moves;
}

function Group({ label, children }: { label: string; children: ReactNode }) {
  return <div className="tool-group" role="group" aria-label={label}>{children}</div>;
}

/** On or off. */
function Toggle({ on, onChange, title, children }: { on: boolean; onChange: (on: boolean) => void; title: string; children: ReactNode }) {
  return <button type="button" className="segment" aria-pressed={on} title={title} onClick={() => onChange(!on)}>{children}</button>;
}

/** A sign, with its name for who does not see it, and to whom it says nothing. */
function Sign({ name, path, onClick }: { name: string; path: string; onClick: () => void }) {
  return (
    <button type="button" className="segment sign" aria-label={name} title={name} onClick={onClick}>
      <svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true"><path d={path} /></svg>
    </button>
  );
}

function MoveButtons({ moves }: { moves: Moves }) {
  return (
    <Group label="Move the window">
      <Sign name="Earlier" path="M10 3 5 8l5 5" onClick={() => moves.pan(-0.5)} />
      <Sign name="Zoom out" path="M3 8h10" onClick={() => moves.zoom(2)} />
      <Sign name="Zoom in" path="M3 8h10M8 3v10" onClick={() => moves.zoom(0.5)} />
      <Sign name="Later" path="m6 3 5 5-5 5" onClick={() => moves.pan(0.5)} />
      <button type="button" className="segment" title="To the window before" onClick={moves.back}>Back</button>
    </Group>
  );
}

function Drag({ view, setView }: Pick<Props, 'view' | 'setView'>) {
  const pans = view.drag === 'pan';
  return (
    <Group label="Dragging the chart">
      <Toggle on={!pans} title="Dragging zooms into what it crosses; with Shift it moves" onChange={() => setView({ drag: 'zoom' })}>Drag zooms</Toggle>
      <Toggle on={pans} title="Dragging moves in time; with Shift it zooms" onChange={() => setView({ drag: 'pan' })}>Moves</Toggle>
    </Group>
  );
}

function Drawing({ view, setView, right }: Pick<Props, 'view' | 'setView' | 'right'>) {
  const { log, band, utc, table } = view;
  return (
    <Group label="How it is drawn">
      <Toggle on={log.includes('l')} title="Logarithmic axis at the left" onChange={(on) => setView({ log: withLog(log, 'l', on) })}>{right ? 'Log left' : 'Log'}</Toggle>
      {right && <Toggle on={log.includes('r')} title="Logarithmic axis at the right" onChange={(on) => setView({ log: withLog(log, 'r', on) })}>Log right</Toggle>}
      <Toggle on={band} title="The least and the most of each interval, as a band around its average" onChange={(on) => setView({ band: on })}>Min to max</Toggle>
      <Toggle on={utc} title="Times and days of UTC instead of this browser's zone" onChange={(on) => setView({ utc: on })}>UTC</Toggle>
      <Toggle on={table} title="All values in a table, below" onChange={(on) => setView({ table: on })}>Table</Toggle>
    </Group>
  );
}

/** Whether it goes along with the clock; what stands still can be made to. */
function Live({ view, setView, range }: Pick<Props, 'view' | 'setView' | 'range'>) {
  const follows = range.kind === 'last' && view.follow;
  const change = (follow: boolean): void => {
    if (range.kind === 'last') setView({ follow });
    else setView({ range: '3600s', follow: true }, 'push');
  };
  return <Group label="Live"><Toggle on={follows} title="Goes along with the clock" onChange={change}>Follow</Toggle></Group>;
}

export function Toolbar({ view, setView, range, right, moves }: Props) {
  return (
    <div className="tools" role="group" aria-label="Chart">
      <Live view={view} setView={setView} range={range} />
      <MoveButtons moves={moves} />
      <Drag view={view} setView={setView} />
      <Drawing view={view} setView={setView} right={right} />
      <Field label="Compare with" className="compare">
        {(wiring) => <Select {...wiring} value={String(comparisonOf(view.compare))} onChange={(days) => setView({ compare: Number(days) })}
          options={COMPARISONS.map(({ days, label }) => ({ value: String(days), label }))} />}
      </Field>
    </div>
  );
}

interface TakesProps {
  queryHref: string;
  /** Whether there are other lines than the one that queryHref asks for. */
  more: boolean;
  onRefresh: () => void;
  onCsv?: () => void;
  onPng?: () => void;
}

/** What there is to take along. */
export function Takes({ queryHref, more, onRefresh, onCsv, onPng }: TakesProps) {
  return (
    <div className="takes" role="group" aria-label="Take along">
      <Button small kind="quiet" onClick={onRefresh}>Refresh</Button>
      <Button small kind="quiet" disabled={onCsv === undefined} onClick={onCsv}>CSV</Button>
      <Button small kind="quiet" disabled={onPng === undefined} onClick={onPng}>PNG</Button>
      <CopyButton text={window.location.href} label="Copy link" />
      <a className="query-link" href={queryHref}>Open in Query{more ? ' (the first series)' : ''}</a>
    </div>
  );
}
