/** Live follow: what is new at the end takes the place of what was known there, what the window left goes. Pure. */
import { firstFrom, noValues, type Values } from '../../chart/values';
import type { ByLine } from './request';

type Columns = Pick<Values, 'times' | 'min' | 'avg' | 'max' | 'counts'>;
const COLUMNS: readonly (keyof Columns)[] = ['times', 'min', 'avg', 'max', 'counts'];

/** Values of `old` from keepFromMs to before `fromMs`, then `fresh`, which begins at fromMs. */
export function extended(old: Values, fresh: Values, fromMs: number, keepFromMs: number): Values {
  const from = firstFrom(old.times, keepFromMs);
  const to = Math.max(from, firstFrom(old.times, fromMs));
  const made = noValues(old.bucketMs);
  for (const name of COLUMNS) made[name] = old[name].slice(from, to).concat(fresh[name]);
  return made;
}

/** The same for every line that either knows. */
export function extendedLines(old: ByLine, fresh: ByLine, fromMs: number, keepFromMs: number, bucketMs: number): ByLine {
  const keys = new Set([...old.keys(), ...fresh.keys()]);
  const of = (lines: ByLine, key: string) => lines.get(key) ?? noValues(bucketMs);
  return new Map([...keys].map((key) => [key, extended(of(old, key), of(fresh, key), fromMs, keepFromMs)]));
}
