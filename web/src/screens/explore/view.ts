/** The view of Explore as it stands in the URL, and what of it the parts of the screen read. Pure. */
import { noValues, type ChartLine, type Window } from '../../chart/values';
import { visible } from '../../text';
import { rangeToText, DEFAULT_RANGE, type Range } from '../../time';
import { COMPARISONS } from './shift';
import { keyOf, labelOf, looksOf, type Line } from './lines';
import type { ByLine } from './request';

export const DEFAULTS = {
  line: [] as string[],
  range: rangeToText(DEFAULT_RANGE),
  /** l: the left axis is logarithmic, r: the right one. */
  log: '',
  band: true,
  utc: false,
  /** Days before. */
  compare: 0,
  follow: true,
  drag: 'zoom',
  table: false,
};

export type View = typeof DEFAULTS;
export type SetView = (patch: Partial<View>, how?: 'push' | 'replace') => void;

/** Which axes are logarithmic, with one of them changed. */
export function withLog(log: string, side: 'l' | 'r', on: boolean): string {
  return ['l', 'r'].filter((one) => (one === side ? on : log.includes(one))).join('');
}

export function fixedRange({ startMs, endMs }: Window): string {
  return rangeToText({ kind: 'fixed', startMs, endMs });
}

/** The window before an answer tells it: of an open range the last hour. */
export function guessedWindow(range: Range, nowMs: number): Window {
  if (range.kind === 'fixed') return { startMs: range.startMs, endMs: range.endMs };
  return { startMs: nowMs - (range.kind === 'last' ? range.seconds * 1000 : 3_600_000), endMs: nowMs };
}

export function comparisonLabel(days: number): string {
  return COMPARISONS.find((one) => one.days === days)?.label ?? '';
}

/** What is drawn: compared days first, so that they lie below. Colours stay with their lines when others are hidden. */
export function chartLines(lines: Line[], values: ByLine, compared: ByLine, days: number, colours: string[]): ChartLine[] {
  const made = lines.map((line, place): ChartLine & { hidden: boolean } => {
    const { colour, dash } = looksOf(place, colours.length);
    const key = keyOf(line);
    return {
      key, label: labelOf(line), side: line.side, colour: colours[colour]!, dash, faint: false, hidden: line.hidden,
      values: values.get(key) ?? noValues(),
    };
  });
  const drawn = made.filter((line) => !line.hidden);
  const before = days === 0 ? [] : drawn.map((line): ChartLine => ({
    ...line, key: `${line.key} before`, label: `${line.label}, ${comparisonLabel(days)}`, dash: [3, 3], faint: true,
    values: compared.get(line.key) ?? noValues(),
  }));
  return [...before, ...drawn];
}

/** The chart in one sentence, for those who do not see it. */
export function spokenChart(lines: Line[], window: string): string {
  const names = lines.filter((line) => !line.hidden).map((line) => visible(labelOf(line)));
  const shown = names.length > 5 ? `${names.slice(0, 5).join(', ')} and ${names.length - 5} more` : names.join(', ');
  return `${names.length === 1 ? 'Line' : `${names.length} lines`} over time: ${shown}. ${window}`;
}
