/** The loader for React: loads anew when what is asked for changes, keeps what it has until the new answer is here. */
import { useCallback, useEffect, useRef, useState } from 'react';
import { ask } from '../../api/client';
import { serverNowKnown } from '../../api/me';
import { token } from '../../api/session';
import { run, type Hint, type Shown, type Spec, type World } from './loader';
import { groupsOf } from './request';
import { rangeToText } from '../../time';
import { hasDays } from './interval';
import { guessedWindow } from './view';

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener('abort', done);
  });
}

/** Nobody looks at a hidden page: it asks when it is seen again. */
async function pauseWhileSeen(ms: number, signal: AbortSignal): Promise<void> {
  await pause(ms, signal);
  while (document.hidden && !signal.aborted) {
    await new Promise<void>((resolve) => {
      const done = (): void => {
        document.removeEventListener('visibilitychange', done);
        signal.removeEventListener('abort', done);
        resolve();
      };
      document.addEventListener('visibilitychange', done);
      signal.addEventListener('abort', done);
    });
  }
}

const WORLD: World = { ask, now: () => Date.now(), serverNow: serverNowKnown, pause: pauseWhileSeen };

/** Changes that come closer together than this are one: a hand that pans, an edge that is dragged. */
const SETTLE_MS = 120;

/** Whether the answer depends on whose days they are. */
function asksOfDays({ range, pixels, compareDays }: Spec): boolean {
  return compareDays > 0 || range.kind === 'all' || hasDays(guessedWindow(range, 0), pixels);
}

/** Everything of a spec that an answer depends on; what only changes the drawing is not in it. */
export function keyOfSpec(spec: Spec): string {
  const { range, pixels, compareDays, utc, follow } = spec;
  const follows = follow && range.kind === 'last';
  return JSON.stringify([groupsOf(spec.lines), rangeToText(range), pixels, compareDays, asksOfDays(spec) && utc, follows]);
}

export interface LoadedState extends Shown {
  /** What is shown was asked for with another spec. */
  old: boolean;
  refresh(): void;
}

export function useLoaded(spec: Spec): LoadedState {
  const key = keyOfSpec(spec);
  const [state, setState] = useState<Shown & { key?: string }>({ loading: true });
  const [turn, setTurn] = useState(0);
  const latest = useRef(spec);
  latest.current = spec;
  const hint = useRef<Hint>({});
  const begun = useRef(false);
  useEffect(() => {
    const wanted = latest.current;
    if (wanted.lines.length === 0 || wanted.pixels <= 0) return;
    const stop = new AbortController();
    const show = (change: Shown): void =>
      setState((old) => ({ ...old, ...change, ...(change.data === undefined ? {} : { key }) }));
    setState((old) => ({ ...old, loading: true, error: undefined }));
    const timer = setTimeout(() => void run(wanted, hint.current, WORLD, stop.signal, show), begun.current ? SETTLE_MS : 0);
    begun.current = true;
    return () => {
      clearTimeout(timer);
      stop.abort();
    };
  }, [key, turn]);
  const refresh = useCallback(() => setTurn((old) => old + 1), []);
  const refused = state.error?.status === 401 || state.error?.status === 403;
  useEffect(() => (refused ? token.subscribe(refresh) : undefined), [refused, refresh]);
  return { ...state, old: state.key !== key, refresh };
}
