/**
 * Loads what a chart shows and keeps it up to date: points while they are no more than the pixels, else buckets; the
 * compared days; while it follows, only what is new, and all of it once a minute for what came late. What fails for a while
 * is tried again, what is shown stays meanwhile; one that follows goes on whatever fails. Knows no React; who asks and what
 * time it is are handed in.
 */
import { ApiError, asApiError, isPassing, type AskOptions } from '../../api/client';
import type { Coverage, QueryAnswer, Samples, SeriesPage } from '../../api/types';
import { usualMs, type Window } from '../../chart/values';
import { panned, spanOf, zoomed } from '../../chart/window';
import { retryMs } from '../../hooks';
import type { Range } from '../../time';
import { showsPoints, stepFor, toEdges, type Step } from './interval';
import type { Line } from './lines';
import {
  bucketsBody, extentBody, groupsOf, mergedLines, mostPoints, ofBuckets, ofSamples, pointsOf, samplesBody, worstCoverage,
  type ByLine, type Group,
} from './request';
import { earlier, later } from './shift';
import { extendedLines } from './tail';

export interface Spec {
  lines: Line[];
  range: Range;
  pixels: number;
  compareDays: number;
  utc: boolean;
  follow: boolean;
}

export interface Loaded {
  window: Window;
  lines: ByLine;
  /** Of the days before, moved to these; empty without comparison. */
  compared: ByLine;
  /** null: points. */
  step: Step | null;
  points: number;
  coverage?: Coverage;
  /** Its days are those of UTC, though others were wanted: the server does not know this browser's time zone. */
  utcDays: boolean;
  /** From the first question to the last answer. */
  tookMs: number;
  atMs: number;
  /** When all of it was asked for last, not only its end. */
  wholeMs: number;
}

export interface Shown {
  data?: Loaded;
  error?: ApiError;
  loading: boolean;
  /** When the next try after an error is, of the clock. */
  retryAtMs?: number;
}

export interface World {
  ask<T>(path: string, options: AskOptions): Promise<T>;
  now(): number;
  /** By the server's clock, which may be another one. */
  serverNow(): Promise<number>;
  /** Ends early, without an error, when the signal does. */
  pause(ms: number, signal: AbortSignal): Promise<void>;
}

/** What the answers before said about how dense the points are: guesses at first, checked by each answer. */
export interface Hint {
  pointsPerMs?: number;
  usualMs?: number;
  /** The server does not know this browser's time zone. */
  utcDays?: boolean;
}

interface Job {
  spec: Spec;
  groups: Group[];
  world: World;
  hint: Hint;
  signal: AbortSignal;
}

interface Part {
  lines: ByLine;
  step: Step | null;
  coverage?: Coverage;
}

/** Questions of one chart that are on their way at once: the server has other readers, too. */
const AT_ONCE = 4;
/** Points are asked for again when they may still have been on their way: so long. */
const ON_THE_WAY_MS = 10_000;
const EVERYTHING_AGAIN_MS = 60_000;
const LEAST_TICK_MS = 1_000;
const MOST_TICK_MS = 30_000;
const COMPARED_TICK_MS = 5_000;
const HEALED_TICK_MS = 5_000;
/** What is not likely to pass by itself is tried again only so often. */
const SELDOM_MS = 30_000;

/** What the given questions answer, in their order, only so many at once. */
async function inTurns<T>(questions: (() => Promise<T>)[], atOnce: number): Promise<T[]> {
  const answers = new Array<T>(questions.length);
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < questions.length) {
      const mine = next++;
      answers[mine] = await questions[mine]!();
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  return answers;
}

/** An answer for each group; null where no such series exists (any more): a line without values, no error. */
function askGroups<T>(job: Job, path: string, body: (group: Group) => unknown): Promise<(T | null)[]> {
  return inTurns(job.groups.map((group) => async () => {
    try {
      return await job.world.ask<T>(path, { method: 'POST', body: body(group), signal: job.signal });
    } catch (error) {
      if (error instanceof ApiError && error.status === 404 && error.code === 'unknown_series') return null;
      throw error;
    }
  }), job.spec.compareDays > 0 ? AT_ONCE / 2 : AT_ONCE);
}

function known<T>(answers: (T | null)[]): T[] {
  return answers.filter((answer) => answer !== null);
}

/** Whose days its buckets are. */
function isUtc({ spec, hint }: Job): boolean {
  return spec.utc || hint.utcDays === true;
}

async function buckets(job: Job, window: Window, step: Step): Promise<Part> {
  const questions = () => askGroups<QueryAnswer>(job, '/query', (group) => bucketsBody(group, window, step, isUtc(job)));
  const answers = known(await questions().catch((error: unknown) => {
    if (!(error instanceof ApiError) || error.field !== 'timezone') throw error;
    job.hint.utcDays = true;
    return questions();
  }));
  const lines = mergedLines(answers.map((answer) => ofBuckets(answer, step.ms)));
  return { lines, step, coverage: worstCoverage(answers.map(({ coverage }) => coverage)) };
}

/** The points, with some beyond the edges so that lines reach these; undefined where they are more than the pixels. */
async function points(job: Job, window: Window): Promise<Part | undefined> {
  const limit = Math.floor(job.spec.pixels);
  const beyond = Math.min(spanOf(window), 2 * (job.hint.usualMs ?? 0));
  const wide = { startMs: window.startMs - beyond, endMs: window.endMs + beyond };
  const body = (group: Group) => samplesBody(group, wide, group.devices.length * limit);
  const answers = known(await askGroups<Samples>(job, '/api/v1/samples', body));
  const lines = mergedLines(answers.map(ofSamples));
  if (answers.some((answer) => answer.next_cursor !== null) || !showsPoints(mostPoints(lines), limit)) return undefined;
  return { lines, step: null, coverage: worstCoverage(answers.map(({ coverage }) => coverage)) };
}

function learn(hint: Hint, lines: ByLine, window: Window): void {
  const usual = [...lines.values()].map(usualMs).filter(Number.isFinite);
  hint.pointsPerMs = mostPoints(lines) / spanOf(window);
  if (usual.length > 0) hint.usualMs = Math.max(...usual);
}

/** Points where they are likely to fit or the buckets tell that they do, else buckets. */
async function part(job: Job, window: Window): Promise<Part> {
  const { hint, spec } = job;
  const likely = hint.pointsPerMs !== undefined && showsPoints(hint.pointsPerMs * spanOf(window), spec.pixels);
  const first = likely ? await points(job, window) : undefined;
  if (first !== undefined) {
    learn(hint, first.lines, window);
    return first;
  }
  const step = stepFor(window, spec.pixels);
  const cut = await buckets(job, window, step);
  learn(hint, cut.lines, toEdges(window, step, isUtc(job)));
  const fits = !likely && mostPoints(cut.lines) > 0 && showsPoints(mostPoints(cut.lines), spec.pixels);
  return (fits ? await points(job, window) : undefined) ?? cut;
}

/** From the first to the last point of all lines, and a little around; the last hour where there are none. */
async function extent(job: Job): Promise<Window> {
  const pages = known(await askGroups<SeriesPage>(job, '/api/v1/series', extentBody));
  const rows = pages.flatMap((page) => page.series);
  const firsts = rows.map((row) => row.first_time).filter((time) => typeof time === 'number');
  const lasts = rows.map((row) => row.last_time).filter((time) => typeof time === 'number');
  const now = await job.world.serverNow();
  if (firsts.length === 0 || lasts.length === 0) return { startMs: now - 3_600_000, endMs: now };
  const [startMs, endMs] = [Math.min(...firsts), Math.max(...lasts)];
  return endMs > startMs ? zoomed({ startMs, endMs }, 1.04) : { startMs: startMs - 30_000, endMs: endMs + 30_000 };
}

async function windowOf(job: Job): Promise<Window> {
  const { range } = job.spec;
  if (range.kind === 'fixed') return { startMs: range.startMs, endMs: Math.max(range.endMs, range.startMs + 1) };
  const endMs = await job.world.serverNow();
  return range.kind === 'last' ? { startMs: endMs - range.seconds * 1000, endMs } : extent(job);
}

async function compared(job: Job, window: Window): Promise<Part | undefined> {
  const { compareDays, utc } = job.spec;
  if (compareDays === 0) return undefined;
  const found = await part(job, earlier(window, compareDays, utc));
  return { ...found, lines: new Map([...found.lines].map(([key, values]) => [key, later(values, compareDays, utc)])) };
}

async function everything(job: Job): Promise<Loaded> {
  const begun = job.world.now();
  const window = await windowOf(job);
  const [now, before] = await Promise.all([part(job, window), compared(job, window)]);
  return {
    window,
    lines: now.lines,
    compared: before?.lines ?? new Map(),
    step: now.step,
    points: pointsOf(now.lines),
    coverage: worstCoverage([now.coverage, before?.coverage].filter((coverage) => coverage !== undefined)),
    utcDays: now.step?.days !== undefined && !job.spec.utc && isUtc(job),
    tookMs: job.world.now() - begun,
    atMs: job.world.now(),
    wholeMs: job.world.now(),
  };
}

/** Who was missing when the rest was asked for is back: there are holes that its end does not fill. */
function isHealed(data: Loaded, now: Coverage | undefined, nowMs: number): boolean {
  return data.coverage?.complete === false && now?.complete === true && nowMs - data.wholeMs >= HEALED_TICK_MS;
}

/** What is new since `data`, put behind it; undefined where everything has to be asked for again. */
async function extension(job: Job, data: Loaded): Promise<Loaded | undefined> {
  const begun = job.world.now();
  const window = panned(data.window, (await job.world.serverNow() - data.window.endMs) / spanOf(data.window));
  const overlap = Math.max(ON_THE_WAY_MS, 2 * (data.step?.ms ?? 0));
  const since = { startMs: Math.max(window.startMs, data.window.endMs - overlap), endMs: window.endMs };
  const from = data.step === null ? since.startMs : toEdges(since, data.step, isUtc(job)).startMs;
  const fresh = await tail(job, { startMs: from, endMs: since.endMs }, data.step);
  if (fresh === undefined || isHealed(data, fresh.coverage, begun)) return undefined;
  const keepFrom = window.startMs - (data.step?.ms ?? 2 * (job.hint.usualMs ?? 0));
  const lines = extendedLines(data.lines, fresh.lines, from, keepFrom, data.step?.ms ?? 0);
  if (data.step === null && !showsPoints(mostPoints(lines), job.spec.pixels)) return undefined;
  const atMs = job.world.now();
  const coverage = worstCoverage([data.coverage, fresh.coverage].filter((one) => one !== undefined));
  return { ...data, window, lines, points: pointsOf(lines), coverage, tookMs: atMs - begun, atMs };
}

function tail(job: Job, window: Window, step: Step | null): Promise<Part | undefined> {
  return step === null ? points({ ...job, hint: {} }, window) : buckets(job, window, step);
}

async function next(job: Job, data: Loaded | undefined): Promise<Loaded> {
  const old = data === undefined || job.spec.compareDays > 0 || job.world.now() - data.wholeMs >= EVERYTHING_AGAIN_MS;
  return (old ? undefined : await extension(job, data)) ?? everything(job);
}

/** Until it asks again while it follows: about once for each bucket. */
export function tickMs(step: Step | null, compareDays: number): number {
  const tick = Math.min(Math.max(step?.ms ?? 0, LEAST_TICK_MS), MOST_TICK_MS);
  return compareDays > 0 ? Math.max(tick, COMPARED_TICK_MS) : tick;
}

/** Runs until the signal ends it, or nothing more can change. show() gets each change. */
export async function run(spec: Spec, hint: Hint, world: World, signal: AbortSignal, show: (change: Shown) => void): Promise<void> {
  const job: Job = { spec, groups: groupsOf(spec.lines), world, hint, signal };
  const follows = spec.follow && spec.range.kind === 'last';
  let data: Loaded | undefined;
  let failures = 0;
  while (!signal.aborted) {
    let waitMs: number | undefined;
    try {
      if (data === undefined) show({ loading: true });
      data = await next(job, data);
      if (signal.aborted) return;
      failures = 0;
      show({ data, error: undefined, retryAtMs: undefined, loading: false });
      if (follows) waitMs = tickMs(data.step, spec.compareDays);
    } catch (thrown) {
      if (signal.aborted) return;
      const error = asApiError(thrown);
      failures += 1;
      if (isPassing(error, failures)) waitMs = retryMs(failures, null, error);
      // on a wall nobody presses "Try again"
      else if (follows && data !== undefined) waitMs = Math.max(SELDOM_MS, retryMs(failures, null, error));
      show({ error, loading: false, retryAtMs: waitMs === undefined ? undefined : world.now() + waitMs });
    }
    if (waitMs === undefined) return;
    await world.pause(waitMs, signal);
  }
}
