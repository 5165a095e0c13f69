/** Deleting points of a device: choose, look what would go, type to confirm, see what came of it. */

import { useEffect, useRef, useState } from 'react';
import { ask, asApiError, isPassing, type ApiError } from '../../api/client';
import { serverNow } from '../../api/me';
import type { Deleted, Deletes, Status, Tags, WouldGo } from '../../api/types';
import { formatCount } from '../../format';
import { retryMs, useNow } from '../../hooks';
import { tagsText, visible } from '../../text';
import { formatTime, type Range } from '../../time';
import { Badge, Button, CopyButton, CoverageNote, Dialog, ErrorBox, Field, Id, RangePicker, Select, Table, TextInput } from '../../ui';
import { Moment } from './Data';
import {
  deleteBody, failureWords, fixedTimes, isInForce, isTyped, phraseOf, placeOf, recordOf, resultWords, stillWaiting, wouldGoWords,
  type Target, type Times, type Told,
} from './deleting';

const LOOK_MS = 1_000; // between looks at who acts on a delete
const SERIES_SHOWN = 20;

interface DeleteDialogProps {
  device: string;
  /** Of one series; null: to be chosen. */
  metric: string | null;
  tags: Tags | null;
  metrics: string[];
  range: Range;
  onClose: () => void;
  onDeleted: () => void;
}

/** What a dry run was for, and what it found. */
interface Looked {
  target: Target;
  times: Times;
  found: WouldGo;
}

type Step =
  | { kind: 'choose'; error?: ApiError }
  | { kind: 'looking' }
  | ({ kind: 'confirm' } & Looked)
  | ({ kind: 'deleting'; sinceMs: number } & Looked)
  | { kind: 'told'; told: Told; number?: number; waiting: string[] }
  | ({ kind: 'unknown'; told: Told } & Looked);

export function DeleteDialog(props: DeleteDialogProps) {
  const { device, onClose, onDeleted } = props;
  const [metric, setMetric] = useState(props.metric);
  const [range, setRange] = useState(props.range);
  const [step, setStep] = useState<Step>({ kind: 'choose' });
  const alive = useAlive();
  const put = (next: Step) => {
    if (alive.current) setStep(next);
  };

  const look = async () => {
    const target: Target = { device, metric, tags: props.tags };
    const times = fixedTimes(range, serverNow());
    put({ kind: 'looking' });
    try {
      const found = await ask<WouldGo>('/api/v1/series', { method: 'DELETE', body: deleteBody(target, times, true) });
      put({ kind: 'confirm', target, times, found });
    } catch (thrown) {
      put({ kind: 'choose', error: asApiError(thrown) });
    }
  };

  const remove = async (looked: Looked) => {
    put({ ...looked, kind: 'deleting', sinceMs: Date.now() });
    try {
      const answer = await ask<Deleted>('/api/v1/series', {
        method: 'DELETE',
        body: deleteBody(looked.target, looked.times, false),
      });
      put({ kind: 'told', told: resultWords(answer), number: answer.number, waiting: answer.waiting.map((each) => each.worker) });
      onDeleted();
    } catch (thrown) {
      const error = asApiError(thrown);
      const told = failureWords(error);
      if (isInForce(error) === 'unknown') return put({ ...looked, kind: 'unknown', told });
      if (isInForce(error) === 'no' && placeOf(error) !== undefined) return put({ kind: 'choose', error });
      put({ kind: 'told', told, waiting: [] });
      onDeleted();
    }
  };

  return (
    <Dialog title={<>Delete points of <Id text={device} /></>} onClose={() => step.kind !== 'deleting' && onClose()}>
      <div className="data-delete">
        {(step.kind === 'choose' || step.kind === 'looking') && (
          <Choose
            metric={metric}
            tags={props.tags}
            isFixed={props.metric !== null}
            metrics={props.metrics}
            range={range}
            busy={step.kind === 'looking'}
            error={step.kind === 'choose' ? step.error : undefined}
            onMetric={setMetric}
            onRange={setRange}
            onLook={() => void look()}
            onClose={onClose}
          />
        )}
        {step.kind === 'confirm' && (
          <Confirm looked={step} onBack={() => setStep({ kind: 'choose' })} onDelete={() => void remove(step)} />
        )}
        {step.kind === 'deleting' && <Deleting sinceMs={step.sinceMs} />}
        {step.kind === 'told' && <Result {...step} onClose={onClose} />}
        {step.kind === 'unknown' && (
          <FindOut looked={step} told={step.told} onFound={(told, number) => { put({ kind: 'told', told, number, waiting: [] }); onDeleted(); }} onClose={onClose} />
        )}
      </div>
    </Dialog>
  );
}

/** False once the dialog has gone: an answer that comes then is for nobody. */
function useAlive() {
  const alive = useRef(true);
  useEffect(() => {
    alive.current = true;
    return () => {
      alive.current = false;
    };
  }, []);
  return alive;
}

interface ChooseProps {
  metric: string | null;
  tags: Tags | null;
  isFixed: boolean;
  metrics: string[];
  range: Range;
  busy: boolean;
  error?: ApiError;
  onMetric: (metric: string | null) => void;
  onRange: (range: Range) => void;
  onLook: () => void;
  onClose: () => void;
}

function Choose({ metric, tags, isFixed, metrics, range, busy, error, onMetric, onRange, onLook, onClose }: ChooseProps) {
  // by place: ids may be any text, and are no good values of an option
  const options = [{ value: '', label: 'Every metric' }, ...metrics.map((each, at) => ({ value: String(at), label: visible(each) }))];
  const [problem, setProblem] = useState<string>();
  const place = error === undefined ? undefined : placeOf(error);
  const errorAt = (wanted: string) => (place === wanted ? error?.message : undefined);
  const ready = !busy && problem === undefined;
  return (
    <form onSubmit={(event) => { event.preventDefault(); if (ready) onLook(); }}>
      {isFixed
        ? <p>Metric <Id text={metric ?? ''} />, <TagsWords tags={tags} />.</p>
        : (
          <Field label="Metric" hint="Whatever the tags" error={errorAt('metric')}>
            {(wiring) => (
              <Select {...wiring} value={metric === null ? '' : String(metrics.indexOf(metric))} options={options} disabled={busy}
                onChange={(at) => onMetric(at === '' ? null : metrics[Number(at)] ?? null)} />
            )}
          </Field>
        )}
      <RangePicker value={range} onChange={onRange} error={errorAt('range')} onProblem={setProblem} />
      {error !== undefined && (place === undefined || (place === 'metric' && isFixed)) && <ErrorBox error={error} />}
      <p className="hint">Nothing is deleted yet: first you see what would go.</p>
      <div className="data-buttons">
        <Button kind="quiet" onClick={onClose}>Cancel</Button>
        <Button kind="primary" type="submit" disabled={!ready}>{busy ? 'Looking …' : 'Look what would go'}</Button>
      </div>
    </form>
  );
}

function TagsWords({ tags }: { tags: Tags | null }) {
  if (tags === null) return <>whatever the tags</>;
  if (Object.keys(tags).length === 0) return <>without tags</>;
  return <>exactly the tags <bdi>{visible(tagsText(tags))}</bdi></>;
}

function TimesWords({ times }: { times: Times }) {
  if (times.startMs === null && times.endMs === null) return <>Whatever their time, all that is taken in until the delete.</>;
  const text = (ms: number | null, open: string) => (ms === null ? open : `${formatTime(ms, { precise: true })} (${formatTime(ms, { utc: true, precise: true })})`);
  return <>From {text(times.startMs, 'the beginning')} to {text(times.endMs, 'the end')}, both included.</>;
}

function Confirm({ looked, onBack, onDelete }: { looked: Looked; onBack: () => void; onDelete: () => void }) {
  const { found, target, times } = looked;
  const [typed, setTyped] = useState('');
  const phrase = phraseOf(target.device, found.points);
  const right = found.points > 0 && isTyped(typed, phrase);
  const wrong = phrase.startsWith(typed.trim()) ? undefined : 'This is something else';
  return (
    <form onSubmit={(event) => { event.preventDefault(); if (right) onDelete(); }}>
      <p className="data-would" role="status"><strong>{wouldGoWords(found)}</strong></p>
      <p>
        {target.metric === null ? 'Every metric' : <>Metric <Id text={target.metric} /></>}, <TagsWords tags={target.tags} />.{' '}
        <TimesWords times={times} />
      </p>
      {!found.coverage.complete && <CoverageNote coverage={found.coverage} />}
      {found.points > 0 && (
        <>
          <WouldGoTable found={found} />
          <p>This cannot be undone.</p>
          <Field label={<>To delete, type <code className="data-phrase">{phrase}</code></>} error={wrong}>
            {(wiring) => <TextInput {...wiring} value={typed} onChange={setTyped} autoFocus />}
          </Field>
        </>
      )}
      <div className="data-buttons">
        <Button kind="quiet" onClick={onBack}>Back</Button>
        {found.points > 0 && <Button kind="danger" type="submit" disabled={!right}>Delete {formatCount(found.points)} points</Button>}
      </div>
    </form>
  );
}

function WouldGoTable({ found }: { found: WouldGo }) {
  const shown = found.of_series.slice(0, SERIES_SHOWN);
  return (
    <>
      <Table
        caption="What would go"
        columns={[
          { key: 'metric', title: 'Metric', cell: (row) => <Id text={row.metric_name} /> },
          { key: 'tags', title: 'Tags', cell: (row) => <bdi>{visible(tagsText(row.tags)) || '–'}</bdi> },
          { key: 'points', title: 'Points', align: 'right', cell: (row) => formatCount(row.points) },
          { key: 'first', title: 'First', cell: (row) => <Moment ms={row.first_time} /> },
          { key: 'last', title: 'Last', cell: (row) => <Moment ms={row.last_time} /> },
        ]}
        rows={shown}
        rowKey={(_, index) => String(index)}
      />
      {found.series > shown.length && <p className="hint">and {formatCount(found.series - shown.length)} series more</p>}
    </>
  );
}

function Deleting({ sinceMs }: { sinceMs: number }) {
  const now = useNow(500);
  return (
    <div>
      <p role="status"><strong>Deleting …</strong></p>
      <progress aria-label="Deleting" />
      <p>{Math.max(0, Math.floor((now - sinceMs) / 1000))} s. The answer comes when every node and bridge that can be reached acts on the delete.</p>
    </div>
  );
}

/** What came of it; who is waited for is looked at until nobody is. */
function Result({ told, number, waiting, onClose }: { told: Told; number?: number; waiting: string[]; onClose: () => void }) {
  const left = useWaiting(waiting, number);
  const arrived = waiting.length > 0 && left.names.length === 0;
  return (
    <div>
      <p role="status">
        <Badge tone={arrived ? 'ok' : told.tone}>{arrived || told.tone === 'ok' ? 'done' : told.tone === 'warn' ? 'in force' : 'failed'}</Badge>{' '}
        <strong>{told.title}</strong>
      </p>
      <ul>{told.lines.map((line, index) => <li key={index}><bdi>{visible(line)}</bdi></li>)}</ul>
      {waiting.length > 0 && (
        <p role="status">
          {arrived
            ? 'By now everybody who was waited for acts on it.'
            : `${waiting.length - left.names.length} of ${waiting.length} have followed; waiting for ${left.names.map(visible).join(', ')}.`}
          {left.trouble !== undefined && ` (${visible(left.trouble)})`}
        </p>
      )}
      <div className="data-buttons"><Button kind="primary" onClick={onClose}>Close</Button></div>
    </div>
  );
}

function useWaiting(waiting: string[], number: number | undefined): { names: string[]; trouble?: string } {
  const [left, setLeft] = useState<{ names: string[]; trouble?: string }>({ names: waiting });
  useEffect(() => {
    if (number === undefined || waiting.length === 0) return;
    return repeat(async (signal) => {
      const names = stillWaiting(await ask<Status>('/api/v1/status', { signal }), waiting, number);
      setLeft({ names });
      return names.length === 0;
    }, (error) => setLeft((old) => ({ ...old, trouble: error.message })));
  }, [number]);
  return left;
}

interface FindOutProps {
  looked: Looked;
  told: Told;
  onFound: (told: Told, number?: number) => void;
  onClose: () => void;
}

/** The answer to a delete never came: the list of deletes tells whether it is in force. */
function FindOut({ looked, told, onFound, onClose }: FindOutProps) {
  const [trouble, setTrouble] = useState<string>();
  useEffect(
    () =>
      repeat(async (signal) => {
        const list = await ask<Deletes>('/api/v1/deletes', { params: { time_unit: 'ms' }, signal });
        const record = recordOf(list.deletes, looked.target, looked.times, looked.found.coverage.delete_number);
        if (record !== undefined) {
          onFound({ tone: 'warn', title: `Delete ${record.number} is in force.`, lines: [`Its answer did not come: ${told.lines.join(' ')}`] }, record.number);
        } else {
          onFound({ tone: 'bad', title: 'Nothing was deleted so far.', lines: [...told.lines, 'The list of deletes does not have it.'] });
        }
        return true;
      }, (error) => setTrouble(error.message)),
    [],
  );
  return (
    <div>
      <p role="status"><Badge tone="warn">not known</Badge> <strong>{told.title}</strong></p>
      <ul>{told.lines.map((line, index) => <li key={index}><bdi>{visible(line)}</bdi></li>)}</ul>
      <p>Looking at the list of deletes …{trouble === undefined ? '' : ` (${visible(trouble)})`}</p>
      <div className="data-buttons">
        <CopyButton text={JSON.stringify(deleteBody(looked.target, looked.times, false))} label="Copy what was asked" />
        <Button onClick={onClose}>Close</Button>
      </div>
    </div>
  );
}

/** Does something until it is done, a second between two tries, more after failures; what does not pass by itself ends it. Returns the stop. */
function repeat(turn: (signal: AbortSignal) => Promise<boolean>, failed: (error: ApiError) => void): () => void {
  const stop = new AbortController();
  let timer: ReturnType<typeof setTimeout> | undefined;
  let failures = 0;
  const run = async () => {
    let waitMs = LOOK_MS;
    try {
      if (await turn(stop.signal)) return;
    } catch (thrown) {
      if (stop.signal.aborted) return;
      const error = asApiError(thrown);
      failed(error);
      if (!isPassing(error, ++failures)) return;
      waitMs = retryMs(failures, LOOK_MS, error);
    }
    if (!stop.signal.aborted) timer = setTimeout(() => void run(), waitMs);
  };
  void run();
  return () => {
    stop.abort();
    clearTimeout(timer);
  };
}
