/** Which series the live screen shows, in which order, and which of these rows lie in its window. Pure. */

import type { Series } from './series';
import type { LiveStore } from './store';

export type Show = 'all' | 'silent' | 'speaking';
export type Sort = 'name' | 'newest' | 'quiet' | 'value';

export interface Wanted {
  find: string;
  show: Show;
  sort: Sort;
}

/** The first of `allowed` that a text of the URL is, else the very first. */
export function oneOf<T extends string>(text: string, allowed: readonly [T, ...T[]]): T {
  return allowed.find((each) => each === text) ?? allowed[0];
}

/** Whether every word stands in the device, the metric or the tags, whatever their case. */
export function isFound(series: Series, words: readonly string[]): boolean {
  return words.every((word) => series.searchText.includes(word));
}

export function wordsOf(find: string): string[] {
  return find.toLowerCase().split(/\s+/).filter((word) => word !== '');
}

/** Keeps series in order of name, and sorts again only when there are new ones. */
export class Arranger {
  private store: LiveStore | null = null;
  private version = -1;
  private byName: Series[] = [];

  arrange(store: LiveStore, wanted: Wanted, nowMs: number): Series[] {
    if (store !== this.store || store.version !== this.version) {
      this.byName = [...store.all].sort(byName);
      this.store = store;
      this.version = store.version;
    }
    const words = wordsOf(wanted.find);
    const shown = this.byName.filter(
      (series) => isFound(series, words) && isShown(store.isSilent(series, nowMs), wanted.show),
    );
    return wanted.sort === 'name' ? shown : shown.sort(ORDERS[wanted.sort]);
  }
}

function isShown(silent: boolean, show: Show): boolean {
  return show === 'all' || silent === (show === 'silent');
}

function byName(a: Series, b: Series): number {
  return a.sortKey < b.sortKey ? -1 : a.sortKey > b.sortKey ? 1 : 0;
}

const ORDERS: Record<Exclude<Sort, 'name'>, (a: Series, b: Series) => number> = {
  newest: (a, b) => b.lastMs - a.lastMs,
  quiet: (a, b) => a.heard - b.heard,
  value: (a, b) => (b.last ?? -Infinity) - (a.last ?? -Infinity),
};

/** The rows in a window onto `total` rows of one height, and `extra` on both sides of it. */
export function rowsInside(
  scrollTop: number,
  height: number,
  rowHeight: number,
  total: number,
  extra: number,
): { first: number; end: number } {
  const first = Math.floor(Math.max(0, scrollTop) / rowHeight) - extra;
  const end = Math.ceil((Math.max(0, scrollTop) + height) / rowHeight) + extra;
  const last = Math.min(total, Math.max(0, end));
  return { first: Math.max(0, Math.min(first, last)), end: last };
}

/** Runs something in an animation frame, however often it is asked for, and leaves `leastMs` between two runs. */
export class PerFrame {
  private handle: number | null = null;
  private ranMs = -Infinity;

  constructor(
    private readonly run: () => void,
    private readonly leastMs: number,
    private readonly request: (then: (atMs: number) => void) => number = (then) => requestAnimationFrame(then),
    private readonly cancel: (handle: number) => void = (handle) => cancelAnimationFrame(handle),
  ) {}

  ask(): void {
    this.handle ??= this.request(this.turn);
  }

  stop(): void {
    if (this.handle !== null) this.cancel(this.handle);
    this.handle = null;
  }

  private readonly turn = (atMs: number): void => {
    this.handle = null;
    if (atMs - this.ranMs < this.leastMs) return this.ask();
    this.ranMs = atMs;
    this.run();
  };
}
