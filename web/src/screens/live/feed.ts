/**
 * The stream of /live and what it fills: owns the connection, the store and the course of things, and tells when any of them
 * changed. A series that is silent since before the stream began, and what an interruption hid, is asked of the server.
 */

import { asApiError, ask, isAborted, isPassing } from '../../api/client';
import { openStream, type StreamState } from '../../api/sse';
import { retryMs } from '../../hooks';
import type { Me, SeriesPage, SeriesRow } from '../../api/types';
import { patternOf } from '../data/search';
import { BEGINNING, lostWords, moved, noted, readyOf, type Course, type Note } from './course';
import { LiveStore, pointsOf, type Known } from './store';

const SEED_PAGE = 1000; // the server's own page
const MOST_SEEDED = 10_000; // ten questions; who has more series narrows the stream
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
  private readonly patterns: { device_id?: string; metric_name?: string };
  private readonly stream: { close(): void };
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

  close(): void {
    this.stream.close();
    this.inside.abort();
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
    const asked = Date.now();
    const me = await ask<Me>('/api/v1/me', { signal });
    const ahead = me.now * 1000 - (asked + Date.now()) / 2;
    let cursor: string | undefined;
    for (let taken = 0; taken < MOST_SEEDED; taken += SEED_PAGE) {
      const page = await ask<SeriesPage>('/api/v1/series', {
        params: {
          ...this.patterns, start_time: SEED_RANGE, time_unit: 'ms', limit: SEED_PAGE, cursor, allow_partial: true,
        },
        signal,
      });
      this.store.seed(page.series.map(knownOf), Date.now(), Date.now() + ahead);
      this.changed();
      if (page.next_cursor === null) return;
      cursor = page.next_cursor;
    }
    this.note('warn', `Of more than ${MOST_SEEDED} series those that are silent already are not all known: narrow the stream`);
  }
}

function knownOf(row: SeriesRow): Known {
  const { device_id, metric_name, tags, last_time = null, last = null, expected_interval_s = null } = row;
  return { device_id, metric_name, tags, last_time, last, expected_interval_s };
}
