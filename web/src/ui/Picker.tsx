/**
 * Chooses ids out of thousands: a combobox that asks the server for what contains the typed text, page by page as one
 * scrolls, and lays out only the rows that are seen. Keys: arrows, page up and down, enter, escape, backspace.
 */
import { useEffect, useId, useRef, useState, type KeyboardEvent, type ReactNode } from 'react';
import { asApiError, isAborted, type ApiError } from '../api/client';
import { formatCount } from '../format';
import { useDebounced } from '../hooks';
import { isPattern, pickedId, pickedText, pickedTyped, visible } from '../text';
import { Id } from './basic';
import { lookup, type Found, type Kind, type Scope } from './lookup';

export interface PickerProps {
  label: ReactNode;
  /** The label is read out only: what stands around says it already. */
  quietLabel?: boolean;
  value: string[];
  onChange: (value: string[]) => void;
  kind: Kind;
  multiple?: boolean;
  error?: string;
  hint?: ReactNode;
  placeholder?: string;
  /** Typed patterns may be chosen too; value then holds what text.ts calls picked (patternOf gives the API's form). */
  patterns?: boolean;
  scope?: Scope;
  /** With kind tag: the values of this tag instead of the names of tags. */
  tagName?: string;
}

const ROW_PX = 32;
const SEEN_ROWS = 9;

interface Results {
  /** What the rows were found for. */
  text: string;
  rows: Found[];
  cursor: string | null;
  loading: boolean;
  error?: ApiError;
}

const NOTHING: Results = { text: '', rows: [], cursor: null, loading: false };

/** Rows of the text, the next page when asked for. */
function useFound(open: boolean, text: string, kind: Kind, scope: Scope, tagName: string | undefined): [Results, () => void] {
  const [results, setResults] = useState<Results>(NOTHING);
  const inside = useRef<AbortController>(null);
  const settled = useDebounced(text, 150);
  const key = JSON.stringify([kind, scope, tagName]);
  const load = (cursor: string | null): void => {
    inside.current?.abort();
    const mine = new AbortController();
    inside.current = mine;
    setResults((old) => ({ ...old, loading: true, error: undefined }));
    lookup(kind, settled, scope, tagName, cursor, mine.signal).then(
      ({ found, cursor: next }) => {
        if (mine.signal.aborted) return;
        setResults((old) => ({ text: settled, rows: cursor === null ? found : [...old.rows, ...found], cursor: next, loading: false }));
      },
      (error: unknown) => {
        if (!mine.signal.aborted && !isAborted(error)) setResults((old) => ({ ...old, loading: false, error: asApiError(error) }));
      },
    );
  };
  useEffect(() => {
    if (!open) return;
    load(null);
    return () => inside.current?.abort();
  }, [open, settled, key]);
  const more = (): void => {
    if (text === results.text && results.cursor !== null && !results.loading && results.error === undefined) load(results.cursor);
  };
  return [text === results.text ? results : { ...results, rows: still(results.rows, text), loading: results.error === undefined }, more];
}

/** Until the rows of a newer text are here: those of the older one that fit it, so that no key chooses what one has typed past. */
function still(rows: Found[], text: string): Found[] {
  const wanted = text.toLowerCase();
  return isPattern(text) ? [] : rows.filter(({ id }) => id.toLowerCase().includes(wanted));
}

interface Option {
  /** As it is put into value. */
  picked: string;
  id: string;
  note: string;
}

/** What was typed comes first, where it may be chosen as it is. */
function optionsOf(text: string, rows: Found[], patterns: boolean): Option[] {
  const found = rows.map(({ id, series }) => ({
    picked: patterns ? pickedId(id) : id, id, note: `${formatCount(series)} series`,
  }));
  if (!patterns || !isPattern(text)) return found;
  return [{ picked: pickedTyped(text), id: text, note: 'everything that matches' }, ...found];
}

interface ListProps {
  id: string;
  label: string;
  options: Option[];
  active: number;
  value: string[];
  multiple: boolean;
  onPick: (option: Option) => void;
  /** Called near the end of the list, again with every other `results`. */
  results: unknown;
  onEnd: () => void;
}

function List({ id, label, options, active, value, multiple, onPick, results, onEnd }: ListProps) {
  const ref = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const first = Math.max(0, Math.floor(top / ROW_PX) - 3);
  const seen = options.slice(first, first + SEEN_ROWS + 6);
  useEffect(() => {
    const list = ref.current;
    if (list === null || active < 0) return;
    if (active * ROW_PX < list.scrollTop) list.scrollTop = active * ROW_PX;
    else if ((active + 1) * ROW_PX > list.scrollTop + list.clientHeight) list.scrollTop = (active + 1) * ROW_PX - list.clientHeight;
  }, [active]);
  const atEnd = first + SEEN_ROWS + 20 > options.length;
  useEffect(() => {
    if (atEnd) onEnd();
  }, [atEnd, results]);
  return (
    <div ref={ref} id={id} role="listbox" aria-label={label} aria-multiselectable={multiple || undefined} className="picker-list"
      tabIndex={-1} onScroll={(event) => setTop(event.currentTarget.scrollTop)}>
      <div role="presentation" style={{ height: options.length * ROW_PX, position: 'relative' }}>
        {seen.map((option, offset) => {
          const index = first + offset;
          const chosen = value.includes(option.picked);
          return (
            <div key={`${index}`} id={`${id}-${index}`} role="option" aria-selected={chosen} aria-posinset={index + 1}
              aria-setsize={options.length} className={`picker-option${index === active ? ' active' : ''}${chosen ? ' chosen' : ''}`}
              style={{ top: index * ROW_PX }} onClick={() => onPick(option)}>
              <Id text={option.id} /> <span className="picker-note">{option.note}</span>
            </div>
          );
        })}
      </div>
    </div>
  );
}

function Chips({ value, patterns, onRemove }: { value: string[]; patterns: boolean; onRemove: (one: string) => void }) {
  const textOf = (one: string) => (patterns ? pickedText(one) : one);
  if (value.length === 0) return null;
  return (
    <ul className="chips">
      {value.map((one) => (
        <li key={one} className="chip">
          <Id text={textOf(one)} />
          <button type="button" aria-label={`Remove ${visible(textOf(one))}`} onClick={() => onRemove(one)}>×</button>
        </li>
      ))}
    </ul>
  );
}

/** What a typed text means: the id of that name, in other capitals where there is one alone, or the only one found for it. */
function named(text: string, options: Option[], results: Results): Option | undefined {
  const alike = options.filter((option) => option.id.toLowerCase() === text.toLowerCase());
  const same = options.find((option) => option.id === text) ?? (alike.length === 1 ? alike[0] : undefined);
  // all that there is for what was typed, or for a part of it
  const whole = results.cursor === null && text.toLowerCase().includes(results.text.toLowerCase());
  const alone = whole && !isPattern(text) && options.length === 1;
  return same ?? (alone ? options[0] : undefined);
}

function statusOf(results: Results, count: number, kind: Kind, text: string, narrowed: boolean): string {
  if (results.error !== undefined) return results.error.message;
  if (results.loading && count === 0) return 'Searching …';
  if (count === 0) return text === '' ? (narrowed ? 'None of what was chosen has any' : 'There is nothing yet') : `No ${kind} has “${visible(text)}” in it`;
  return `${formatCount(count)} found${results.cursor === null ? '' : ', and more'}`;
}

export function Picker(props: PickerProps) {
  const { label, quietLabel = false, value, onChange, kind, multiple = false, error, hint, placeholder } = props;
  const { patterns = false, scope = {}, tagName } = props;
  const id = useId();
  const box = useRef<HTMLInputElement>(null);
  const [open, setOpen] = useState(false);
  const [text, setText] = useState('');
  const [active, setActive] = useState(-1);
  const [results, more] = useFound(open, text, kind, scope, tagName);
  const options = optionsOf(text, results.rows, patterns);
  const close = (): void => {
    setOpen(false);
    setActive(-1);
  };
  const pick = (option: Option): void => {
    const has = value.includes(option.picked);
    setText('');
    setActive(-1);
    if (multiple) onChange(has ? value.filter((one) => one !== option.picked) : [...value, option.picked]);
    else onChange([option.picked]);
    if (!multiple) close();
  };
  /** Takes a text that nothing was chosen for: what it names, or else the text itself. */
  const take = (): void => pick(named(text, options, results) ?? { picked: patterns ? pickedTyped(text) : text, id: text, note: '' });
  /** What was typed counts when one goes on to another field: a form that shows it and asks for something else misleads. */
  const leave = (): void => {
    const option = options[active];
    if (!document.hasFocus()) return; // to another window: one comes back to the same field
    if (text !== '' && option !== undefined && !value.includes(option.picked)) pick(option);
    else if (text !== '' && option === undefined) take();
    close();
  };
  const move = (by: number): void => {
    setOpen(true);
    setActive((old) => Math.max(0, Math.min(options.length - 1, old + by)));
  };
  const moves: Record<string, number> = { ArrowDown: 1, ArrowUp: -1, PageDown: SEEN_ROWS - 1, PageUp: 1 - SEEN_ROWS };
  const onKey = (event: KeyboardEvent): void => {
    const by = moves[event.key];
    const option = options[active];
    if (by !== undefined) move(by);
    else if (event.key === 'Enter' && open && option !== undefined) pick(option);
    else if (event.key === 'Enter' && text !== '') take();
    else if (event.key === 'Escape' && (open || text !== '')) {
      if (!open) setText('');
      close();
    } else {
      if (event.key === 'Backspace' && text === '' && value.length > 0) onChange(value.slice(0, -1));
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };
  const described = [hint === undefined ? '' : `${id}-hint`, error === undefined ? '' : `${id}-error`].filter(Boolean);
  const narrowed = Object.values(scope).some((some) => some !== undefined && some.length > 0);
  return (
    <div className="field picker">
      <label htmlFor={id} className={quietLabel ? 'visually-hidden' : undefined}>{label}</label>
      <div className="input picker-box" onClick={(event) => { if (event.target === event.currentTarget) box.current?.focus(); }}>
        <Chips value={value} patterns={patterns} onRemove={(one) => onChange(value.filter((other) => other !== one))} />
        <input ref={box} id={id} role="combobox" autoComplete="off" spellCheck={false} dir="auto" value={text}
          placeholder={placeholder ?? (value.length === 0 ? 'Search' : multiple ? 'Add another' : 'Choose another')}
          aria-expanded={open} aria-controls={open ? `${id}-list` : undefined} aria-autocomplete="list"
          aria-activedescendant={open && active >= 0 ? `${id}-list-${active}` : undefined}
          aria-describedby={described.join(' ') || undefined} aria-invalid={error !== undefined || undefined}
          onChange={(event) => { setText(event.target.value); setOpen(true); setActive(-1); }}
          onFocus={() => setOpen(true)} onClick={() => setOpen(true)} onBlur={leave} onKeyDown={onKey} />
      </div>
      {open && (
        <div className="picker-popup" onMouseDown={(event) => event.preventDefault()}>
          <List key={text} id={`${id}-list`} label={`Found: ${kind}`} options={options} active={active} value={value} multiple={multiple}
            onPick={pick} results={results} onEnd={more} />
          <p className={`picker-status${results.error === undefined ? '' : ' failed'}`} role="status">{statusOf(results, options.length, kind, text, narrowed)}</p>
        </div>
      )}
      {hint !== undefined && <p className="hint" id={`${id}-hint`}>{hint}</p>}
      <p className="field-error" id={`${id}-error`} role="alert">{error}</p>
    </div>
  );
}
