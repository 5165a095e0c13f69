/** What is done with the chart by buttons: everything that hand and keys do, and what only stands here. */
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
  onRefresh: () => void;
  onCsv?: () => void;
  onPng?: () => void;
}

function Check({ label, checked, onChange }: { label: string; checked: boolean; onChange: (checked: boolean) => void }) {
  return <label className="check"><input type="checkbox" checked={checked} onChange={(event) => onChange(event.target.checked)} /> {label}</label>;
}

function MoveButtons({ moves }: { moves: Moves }) {
  return (
    <div className="tool-group" role="group" aria-label="Move the window">
      <Button small aria-label="Earlier" onClick={() => moves.pan(-0.5)}>◀</Button>
      <Button small aria-label="Zoom in" onClick={() => moves.zoom(0.5)}>+</Button>
      <Button small aria-label="Zoom out" onClick={() => moves.zoom(2)}>−</Button>
      <Button small aria-label="Later" onClick={() => moves.pan(0.5)}>▶</Button>
      <Button small onClick={moves.back}>Back</Button>
    </div>
  );
}

function Drawing({ view, setView, right }: Pick<Props, 'view' | 'setView' | 'right'>) {
  const { log, band, utc, drag, table } = view;
  return (
    <div className="tool-group" role="group" aria-label="How it is drawn">
      <Check label={right ? 'Log left' : 'Log'} checked={log.includes('l')} onChange={(on) => setView({ log: withLog(log, 'l', on) })} />
      {right && <Check label="Log right" checked={log.includes('r')} onChange={(on) => setView({ log: withLog(log, 'r', on) })} />}
      <Check label="Min to max" checked={band} onChange={(on) => setView({ band: on })} />
      <Check label="UTC" checked={utc} onChange={(on) => setView({ utc: on })} />
      <Check label="Drag moves" checked={drag === 'pan'} onChange={(on) => setView({ drag: on ? 'pan' : 'zoom' })} />
      <Check label="Table" checked={table} onChange={(on) => setView({ table: on })} />
    </div>
  );
}

export function Toolbar({ view, setView, range, right, moves, onRefresh, onCsv, onPng }: Props) {
  return (
    <div className="tools">
      <MoveButtons moves={moves} />
      {range.kind === 'last'
        ? <Check label="Follow" checked={view.follow} onChange={(follow) => setView({ follow })} />
        : <Button small onClick={() => setView({ range: '3600s', follow: true }, 'push')}>Go live</Button>}
      <Drawing view={view} setView={setView} right={right} />
      <Field label="Compare with" className="compare">
        {(wiring) => <Select {...wiring} value={String(comparisonOf(view.compare))} onChange={(days) => setView({ compare: Number(days) })}
          options={COMPARISONS.map(({ days, label }) => ({ value: String(days), label }))} />}
      </Field>
      <div className="tool-group" role="group" aria-label="Take along">
        <Button small onClick={onRefresh}>Refresh</Button>
        <Button small disabled={onCsv === undefined} onClick={onCsv}>CSV</Button>
        <Button small disabled={onPng === undefined} onClick={onPng}>PNG</Button>
        <CopyButton text={window.location.href} label="Copy link" />
      </div>
    </div>
  );
}
