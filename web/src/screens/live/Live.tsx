/** Points as they come: the newest of each series, how it went lately, and who has fallen silent. */

import { useEffect, useRef, useState } from 'react';
import { formatCount, formatRate } from '../../format';
import { useDebounced } from '../../hooks';
import { visible } from '../../text';
import { formatTime } from '../../time';
import { Badge, Button, Empty, Field, Loading, Select, Spark, TextInput } from '../../ui';
import { useUrlState } from '../../url';
import { counted } from '../data/deleting';
import { faultOf } from '../data/search';
import { stateWords, type Course } from './course';
import { Feed } from './feed';
import './live.css';
import { SeriesRows } from './SeriesRows';
import type { Series, Summary } from './series';
import type { LiveStore } from './store';
import { Arranger, oneOf, PerFrame, type Show, type Sort, type Wanted } from './view';

const LEAST_MS = 100; // nobody reads faster, and a page on a wall should not heat the room
const ARRANGE_MS = 500; // between two looks at what is shown in which order, unless the person changes that
const SETTLE_MS = 500; // of typing, before the stream is opened anew or the server is asked
const NOTES_SHOWN = 3;

const SHOWS: readonly [Show, ...Show[]] = ['all', 'silent', 'speaking'];
const SORTS: readonly [Sort, ...Sort[]] = ['name', 'newest', 'quiet', 'value'];
const SHOW_OPTIONS = [
  { value: 'all', label: 'All' },
  { value: 'silent', label: 'Silent' },
  { value: 'speaking', label: 'Not silent' },
];
const SORT_OPTIONS = [
  { value: 'name', label: 'Name' },
  { value: 'newest', label: 'Newest first' },
  { value: 'quiet', label: 'Longest silence first' },
  { value: 'value', label: 'Largest value first' },
];
const SPOKEN = { connecting: 'Connecting', open: 'Live' };
const DEFAULTS = { device: '', metric: '', find: '', show: 'all', sort: 'name' };

/** The feed, and a render when it has changed or a second has passed. */
function useFeed(device: string, metric: string): Feed | null {
  const [feed, setFeed] = useState<Feed | null>(null);
  const [, setFrame] = useState(0);
  useEffect(() => {
    const frames = new PerFrame(() => setFrame((frame) => frame + 1), LEAST_MS);
    const made = new Feed({ device, metric }, () => frames.ask());
    const timer = setInterval(() => frames.ask(), 1000);
    setFeed(made);
    return () => {
      clearInterval(timer);
      frames.stop();
      made.close();
    };
  }, [device, metric]);
  return feed;
}

/** What is shown, looked at anew only now and then. */
function useArranged(store: LiveStore | undefined, wanted: Wanted, nowMs: number): Series[] {
  const arranger = useRef(new Arranger());
  const last = useRef<{ store?: LiveStore; of: string; atMs: number; rows: Series[] }>({ of: '', atMs: -Infinity, rows: [] });
  const of = JSON.stringify(wanted);
  const old = last.current;
  if (store === undefined) return [];
  if (old.store === store && old.of === of && Math.abs(nowMs - old.atMs) < ARRANGE_MS) return old.rows;
  const rows = arranger.current.arrange(store, wanted, nowMs);
  last.current = { store, of, atMs: nowMs, rows };
  return rows;
}

interface Paused {
  feed: Feed;
  store: LiveStore;
  atMs: number;
  points: number;
}

export default function Live() {
  const [url, setUrl] = useUrlState(DEFAULTS);
  const device = useDebounced(url.device, SETTLE_MS);
  const metric = useDebounced(url.metric, SETTLE_MS);
  const find = useDebounced(url.find, SETTLE_MS);
  const feed = useFeed(device, metric);
  useEffect(() => feed?.find(find), [feed, find]);
  const [stopped, setStopped] = useState<Paused | null>(null);
  const paused = stopped !== null && stopped.feed === feed ? stopped : null;
  const store = paused?.store ?? feed?.store;
  const nowMs = paused?.atMs ?? Date.now();
  const wanted: Wanted = { find: url.find, show: oneOf(url.show, SHOWS), sort: oneOf(url.sort, SORTS) };
  const rows = useArranged(store, wanted, nowMs);

  const pause = () => {
    if (feed === null) return;
    const atMs = Date.now();
    setStopped(paused === null ? { feed, store: feed.store.frozen(atMs), atMs, points: feed.store.points } : null);
  };

  return (
    <div className="live panel">
      <div className="live-head">
        <StreamState feed={feed} />
        <Rate feed={feed} />
        <Silent store={store} nowMs={nowMs} onShow={() => setUrl({ show: 'silent' })} />
        <Button onClick={pause} aria-pressed={paused !== null} disabled={feed === null}>
          {paused === null ? 'Pause' : 'Go on'}
        </Button>
      </div>
      {paused !== null && feed !== null && (
        <p className="live-paused">
          <Badge tone="warn">paused</Badge> As of {formatTime(paused.atMs)};{' '}
          {formatCount(feed.store.points - paused.points)} points have come since.
        </p>
      )}
      <div className="live-filters">
        <Field label="Find" hint="Words in device, metric or tags">
          {(wiring) => <TextInput {...wiring} type="search" value={url.find} onChange={(find) => setUrl({ find })} />}
        </Field>
        <Field label="Show">
          {(wiring) => <Select {...wiring} value={wanted.show} options={SHOW_OPTIONS} onChange={(show) => setUrl({ show })} />}
        </Field>
        <Field label="Order">
          {(wiring) => <Select {...wiring} value={wanted.sort} options={SORT_OPTIONS} onChange={(sort) => setUrl({ sort })} />}
        </Field>
      </div>
      <Narrow device={url.device} metric={url.metric} setUrl={setUrl} />
      {feed !== null && <Notes course={feed.course} />}
      {store !== undefined && store.notKept > 0 && (
        <p className="live-note warn">
          {formatCount(store.size)} series are shown; {formatCount(store.notKept)} points of others came, too. Narrow the stream to see those.
        </p>
      )}
      {store === undefined || rows.length === 0
        ? <Nothing feed={feed} store={store} wanted={wanted} onClear={() => setUrl({ find: '', show: 'all' })} />
        : <SeriesRows store={store} rows={rows} nowMs={nowMs} />}
    </div>
  );
}

/** Read out when it changes, but not each second of a countdown. */
function StreamState({ feed }: { feed: Feed | null }) {
  if (feed === null) return <Loading what="Connecting" />;
  const { tone, text } = stateWords(feed.course, Date.now());
  const nodes = feed.ready === null ? '' : `hearing ${feed.ready.nodes.map(visible).join(', ') || 'no node'}`;
  return (
    <p className="live-state">
      <Badge tone={tone}>{feed.course.state.kind === 'open' ? 'live' : feed.course.state.kind}</Badge>{' '}
      <span>{feed.course.state.kind === 'open' ? nodes : visible(text)}</span>{' '}
      {feed.course.state.kind === 'lost' && <Button small onClick={() => feed.again()}>Try now</Button>}
      <span className="visually-hidden" role="status">
        {feed.course.state.kind === 'lost' ? `Connection lost: ${visible(feed.course.state.reason)}` : SPOKEN[feed.course.state.kind]}
      </span>
    </p>
  );
}

function Rate({ feed }: { feed: Feed | null }) {
  if (feed === null) return null;
  const now = Date.now();
  return (
    <p className="live-rate">
      <strong>{formatRate(feed.store.rate(now))}</strong> points{' '}
      <Spark values={feed.store.rates(now)} width={120} height={28} label="Points per second in the last minute" />
    </p>
  );
}

function Silent({ store, nowMs, onShow }: { store: LiveStore | undefined; nowMs: number; onShow: () => void }) {
  const last = useRef<{ store: LiveStore; atMs: number; summary: Summary }>(null);
  if (store === undefined) return null;
  // each series is looked at for it: twice a second is enough
  if (last.current?.store !== store || Math.abs(nowMs - last.current.atMs) >= ARRANGE_MS) {
    last.current = { store, atMs: nowMs, summary: store.summary(nowMs) };
  }
  const { devices, silentDevices, series, silentSeries } = last.current.summary;
  return (
    <p className="live-silent">
      {counted(devices, 'device')}, {counted(series, 'series', 'series')}{' '}
      {silentSeries === 0
        ? <Badge tone="ok">none silent</Badge>
        : (
          <Button small onClick={onShow} title="Show what is silent">
            <Badge tone="bad">{counted(silentDevices, 'device')} silent</Badge> {counted(silentSeries, 'series', 'series')}
          </Button>
        )}
    </p>
  );
}

interface NarrowProps {
  device: string;
  metric: string;
  setUrl: (patch: { device?: string; metric?: string }) => void;
}

function Narrow({ device, metric, setUrl }: NarrowProps) {
  const narrowed = device !== '' || metric !== '';
  const [atFirst] = useState(narrowed); // from then on it is the person who opens and closes it
  return (
    <details className="live-narrow" open={atFirst}>
      <summary>Narrow the stream{narrowed ? ' (only some series are asked for)' : ''}</summary>
      <div className="live-filters">
        <Field label="Device" hint="Part of the id, a glob such as pump_*, or ~regex" error={faultOf(device)}>
          {(wiring) => <TextInput {...wiring} value={device} onChange={(text) => setUrl({ device: text })} />}
        </Field>
        <Field label="Metric" hint="Part of the name, a glob, or ~regex" error={faultOf(metric)}>
          {(wiring) => <TextInput {...wiring} value={metric} onChange={(text) => setUrl({ metric: text })} />}
        </Field>
      </div>
    </details>
  );
}

function Notes({ course }: { course: Course }) {
  const [all, setAll] = useState(false);
  if (course.notes.length === 0) return null;
  const shown = all ? course.notes : course.notes.slice(0, NOTES_SHOWN);
  return (
    <div className="live-notes">
      <div role="log" aria-label="What happened to the stream">
        <ul>
          {shown.map((note, index) => (
            <li key={`${note.atMs} ${index}`} className={`live-note ${note.tone}`}>
              <time dateTime={new Date(note.atMs).toISOString()}>{formatTime(note.atMs).slice(11)}</time> {visible(note.text)}
            </li>
          ))}
        </ul>
      </div>
      {course.notes.length > NOTES_SHOWN && (
        <Button small kind="quiet" onClick={() => setAll(!all)}>{all ? 'Fewer' : `All ${course.notes.length}`}</Button>
      )}
    </div>
  );
}

interface NothingProps {
  feed: Feed | null;
  store: LiveStore | undefined;
  wanted: Wanted;
  onClear: () => void;
}

function Nothing({ feed, store, wanted, onClear }: NothingProps) {
  if (feed === null || store === undefined) return null;
  if (feed.finding) return <Loading what="Looking among what is stored" />;
  if (store.size > 0) {
    const onlySilent = wanted.show === 'silent' && wanted.find === '';
    return (
      <Empty title={onlySilent ? 'Nothing is silent.' : 'No series is like that.'}>
        <Button onClick={onClear}>Show all {formatCount(store.size)}</Button>
      </Empty>
    );
  }
  if (feed.course.state.kind !== 'open') return <Empty title="No connection yet." />;
  if (feed.seeding) return <Loading what="Asking what is stored" />;
  return <Empty title="Nothing has come yet.">Points show up here as they become durable.</Empty>;
}
