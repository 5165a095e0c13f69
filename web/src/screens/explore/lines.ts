/** The lines of a chart: which series each shows, at which axis, and how that stands in the URL. Pure. */
import type { Side } from '../../chart/values';
import { tagsText } from '../../text';

export interface Line {
  device: string;
  metric: string;
  /** Exactly these. */
  tags: Record<string, string>;
  side: Side;
  hidden: boolean;
}

/** Beyond these nobody tells lines apart; the URL has to hold them, too. */
export const MOST_LINES = 32;

export function keyOf(series: { device: string; metric: string; tags: Record<string, string> }): string {
  const tags = Object.keys(series.tags).sort().map((name) => [name, series.tags[name]]);
  return JSON.stringify([series.device, series.metric, tags]);
}

export function labelOf(line: Line): string {
  const tags = tagsText(line.tags);
  return `${line.device} ${line.metric}${tags === '' ? '' : ` (${tags})`}`;
}

/** `!` stands before each character that would else mean something: ids may hold any of them. */
function escaped(text: string): string {
  return text.replace(/[!~,=]/g, '!$&');
}

/** Cuts at every separator that has no `!` before it; the parts are still escaped. */
function cut(text: string, separator: string): string[] {
  const parts = [''];
  for (let at = 0; at < text.length; at++) {
    const character = text[at]!;
    if (character === '!') parts[parts.length - 1] += character + (text[++at] ?? '');
    else if (character === separator) parts.push('');
    else parts[parts.length - 1] += character;
  }
  return parts;
}

function plain(text: string): string {
  return text.replace(/!(.)/gsu, '$1');
}

/** `sensor_1~temperature`, `sensor_1~temperature~room=lab,floor=2~r`: device, metric, tags, r (right axis) and h (hidden). */
export function lineToText(line: Line): string {
  const tags = Object.keys(line.tags).sort().map((name) => `${escaped(name)}=${escaped(line.tags[name]!)}`).join(',');
  const flags = `${line.side === 'right' ? 'r' : ''}${line.hidden ? 'h' : ''}`;
  const parts = [escaped(line.device), escaped(line.metric), tags, flags];
  while (parts[parts.length - 1] === '') parts.pop();
  return parts.join('~');
}

function tagsFrom(text: string): Record<string, string> | undefined {
  const tags: [string, string][] = [];
  for (const pair of text === '' ? [] : cut(text, ',')) {
    const [name, value, ...more] = cut(pair, '=');
    if (!name || value === undefined || more.length > 0) return undefined;
    tags.push([plain(name), plain(value)]);
  }
  return Object.fromEntries(tags);
}

/** undefined for a text that lineToText cannot have written: URLs come from anywhere. */
export function lineFromText(text: string): Line | undefined {
  const [device, metric, tagText = '', flags = '', ...more] = cut(text, '~');
  const tags = tagsFrom(tagText);
  if (!device || !metric || tags === undefined || more.length > 0 || !/^r?h?$/.test(flags)) return undefined;
  const side = flags.includes('r') ? 'right' : 'left';
  return { device: plain(device), metric: plain(metric), tags, side, hidden: flags.includes('h') };
}

/** Lines of a URL, each once, at most MOST_LINES; what is none is left out. */
export function linesFromTexts(texts: string[]): Line[] {
  const lines = texts.map(lineFromText).filter((line) => line !== undefined);
  return joined([], lines).lines;
}

/** Lines with others behind them. unused: how many found no place any more. */
export function joined(lines: Line[], more: Line[]): { lines: Line[]; unused: number } {
  const found = new Map(lines.map((line) => [keyOf(line), line]));
  let unused = 0;
  for (const line of more) {
    if (found.has(keyOf(line))) continue;
    if (found.size < MOST_LINES) found.set(keyOf(line), line);
    else unused += 1;
  }
  return { lines: [...found.values()], unused };
}

/** Strokes and spaces: a colour that comes again has another one. */
const DASHES: readonly number[][] = [[], [7, 4], [2, 3], [9, 3, 2, 3]];

/** How the line at this place is drawn; colour counts from 0. */
export function looksOf(place: number, colours: number): { colour: number; dash: number[] } {
  return { colour: place % colours, dash: DASHES[Math.floor(place / colours) % DASHES.length]! };
}
