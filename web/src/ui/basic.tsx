/** The small parts: buttons, fields, notes. No state but what they show. */
import { cloneElement, useEffect, useId, useState, type ButtonHTMLAttributes, type InputHTMLAttributes, type MouseEvent, type ReactElement, type ReactNode, type SelectHTMLAttributes } from 'react';
import type { ApiError } from '../api/client';
import { openSignIn } from '../api/session';
import type { Coverage } from '../api/types';
import { formatCount } from '../format';
import { visible } from '../text';
import { formatAgo, formatDuration } from '../time';
import { useNow } from '../hooks';

interface ButtonProps extends ButtonHTMLAttributes<HTMLButtonElement> {
  kind?: 'plain' | 'primary' | 'danger' | 'quiet';
  small?: boolean;
}

export function Button({ kind = 'plain', small = false, className = '', type = 'button', ...rest }: ButtonProps) {
  return <button type={type} className={`button ${kind}${small ? ' small' : ''} ${className}`.trim()} {...rest} />;
}

/** What a control inside a Field needs to be tied to its label, hint and error. */
export interface Wiring {
  id: string;
  'aria-describedby'?: string;
  'aria-invalid'?: boolean;
}

interface FieldProps {
  label: ReactNode;
  hint?: ReactNode;
  error?: string;
  className?: string;
  children: ReactElement<Partial<Wiring>> | ((wiring: Wiring) => ReactNode);
}

/** Label, hint and error of one control, which gets its id: <Field label="Limit" error={...}><TextInput .../></Field>. */
export function Field({ label, hint, error, className = '', children }: FieldProps) {
  const id = useId();
  const described = [hint === undefined ? '' : `${id}-hint`, error === undefined ? '' : `${id}-error`].filter(Boolean).join(' ');
  const wiring: Wiring = { id, 'aria-describedby': described || undefined, 'aria-invalid': error !== undefined || undefined };
  return (
    <div className={`field ${className}`.trim()}>
      <label htmlFor={id}>{label}</label>
      {typeof children === 'function' ? children(wiring) : cloneElement(children, wiring)}
      {hint !== undefined && <p className="hint" id={`${id}-hint`}>{hint}</p>}
      <p className="field-error" id={`${id}-error`} role="alert">{error}</p>
    </div>
  );
}

type SelectProps = Omit<SelectHTMLAttributes<HTMLSelectElement>, 'onChange'> & {
  options: { value: string; label: string }[];
  onChange: (value: string) => void;
};

export function Select({ options, onChange, className = '', ...rest }: SelectProps) {
  return (
    <select className={`input ${className}`.trim()} onChange={(event) => onChange(event.target.value)} {...rest}>
      {options.map(({ value, label }) => <option key={value} value={value}>{label}</option>)}
    </select>
  );
}

type TextInputProps = Omit<InputHTMLAttributes<HTMLInputElement>, 'onChange'> & { onChange: (value: string) => void };

export function TextInput({ onChange, className = '', ...rest }: TextInputProps) {
  return (
    <input className={`input ${className}`.trim()} autoComplete="off" spellCheck={false} dir="auto"
      onChange={(event) => onChange(event.target.value)} {...rest} />
  );
}

/** An id as it came from a device: its direction stays its own, and nothing in it is hidden. */
export function Id({ text }: { text: string }) {
  return <bdi className="id" dir="auto">{text === '' ? '(empty)' : visible(text)}</bdi>;
}

export type Tone = 'ok' | 'warn' | 'bad' | 'info';

export function Badge({ tone, children, title }: { tone: Tone; children: ReactNode; title?: string }) {
  return <span className={`badge ${tone}`} title={title}>{children}</span>;
}

/** There is nothing, and what one can do about it. */
export function Empty({ title, children }: { title: ReactNode; children?: ReactNode }) {
  return <div className="empty"><p className="empty-title">{title}</p>{children}</div>;
}

/** Shown only after a moment: what is there at once needs no word. */
export function Loading({ what = 'Loading' }: { what?: string }) {
  const [late, setLate] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setLate(true), 150);
    return () => clearTimeout(timer);
  }, []);
  return <div className="loading" role="status">{late && <><span className="spinner" aria-hidden="true" />{what} …</>}</div>;
}

/** What is shown is of then, and why. late: because a newer answer takes long. */
export function Stale({ at, error, late = false }: { at?: number; error?: ApiError; late?: boolean }) {
  const now = useNow();
  const why = error === undefined ? (late ? 'the server takes long to answer' : '') : visible(error.message);
  return (
    <p className="stale" role="status">
      <Badge tone="warn">stale</Badge> Shown as of {formatAgo(at, now)}{why === '' ? '' : `: ${why}`}
    </p>
  );
}

const TITLES: Record<string, string> = {
  unreachable: 'No connection',
  timeout: 'No answer',
  not_json: 'Broken answer',
  broken: 'Broken answer',
  unauthorized: 'Not signed in',
  forbidden: 'Not allowed',
  incomplete: 'Incomplete',
  not_ready: 'Not ready',
  unknown_series: 'Nothing of that name',
  overflow: 'Too large a number',
  ring_store: 'Ring store',
};

function titleOf(error: ApiError): string {
  const known = TITLES[error.code];
  if (known !== undefined) return known;
  if (error.status === 429) return 'Busy';
  if (error.status === 422) return 'Too much';
  return error.status >= 500 || error.status === 0 ? 'Failed' : 'Not understood';
}

/** What went wrong in words, the numbers behind it, and what to do. */
export function ErrorBox({ error, retry }: { error: ApiError; retry?: () => void }) {
  const { setting, limit, value, retryAfterS, coverage } = error;
  return (
    <div className="error-box" role="alert">
      <p><strong>{titleOf(error)}.</strong> <span dir="auto">{visible(error.message)}</span></p>
      {setting !== undefined && (
        <p className="hint">
          <code>{setting}</code>{limit === undefined ? '' : ` is ${formatCount(limit)}`}
          {typeof value === 'number' ? `, this would take ${formatCount(value)}` : ''}
        </p>
      )}
      {retryAfterS !== undefined && <p className="hint">The server asks to come back in {formatDuration(retryAfterS)}.</p>}
      {coverage !== undefined && <MissingList coverage={coverage} />}
      {error.status === 401
        ? <Button small onClick={openSignIn}>Sign in</Button>
        : retry !== undefined && <Button small onClick={retry}>Try again</Button>}
    </div>
  );
}

function MissingList({ coverage }: { coverage: Coverage }) {
  if (coverage.missing.length === 0) return null;
  return (
    <ul className="missing">
      {coverage.missing.map(({ node, partitions, reason }) => (
        <li key={node}><Id text={node} />: {formatCount(partitions)} partitions, {visible(reason)}</li>
      ))}
    </ul>
  );
}

/** Whether the answer speaks of everything; who is missing where it does not. */
export function CoverageNote({ coverage }: { coverage: Coverage }) {
  const { complete, partitions_answered: answered, partitions_asked: asked, nodes, marks_s_ago: marks } = coverage;
  return (
    <div className="coverage">
      <p>
        <Badge tone={complete ? 'ok' : 'bad'}>{complete ? 'complete' : 'partial'}</Badge>{' '}
        {formatCount(answered)} of {formatCount(asked)} partitions, from {nodes.length === 0 ? 'no node' : nodes.map(visible).join(', ')}
      </p>
      {marks !== undefined && <p className="hint">The ring store cannot be read: what is known of it is {formatDuration(marks)} old.</p>}
      <MissingList coverage={coverage} />
    </div>
  );
}

type Copied = 'no' | 'yes' | 'failed';

/** http off loopback has no clipboard API: the old way does it there, inside the dialog where one is open, for all else is inert. */
async function copyText(text: string, button: HTMLElement): Promise<void> {
  if (navigator.clipboard !== undefined) return navigator.clipboard.writeText(text);
  const area = document.createElement('textarea');
  area.value = text;
  (button.closest('dialog') ?? document.body).append(area);
  area.select();
  const done = document.execCommand('copy');
  area.remove();
  button.focus();
  if (!done) throw new Error('the browser refused');
}

export function CopyButton({ text, label = 'Copy' }: { text: string; label?: string }) {
  const [copied, setCopied] = useState<Copied>('no');
  useEffect(() => {
    if (copied === 'no') return;
    const timer = setTimeout(() => setCopied('no'), 2000);
    return () => clearTimeout(timer);
  }, [copied]);
  const copy = ({ currentTarget }: MouseEvent<HTMLElement>) => void copyText(text, currentTarget).then(() => setCopied('yes'), () => setCopied('failed'));
  return (
    <>
      <Button small onClick={copy}>{copied === 'yes' ? 'Copied' : copied === 'failed' ? 'Not copied' : label}</Button>
      <span className="visually-hidden" role="status">{copied === 'yes' ? 'Copied' : copied === 'failed' ? 'The browser did not let it be copied' : ''}</span>
    </>
  );
}
