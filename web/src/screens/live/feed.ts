/**
 * The stream of /live and what it fills: owns the connection, the store and the course of things, and tells when any of them
 * changed. A series that is silent since before the stream began, and what an interruption hid, is asked of the server.
 */

import { asApiError, ask, isAborted, isPassing } from '../../api/client';
import { openStream, type OpenStream, type StreamState } from '../../api/sse';
import { retryMs } from '../../hooks';
import { serverNow, serverNowKnown } from '../../api/me';
import type { SeriesPage, SeriesRow } from '../../api/types';
import { patternOf } from '../data/search';
import { BEGINNING, lostWords, moved, noted, readyOf, type Course, type Note } from './course';
import { questionsFor, type Asking } from './finding';
import { pointsOf, type Known } from './series';
import { LiveStore } from './store';
import { wordsOf } from './view';

const SEED_PAGE = 1000; // the server's own page
const MOST_SEEDED = 10_000; // ten questions; of more, those that speak are seen, and those that are looked for
const FOUND_PAGES = 2; // by question, of which there are eight at most
const SEED_RANGE = '-6h'; // what was not heard for longer is not silent but gone
const RETRY_MS = 5_000; // after the first failure; then longer

/** Texts of a search; empty: all. */
export interface Wanted {
  device: string;
  metric: string;
}

export class Feed {
  readonly store = new LiveStore(Date.now());
  course: Course = BEGINNING;
  ready: { nodes: string[]; missing: string[] } | null = null;
  /** Whether the server is being asked what it holds. */
  seeding = false;
  /** Whether the server is being asked for what a person looks for. */
  finding = false;
  /** Whether all that is stored was asked for: nothing more is to be found. */
  private whole = false;
  private sought = '';
  private looking = new AbortController();
  private readonly patterns: { device_id?: string; metric_name?: string };
  private readonly stream: OpenStream;
  private inside = new AbortController();
  private failures = 0;
  private retry: ReturnType<typeof setTimeout> | undefined;

  constructor(
    wanted: Wanted,
    private readonly changed: () => void,
  ) {
    this.patterns = { device_id: patternOf(wanted.device), metric_name: patternOf(wanted.metric) };
    this.stream = openStream('/live', { ...this.patterns, time_unit: 'ms' }, {
      event: (name, data) => this.hear(name, data),
      state: (state) => this.move(state),
    });
  }

  /** Words that a person looks for. What this screen does not hold is asked of the server. */
  find(text: string): void {
    this.sought = text;
    this.looking.abort();
    this.looking = new AbortController();
    this.finding = false;
    const questions = questionsFor(wordsOf(text), this.patterns);
    if (this.whole || questions.length === 0) return;
    this.finding = true;
    void this.look(questions, this.looking.signal);
  }

  /** The next try to connect, without waiting for it. */
  again(): void {
    this.stream.again();
  }

  close(): void {
    this.stream.close();
    this.inside.abort();
    this.looking.abort();
    clearTimeout(this.retry);
  }

  private hear(name: string, data: unknown): void {
    if (name === 'point') this.store.take(pointsOf(data), Date.now());
    if (name === 'lost') this.note('warn', lostWords(data));
    if (name === 'ready') {
      this.ready = readyOf(data);
      const missing = this.ready.missing;
      if (missing.length > 0) this.note('warn', `Not heard yet: ${missing.join(', ')}. Points of theirs do not come`);
    }
    this.changed();
  }

  private move(state: StreamState): void {
    const now = Date.now();
    this.store.listen(state.kind === 'open', now);
    this.course = moved(this.course, state, now);
    if (state.kind === 'open') void this.seed();
    else this.ready = null;
    this.changed();
  }

  private note(tone: Note['tone'], text: string): void {
    this.course = noted(this.course, { atMs: Date.now(), tone, text });
  }

  /** Again from the start when the stream is opened again meanwhile. */
  private async seed(): Promise<void> {
    clearTimeout(this.retry);
    this.inside.abort();
    const { signal } = (this.inside = new AbortController());
    this.seeding = true;
    try {
      await this.seedPages(signal);
      this.failures = 0;
    } catch (thrown) {
      if (signal.aborted || isAborted(thrown)) return;
      const error = asApiError(thrown);
      this.note('warn', `What is stored could not be asked for: ${error.message}`);
      this.failures += 1;
      if (isPassing(error, this.failures)) this.retry = setTimeout(() => void this.seed(), retryMs(this.failures, RETRY_MS, error));
    }
    this.seeding = false;
    this.changed();
  }

  private async seedPages(signal: AbortSignal): Promise<void> {
    await serverNowKnown(); // how long ago a series was heard is told by that clock
    const pages = MOST_SEEDED / SEED_PAGE;
    this.whole = await this.page({ ...this.patterns, start_time: SEED_RANGE }, pages, signal, false);
    if (this.whole) return;
    this.note('warn', `More than ${MOST_SEEDED} series are stored. Those that speak are shown, and those that you look for; of the others not all`);
    this.find(this.sought);
  }

  private async look(questions: readonly Asking[], signal: AbortSignal): Promise<void> {
    try {
      for (const question of questions) await this.page(question, FOUND_PAGES, signal, true);
    } catch (thrown) {
      if (signal.aborted || isAborted(thrown)) return;
      this.note('warn', `What you look for could not be asked for: ${asApiError(thrown).message}`);
    }
    this.finding = false;
    this.changed();
  }

  /** Takes so many pages of what is stored; whether these were all. */
  private async page(question: Asking & { start_time?: string }, pages: number, signal: AbortSignal, wanted: boolean): Promise<boolean> {
    let cursor: string | undefined;
    for (let taken = 0; taken < pages; taken += 1) {
      const body = { ...question, time_unit: 'ms', limit: SEED_PAGE, cursor, allow_partial: true };
      const page = await ask<SeriesPage>('/api/v1/series', { method: 'POST', body, signal });
      signal.throwIfAborted();
      this.store.seed(page.series.map(knownOf), Date.now(), serverNow(), wanted);
      this.changed();
      if (page.next_cursor === null) return true;
      cursor = page.next_cursor;
    }
    return false;
  }
}

function knownOf(row: SeriesRow): Known {
  const { device_id, metric_name, tags, last_time = null, last = null, expected_interval_s = null } = row;
  return { device_id, metric_name, tags, last_time, last, expected_interval_s };
}
