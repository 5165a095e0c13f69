/** A range of time: quick ones, or exact times of the browser's zone with UTC below. */
import { useEffect, useId, useState } from 'react';
import { formatDuration, formatTime, fromLocalInput, localZone, QUICK_RANGES, rangeToText, sameRange, toLocalInput, type Range } from '../time';

export interface RangePickerProps {
  value: Range;
  onChange: (range: Range) => void;
  error?: string;
  /** What is wrong with the times that stand in the fields, undefined when they are right; value is the last right one. */
  onProblem?: (problem: string | undefined) => void;
  /** The fields of exact times are seen only when their button is pressed: what is below does not move as the range changes. */
  tucked?: boolean;
}

type FixedRange = Extract<Range, { kind: 'fixed' }>;

interface TimeFieldProps {
  label: string;
  text: string;
  onText: (text: string) => void;
  invalid: boolean;
}

function TimeField({ label, text, onText, invalid }: TimeFieldProps) {
  const id = useId();
  const ms = fromLocalInput(text);
  return (
    <div className="field">
      <label htmlFor={id}>{label} <span className="hint">({localZone()})</span></label>
      <input id={id} className="input" type="datetime-local" step={1} value={text} aria-describedby={`${id}-utc`}
        aria-invalid={invalid || undefined} onChange={(event) => onText(event.target.value)} />
      <p className="hint utc" id={`${id}-utc`}>{ms === undefined ? 'UTC –' : `UTC ${formatTime(ms, { utc: true, precise: ms % 1000 !== 0 })}`}</p>
    </div>
  );
}

function problem(start: number | undefined, end: number | undefined): string | undefined {
  if (start === undefined) return 'From is not a time yet';
  if (end === undefined) return 'To is not a time yet';
  return start > end ? 'From is later than To' : undefined;
}

function Exact({ value, onChange, onProblem }: RangePickerProps & { value: FixedRange }) {
  const [from, setFrom] = useState(() => toLocalInput(value.startMs));
  const [to, setTo] = useState(() => toLocalInput(value.endMs));
  useEffect(() => {
    // what was typed stays as it was typed while it means the same
    if (fromLocalInput(from) !== Math.floor(value.startMs)) setFrom(toLocalInput(value.startMs));
    if (fromLocalInput(to) !== Math.floor(value.endMs)) setTo(toLocalInput(value.endMs));
  }, [rangeToText(value)]);
  const [start, end] = [fromLocalInput(from), fromLocalInput(to)];
  const wrong = problem(start, end);
  useEffect(() => onProblem?.(wrong), [wrong]);
  useEffect(() => () => onProblem?.(undefined), []);
  const put = (newFrom: string, newTo: string): void => {
    setFrom(newFrom);
    setTo(newTo);
    const [a, b] = [fromLocalInput(newFrom), fromLocalInput(newTo)];
    if (a !== undefined && b !== undefined && a <= b) onChange({ kind: 'fixed', startMs: a, endMs: b });
  };
  return (
    <div className="range-exact">
      <TimeField label="From" text={from} onText={(text) => put(text, to)} invalid={start === undefined || wrong === 'From is later than To'} />
      <TimeField label="To" text={to} onText={(text) => put(from, text)} invalid={end === undefined || wrong === 'From is later than To'} />
      <p className="field-error" role="alert">{wrong}</p>
    </div>
  );
}

function fixedText(value: Range): string | undefined {
  return value.kind === 'fixed' ? `${formatTime(value.startMs)} to ${formatTime(value.endMs)}` : undefined;
}

export function RangePicker({ value, onChange, error, onProblem, tucked = false }: RangePickerProps) {
  const [open, setOpen] = useState(false);
  const [wrong, setWrong] = useState<string>();
  const exact = value.kind === 'fixed';
  const shown = exact && (open || !tucked);
  useEffect(() => {
    if (!exact) setOpen(false);
  }, [exact]);
  const tell = (found: string | undefined): void => {
    setWrong(found);
    onProblem?.(found);
  };
  const other = value.kind === 'last' && !QUICK_RANGES.some(({ range }) => sameRange(range, value));
  /** The range as it is now, in exact times; of an open one the last day. */
  const fix = (): void => {
    setOpen(!open || wrong !== undefined); // what is wrong is not hidden
    if (value.kind === 'fixed') return;
    const now = Math.floor(Date.now() / 1000) * 1000;
    onChange({ kind: 'fixed', startMs: now - (value.kind === 'last' ? value.seconds * 1000 : 86_400_000), endMs: now });
  };
  return (
    <fieldset className="range-picker">
      <legend>Time</legend>
      <div className="segments">
        {QUICK_RANGES.map(({ label, range }) => (
          <button key={label} type="button" className="segment" aria-pressed={sameRange(range, value)} onClick={() => onChange(range)}>{label}</button>
        ))}
        {other && value.kind === 'last' && <button type="button" className="segment" aria-pressed>{formatDuration(value.seconds)}</button>}
        <button type="button" className="segment" aria-pressed={exact} aria-expanded={shown} title={fixedText(value)} onClick={fix}>Exact …</button>
      </div>
      {shown && <Exact value={value} onChange={onChange} onProblem={tell} />}
      <p className="field-error" role="alert">{error}</p>
    </fieldset>
  );
}
