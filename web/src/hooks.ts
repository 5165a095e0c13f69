/** What screens share: asking once and again and again, sizes, the theme, and colours for canvases. */
import { useCallback, useEffect, useLayoutEffect, useRef, useState, type RefObject } from 'react';
import { asApiError, connection, isAborted, isBack, isPassing, leftAloneMs, type ApiError } from './api/client';
import { token } from './api/session';
import { makeStore, useStore } from './store';

export interface Asked<T> {
  /** The last good answer; it stays while a newer one is asked for or fails. */
  value?: T;
  /** When that came, in milliseconds. */
  at?: number;
  error?: ApiError;
  loading: boolean;
  /** The value is older than it should be: of other deps, or the last try failed. */
  stale: boolean;
  /** A newer one is on its way for longer than one should wait. */
  late: boolean;
  refresh(): void;
}

const LONGEST_WAIT_MS = 30_000;
/** A server that was away is looked for so often. */
const AWAY_WAIT_MS = 10_000;
const FIRST_WAIT_MS = 1_000;
/** What is asked seldom is asked again after so long at first, or it would be stale for long after a short trouble. */
const SELDOM_WAIT_MS = 5_000;
/** What was not answered within this is called late. */
const LATE_MS = 6_000;

/**
 * Until the next try after so many failures in a row; never sooner than the server wants. Up to a quarter longer by chance,
 * so that pages which failed together do not come back together.
 */
export function retryMs(failures: number, everyMs: number | null, error: ApiError, random: () => number = Math.random): number {
  const longest = error.status === 0 ? AWAY_WAIT_MS : LONGEST_WAIT_MS;
  const base = Math.min(SELDOM_WAIT_MS, Math.max(FIRST_WAIT_MS, everyMs ?? FIRST_WAIT_MS));
  const doubled = Math.min(longest, base * 2 ** Math.max(0, failures - 1));
  return Math.max(doubled, leftAloneMs(error)) * (1 + random() / 4);
}

export interface State<T> {
  value?: T;
  at?: number;
  error?: ApiError;
  loading: boolean;
  fresh: boolean;
  late: boolean;
}

type Fn<T> = (signal: AbortSignal) => Promise<T>;

/** One loop for both hooks: everyMs null asks once, and again only after what may pass by itself. */
export function runLoop<T>(fn: () => Fn<T>, everyMs: number | null, put: (change: Partial<State<T>>) => void): { stop(): void; now(): void } {
  let stopped = false;
  let failures = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let inside: AbortController | undefined;
  let overdue = false;
  let asking = false;
  let [firstFailedMs, notBeforeMs] = [0, 0];
  let lateTimer: ReturnType<typeof setTimeout> | undefined;

  const later = (ms: number | null): void => {
    if (stopped || ms === null) return;
    timer = setTimeout(() => {
      // nobody looks: ask when somebody does
      if (document.hidden) overdue = true;
      else void turn();
    }, ms);
  };
  const answered = (): void => {
    asking = false;
    clearTimeout(lateTimer);
  };
  const turn = async (): Promise<void> => {
    if (stopped) return; // somebody still holds now(), or was told together with who stopped it
    clearTimeout(timer);
    overdue = false;
    inside?.abort();
    const mine = new AbortController();
    inside = mine;
    asking = true;
    put({ loading: true });
    clearTimeout(lateTimer);
    lateTimer = setTimeout(() => put({ late: true, fresh: false }), LATE_MS);
    try {
      const value = await fn()(mine.signal);
      if (mine.signal.aborted) return;
      answered();
      failures = 0;
      put({ value, at: Date.now(), error: undefined, loading: false, fresh: true, late: false });
      later(everyMs);
    } catch (thrown) {
      if (mine.signal.aborted || isAborted(thrown)) return;
      const error = asApiError(thrown);
      answered();
      failures += 1;
      if (failures === 1) firstFailedMs = Date.now();
      notBeforeMs = Date.now() + leftAloneMs(error);
      put({ error, loading: false, fresh: false, late: false });
      if (everyMs !== null || isPassing(error, failures)) later(retryMs(failures, everyMs, error));
    }
  };
  const seen = (): void => {
    if (!document.hidden && overdue) void turn();
  };
  const back = (): void => {
    if (failures > 0 && !asking && !document.hidden && isBack(firstFailedMs, notBeforeMs)) void turn();
  };
  document.addEventListener('visibilitychange', seen);
  const unsubscribe = [connection.subscribe(back), token.subscribe(() => { if (!asking) void turn(); })];
  void turn();
  const stop = (): void => {
    stopped = true;
    clearTimeout(timer);
    clearTimeout(lateTimer);
    inside?.abort();
    document.removeEventListener('visibilitychange', seen);
    unsubscribe.forEach((one) => one());
  };
  return { stop, now: () => void turn() };
}

function useLoop<T>(fn: Fn<T>, everyMs: number | null, deps: unknown[]): Asked<T> {
  const [state, setState] = useState<State<T>>({ loading: true, fresh: false, late: false });
  const latest = useRef(fn);
  latest.current = fn;
  const loop = useRef<{ stop(): void; now(): void }>(null);
  useEffect(() => {
    setState((old) => ({ ...old, error: undefined, fresh: false, loading: true, late: false }));
    const mine = runLoop(() => latest.current, everyMs, (change) => setState((old) => ({ ...old, ...change })));
    loop.current = mine;
    return () => mine.stop();
  }, [everyMs, ...deps]);
  const refresh = useCallback(() => loop.current?.now(), []);
  const { value, at, error, loading, fresh, late } = state;
  return { value, at, error, loading, stale: value !== undefined && !fresh, late, refresh };
}

/**
 * Asks now and every so many milliseconds, and whenever deps change (fn itself may be a new one at each render). After
 * failures it asks again, more and more seldom. Pages that nobody sees ask nothing.
 */
export function usePolled<T>(fn: Fn<T>, everyMs: number, deps: unknown[]): Asked<T> {
  return useLoop(fn, everyMs, deps);
}

/** Asks once for each deps; again by itself only while the server is away, busy or not ready. */
export function useAsk<T>(fn: Fn<T>, deps: unknown[]): Asked<T> {
  return useLoop(fn, null, deps);
}

/** Width and height of an element in CSS pixels, 0 until it is laid out. */
export function useSize(ref: RefObject<HTMLElement | null>): { width: number; height: number } {
  const [size, setSize] = useState({ width: 0, height: 0 });
  useLayoutEffect(() => {
    const element = ref.current;
    if (element === null) return;
    const measure = (width: number, height: number): void =>
      setSize((old) => (old.width === width && old.height === height ? old : { width, height }));
    measure(element.clientWidth, element.clientHeight);
    const observer = new ResizeObserver(() => measure(element.clientWidth, element.clientHeight));
    observer.observe(element);
    return () => observer.disconnect();
  }, [ref]);
  return size;
}

/** The value as it was when it last stayed unchanged for so long. */
export function useDebounced<T>(value: T, ms: number): T {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), ms);
    return () => clearTimeout(timer);
  }, [value, ms]);
  return settled;
}

/** Renders again every so often; the time then. For "3 s ago". */
export function useNow(everyMs = 1000): number {
  const [now, setNow] = useState(() => Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), everyMs);
    return () => clearInterval(timer);
  }, [everyMs]);
  return now;
}

export type ThemeChoice = 'system' | 'light' | 'dark';
const THEME_KEY = 'minitrue.theme';

function storedChoice(): ThemeChoice {
  try {
    const stored = localStorage.getItem(THEME_KEY);
    return stored === 'light' || stored === 'dark' ? stored : 'system';
  } catch {
    return 'system'; // storage refused
  }
}

const darkQuery = typeof matchMedia === 'undefined' ? null : matchMedia('(prefers-color-scheme: dark)');
const themeChoice = makeStore<ThemeChoice>(typeof localStorage === 'undefined' ? 'system' : storedChoice());
const systemDark = makeStore<boolean>(darkQuery?.matches ?? false);
darkQuery?.addEventListener('change', (event) => systemDark.set(event.matches));

/** Puts the choice on <html>, where theme.css looks for it. */
export function applyTheme(choice: ThemeChoice = themeChoice.get()): void {
  if (choice === 'system') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = choice;
}

function chooseTheme(choice: ThemeChoice): void {
  try {
    if (choice === 'system') localStorage.removeItem(THEME_KEY);
    else localStorage.setItem(THEME_KEY, choice);
  } catch {
    // storage refused: the choice lives as long as the page
  }
  applyTheme(choice); // before anybody hears of it and reads the colours
  themeChoice.set(choice);
}

export function useTheme(): { theme: 'light' | 'dark'; choice: ThemeChoice; setChoice: (choice: ThemeChoice) => void } {
  const choice = useStore(themeChoice);
  const dark = useStore(systemDark);
  const theme = choice === 'system' ? (dark ? 'dark' : 'light') : choice;
  return { theme, choice, setChoice: chooseTheme };
}

/** Colours and fonts of theme.css as values, for canvases. */
export interface Tokens {
  bg: string;
  surface: string;
  surface2: string;
  text: string;
  muted: string;
  line: string;
  accent: string;
  accentText: string;
  ok: string;
  warn: string;
  bad: string;
  focus: string;
  /** series-1 to series-8. */
  series: string[];
  font: string;
  mono: string;
}

function readTokens(): Tokens {
  const style = getComputedStyle(document.documentElement);
  const of = (name: string): string => style.getPropertyValue(name).trim();
  return {
    bg: of('--bg'), surface: of('--surface'), surface2: of('--surface-2'), text: of('--text'), muted: of('--muted'),
    line: of('--line'), accent: of('--accent'), accentText: of('--accent-text'), ok: of('--ok'), warn: of('--warn'),
    bad: of('--bad'), focus: of('--focus'), font: of('--font'), mono: of('--mono'),
    series: [1, 2, 3, 4, 5, 6, 7, 8].map((number) => of(`--series-${number}`)),
  };
}

/** As they were read last: a screen has hundreds of sparklines, which ask for them all. */
let read: { theme: string; tokens: Tokens } | undefined;

/** The same object until the theme changes. */
export function useTokens(): Tokens {
  const { theme } = useTheme();
  if (read?.theme !== theme) read = { theme, tokens: readTokens() };
  return read.tokens;
}
