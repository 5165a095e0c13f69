/** One question, one answer: which series, which operation, which time; the figure or the rows, and how it came about. */
import { useEffect, useRef, useState, type FormEvent } from 'react';
import { ask, type ApiError } from '../../api/client';
import { token } from '../../api/session';
import type { QueryAnswer, QueryRequest } from '../../api/types';
import { formatCount } from '../../format';
import { useAsk } from '../../hooks';
import { useStore } from '../../store';
import { patternOf, tagsFromList, tagsToList } from '../../text';
import { localZone, rangeFromText, rangeToText } from '../../time';
import { Button, CopyButton, Empty, ErrorBox, Field, Loading, Picker, RangePicker, Select, Stale, TagsEditor, TextInput } from '../../ui';
import { readState, splitHash, useUrlState } from '../../url';
import { ExploreLink } from './ExploreLink';
import { curlLine, DEFAULTS, fieldOf, isCalendar, OPERATIONS, requestOf, type QueryState } from './request';
import { Result, type WindowWishes } from './Result';
import './query.css';

type Patch = (patch: Partial<QueryState>) => void;

const INTERVALS = [
  { value: '', label: 'none: one result' },
  { value: 'auto', label: 'as fits, up to 100' },
  { value: '10s', label: '10 s' },
  { value: '1m', label: '1 min' },
  { value: '5m', label: '5 min' },
  { value: '15m', label: '15 min' },
  { value: '1h', label: '1 h' },
  { value: '6h', label: '6 h' },
  { value: '1d', label: '1 day' },
  { value: '7d', label: '7 days' },
  { value: '1mo', label: '1 month' },
];

interface Choice {
  value: string;
  label: string;
}

/** A URL may hold a value that the list lacks. */
function withValue(options: Choice[], value: string): Choice[] {
  return options.some((option) => option.value === value) ? options : [...options, { value, label: value }];
}

function groups(tags: string[]): Choice[] {
  return [
    { value: '', label: 'nothing: all as one' },
    { value: 'device_id', label: 'device' },
    { value: 'metric_name', label: 'metric' },
    { value: 'series', label: 'series' },
    ...tags.map((name) => ({ value: `tags.${name}`, label: `tag ${name}` })),
  ];
}

interface FormProps {
  state: QueryState;
  set: Patch;
  errorAt: (field: keyof QueryState) => string | undefined;
  busy: boolean;
  onRun: () => void;
}

function Operation({ state, set, errorAt }: FormProps) {
  const percentile = state.op === 'percentile';
  return (
    <div className="query-row">
      <Field label="Operation" error={percentile ? undefined : errorAt('op')}>
        <Select value={state.op} options={withValue(OPERATIONS, state.op)} onChange={(op) => set({ op })} />
      </Field>
      {percentile && (
        <Field label="Percentile" hint="0 to 100" error={errorAt('op')}>
          {(wiring) => <TextInput {...wiring} inputMode="decimal" value={state.p} onChange={(p) => set({ p })} />}
        </Field>
      )}
      <Field label="Interval" error={errorAt('interval')} hint={isCalendar(state.interval) ? `Days and longer begin at midnight in ${localZone()}` : undefined}>
        <Select value={state.interval} options={withValue(INTERVALS, state.interval)} onChange={(interval) => set({ interval })} />
      </Field>
      <Field label="Group by" error={errorAt('group')}>
        <Select value={state.group} options={withValue(groups(Object.keys(tagsFromList(state.tags))), state.group)} onChange={(group) => set({ group })} />
      </Field>
    </div>
  );
}

function Form(props: FormProps) {
  const { state, set, errorAt, busy, onRun } = props;
  const [problem, setProblem] = useState<string>();
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    if (problem === undefined) onRun();
  };
  const devices = { device_id: state.device.map(patternOf) };
  const series = { ...devices, metric_name: state.metric.map(patternOf) };
  return (
    <form className="panel query-form" onSubmit={submit} aria-label="Query">
      <div className="query-row">
        <Picker label="Device" kind="device" multiple patterns value={state.device} onChange={(device) => set({ device })}
          error={errorAt('device')} placeholder={state.device.length === 0 ? 'Every device; search, * and ? allowed' : undefined} />
        <Picker label="Metric" kind="metric" multiple patterns value={state.metric} onChange={(metric) => set({ metric })}
          error={errorAt('metric')} scope={devices} placeholder={state.metric.length === 0 ? 'Every metric; search, * and ? allowed' : undefined} />
        <TagsEditor value={tagsFromList(state.tags)} onChange={(tags) => set({ tags: tagsToList(tags) })} exact={state.exact}
          onExact={(exact) => set({ exact })} error={errorAt('tags')} scope={series} />
      </div>
      <Operation {...props} />
      <RangePicker value={rangeFromText(state.range)} onChange={(range) => set({ range: rangeToText(range) })} error={errorAt('range')} onProblem={setProblem} />
      <p className="actions">
        <Button type="submit" kind="primary" disabled={problem !== undefined}>{busy ? 'Running …' : 'Run query'}</Button>
        <label className="check">
          <input type="checkbox" checked={state.partial} onChange={(event) => set({ partial: event.target.checked })} /> accept a partial answer
        </label>
      </p>
    </form>
  );
}

function Curl({ request }: { request: QueryRequest }) {
  const signedIn = useStore(token) !== '';
  const line = curlLine(window.location.origin, request, signedIn);
  return (
    <section className="panel" aria-labelledby="curl-title">
      <div className="panel-head"><h2 id="curl-title">The same with curl</h2><CopyButton text={line} label="Copy curl" /></div>
      <pre className="curl" role="group" tabIndex={0} aria-label="curl line"><code>{line}</code></pre>
      {signedIn && <p className="hint"><code>$TOKEN</code> stands for your token, which this page shows nowhere.</p>}
    </section>
  );
}

interface Answered {
  text: string;
  answer: QueryAnswer;
}

interface Asking {
  text: string;
  run: number;
}

/** What was asked last and what came of it. A link that says what to ask is asked at once. */
function useAnswer(text: string, atOnce: boolean) {
  const [asking, setAsking] = useState<Asking | null>(atOnce ? { text, run: 0 } : null);
  const asked = useAsk<Answered | null>(async (signal) => {
    if (asking === null) return null;
    const answer = await ask<QueryAnswer>('/query', { method: 'POST', body: JSON.parse(asking.text) as QueryRequest, signal });
    return { text: asking.text, answer };
  }, [asking?.text, asking?.run]);
  const run = (what: string): void => setAsking((old) => ({ text: what, run: (old?.run ?? 0) + 1 }));
  return { asked, asking, run };
}

function namesSeries({ device, metric, tags }: QueryState): boolean {
  return device.length + metric.length + tags.length > 0;
}

/** Back, forward, or another link in the same tab: the URL says what to ask, as when the page was opened by it. */
function useMoved(run: (text: string) => void): void {
  useEffect(() => {
    const moved = (): void => {
      const { screen, search } = splitHash(window.location.hash);
      const state = readState(search, DEFAULTS);
      if (screen === 'query' && namesSeries(state)) run(JSON.stringify(requestOf(state)));
    };
    window.addEventListener('popstate', moved);
    return () => window.removeEventListener('popstate', moved);
  }, []);
}

/** Another window, wished by a hand on the chart: asked at once, by buckets that fit it; back leads to the ones before. */
function useWishes(state: QueryState, set: (patch: Partial<QueryState>, how: 'push' | 'replace') => void, run: (text: string) => void): WindowWishes {
  const before = useRef<Pick<QueryState, 'range' | 'interval'>[]>([]);
  const show = (patch: Partial<QueryState>): void => {
    set(patch, 'push');
    run(JSON.stringify(requestOf({ ...state, ...patch })));
  };
  const range = ({ startMs, endMs }: { startMs: number; endMs: number }) => rangeToText({ kind: 'fixed', startMs, endMs });
  return {
    onZoom: (window) => {
      before.current.push({ range: state.range, interval: state.interval });
      show({ range: range(window), interval: 'auto' });
    },
    onPan: (window) => show({ range: range(window) }),
    onBack: () => {
      const last = before.current.pop();
      if (last !== undefined) show(last);
    },
  };
}

interface FailedProps {
  error: ApiError;
  retry: () => void;
  onPartial: () => void;
}

function Failed({ error, retry, onPartial }: FailedProps) {
  return (
    <>
      <ErrorBox error={error} retry={retry} />
      {error.code === 'incomplete' && <p><Button onClick={onPartial}>Ask for what there is</Button></p>}
    </>
  );
}

export default function Query() {
  const [state, setState] = useUrlState<QueryState>(DEFAULTS);
  const request = requestOf(state);
  const text = JSON.stringify(request);
  const { asked, asking, run } = useAnswer(text, namesSeries(state));
  useMoved(run);
  const { value, error, loading } = asked;
  const set: Patch = (patch) => setState(patch);
  const wishes = useWishes(state, setState, run);
  const current = asking?.text === text;
  const pending = loading || (error === undefined && value?.text !== asking?.text);
  const busy = asking !== null && pending;
  const errorField = current ? fieldOf(error?.field) : undefined;
  const errorAt = (field: keyof QueryState) => (field === errorField ? error?.message : undefined);
  const partial = (): void => {
    set({ partial: true });
    run(JSON.stringify({ ...request, allow_partial: true }));
  };
  const shown = value ?? undefined; // it stays while another question is on its way, or fails
  const earlier = shown !== undefined && !busy && shown.text !== asking?.text;
  return (
    <div className="query">
      <Form state={state} set={set} errorAt={errorAt} busy={busy} onRun={() => run(text)} />
      <section className="panel" aria-labelledby="result-title" aria-busy={busy}>
        <div className="panel-head">
          <h2 id="result-title">Result</h2>
          {shown !== undefined && <ExploreLink request={JSON.parse(shown.text) as QueryRequest} />}
        </div>
        {asking === null && <Empty title="Nothing was asked yet"><p>Choose what to ask, and run the query.</p></Empty>}
        {busy && <Loading what="Asking" />}
        {error !== undefined && errorField === undefined && <Failed error={error} retry={asked.refresh} onPartial={partial} />}
        {error !== undefined && errorField !== undefined && <p className="field-error">The server does not take this: see the field above.</p>}
        <p className="visually-hidden" role="status">{shown === undefined || busy || error !== undefined ? '' : `Answered, of ${formatCount(shown.answer.count)} points`}</p>
        {shown !== undefined && (
          <div className={busy || !current || error !== undefined ? 'before' : undefined}>
            {error !== undefined && <Stale at={asked.at} />}
            {earlier && <p className="hint">This is the answer to what was asked before, not to the question that failed.</p>}
            {error === undefined && !current && !busy && <p className="hint">The form has changed since. This is the answer to what was asked before.</p>}
            <Result answer={shown.answer} wishes={wishes} />
          </div>
        )}
      </section>
      <Curl request={request} />
    </div>
  );
}
