/**
 * The view is in the URL: `#/explore?device=a&device=b&range=3600s`. What is as by default is left out; names that a
 * screen does not know stay. What the other screens showed last is kept, so that one comes back to it.
 */
import { useCallback, useMemo, useRef, useSyncExternalStore } from 'react';
import { SCREENS, splitHash, type Screen } from './hash';

export { SCREENS, splitHash, type Screen };
export type UrlValue = string | number | boolean | string[] | undefined;
export type UrlState = Record<string, UrlValue>;

export function joinHash(screen: Screen, search: string): string {
  return `#/${screen}${search === '' ? '' : `?${search}`}`;
}

function parsed(values: string[], fallback: UrlValue): UrlValue {
  const first = values[0] ?? '';
  if (Array.isArray(fallback)) return values.length === 1 && first === '' ? [] : values;
  if (typeof fallback === 'boolean') return first === 'true' ? true : first === 'false' ? false : fallback;
  if (typeof fallback !== 'number') return first;
  const number = Number(first);
  return first !== '' && Number.isFinite(number) ? number : fallback;
}

/** What the search part says, by the types of the defaults; a value of another type counts as the default. */
export function readState<T extends UrlState>(search: string, defaults: T): T {
  const params = new URLSearchParams(search);
  const state: UrlState = { ...defaults };
  for (const name of Object.keys(defaults)) {
    const values = params.getAll(name);
    if (values.length > 0) state[name] = parsed(values, defaults[name]);
  }
  return state as T;
}

function same(a: UrlValue, b: UrlValue): boolean {
  if (!Array.isArray(a) || !Array.isArray(b)) return a === b;
  return a.length === b.length && a.every((one, index) => one === b[index]);
}

/** The search part with a patch applied. */
export function writeState(search: string, defaults: UrlState, patch: UrlState): string {
  const params = new URLSearchParams(search);
  for (const [name, value] of Object.entries(patch)) {
    params.delete(name);
    if (value === undefined || same(value, defaults[name])) continue;
    if (!Array.isArray(value)) params.append(name, String(value));
    else if (value.length === 0) params.append(name, '');
    else value.forEach((one) => params.append(name, one));
  }
  return params.toString();
}

const listeners = new Set<() => void>();

function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  window.addEventListener('hashchange', listener);
  window.addEventListener('popstate', listener);
  return () => {
    listeners.delete(listener);
    window.removeEventListener('hashchange', listener);
    window.removeEventListener('popstate', listener);
  };
}

function currentHash(): string {
  return window.location.hash;
}

function go(hash: string, how: 'push' | 'replace'): void {
  if (hash === window.location.hash) return;
  if (how === 'push') window.history.pushState(null, '', hash);
  else window.history.replaceState(null, '', hash);
  for (const listener of [...listeners]) listener();
}

const lastSearch = new Map<Screen, string>();

/** Where a link to that screen leads: to what it showed last. */
export function hrefOf(screen: Screen): string {
  return joinHash(screen, lastSearch.get(screen) ?? '');
}

export function useScreen(): [Screen, (s: Screen) => void] {
  const { screen, search } = splitHash(useSyncExternalStore(subscribe, currentHash));
  lastSearch.set(screen, search);
  const set = useCallback((next: Screen) => go(hrefOf(next), 'push'), []);
  return [screen, set];
}

/**
 * State of the screen that uses it. `defaults` is read once, at the first render. The object is the same one as long as the
 * URL is; the setter never changes. how: 'replace' (the default) for what changes all the time, 'push' for what "back" undoes.
 */
export function useUrlState<T extends UrlState>(defaults: T): [T, (patch: Partial<T>, how?: 'push' | 'replace') => void] {
  const hash = useSyncExternalStore(subscribe, currentHash);
  const { screen, search } = splitHash(hash);
  const own = useRef<{ screen: Screen; search: string; defaults: T }>(null);
  own.current ??= { screen, search, defaults };
  // on the way to another screen the URL is no longer this screen's
  if (own.current.screen === screen) own.current.search = search;
  const mine = own.current.search;
  const state = useMemo(() => readState(mine, own.current?.defaults ?? defaults), [mine]);
  const set = useCallback((patch: Partial<T>, how: 'push' | 'replace' = 'replace') => {
    const now = splitHash(currentHash());
    const self = own.current;
    if (self === null || now.screen !== self.screen) return;
    go(joinHash(now.screen, writeState(now.search, self.defaults, patch as UrlState)), how);
  }, []);
  return [state, set];
}
