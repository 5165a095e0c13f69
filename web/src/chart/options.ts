/** The options of uPlot for a chart of ours: scales, axes, series, in the colours of the theme. */
import uPlot from 'uplot';
import type { Tokens } from '../hooks';
import { hasBand } from './align';
import { linearRange, linearTexts, linearTicks, logRange, logTexts, logTicks } from './ticks';
import type { ChartLine, Side } from './values';

export interface Look {
  lines: ChartLine[];
  band: boolean;
  log: { left: boolean; right: boolean };
  utc: boolean;
  tokens: Tokens;
}

const Y_AXIS_PX = 72;
/** On a phone, where longer labels are rarer than room. */
const NARROW_AXIS_PX = 54;
const NARROW_PX = 600;
/** Half of the last label of the time axis. */
const EDGE_PX = 26;
const TOP_PX = 10;

function hasRight(lines: ChartLine[]): boolean {
  return lines.some((line) => line.side === 'right');
}

function axisPx(width: number): number {
  return width < NARROW_PX ? NARROW_AXIS_PX : Y_AXIS_PX;
}

/** How many CSS pixels there are for values in a chart of this width. */
export function plotPixels(width: number, rightAxis: boolean): number {
  return Math.max(0, Math.floor(width - axisPx(width) - (rightAxis ? axisPx(width) : EDGE_PX)));
}

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/** By the step between ticks: text, then what is added where year, day, minute change. */
function stamp(step: number, text: string, year: string | null, day: string | null, minute: string | null): (string | number | null)[] {
  return [step, text, year, null, day, null, minute, null, 1];
}

const DATE = '\n{YYYY}-{MM}-{DD}';
const STAMPS = [
  stamp(365 * DAY, '{YYYY}', null, null, null),
  stamp(28 * DAY, '{MMM}', '\n{YYYY}', null, null),
  stamp(DAY, '{MM}-{DD}', '\n{YYYY}', null, null),
  stamp(MINUTE, '{HH}:{mm}', DATE, DATE, null),
  stamp(SECOND, '{HH}:{mm}:{ss}', DATE, DATE, null),
  stamp(1, ':{ss}.{fff}', `${DATE} {HH}:{mm}`, `${DATE} {HH}:{mm}`, '\n{HH}:{mm}'),
];

/** A colour that lets through what is below; the theme's are #rrggbb. */
export function faded(colour: string, alpha: number): string {
  const hex = Math.round(alpha * 255).toString(16).padStart(2, '0');
  return /^#[0-9a-f]{6}$/i.test(colour) ? colour + hex : `color-mix(in srgb, ${colour} ${Math.round(alpha * 100)}%, transparent)`;
}

function scale(log: boolean): uPlot.Scale {
  return log
    ? { distr: 3, log: 10, range: (_u, min, max) => logRange(min, max) }
    : { range: (_u, min, max) => linearRange(min, max) };
}

/** Labels are at least so far from each other. */
const Y_SPACE_PX = 30;

function yAxis(side: Side, log: boolean, tokens: Tokens): uPlot.Axis {
  const ticks = log ? logTicks : linearTicks;
  let heightPx = 0;
  return {
    scale: side,
    side: side === 'left' ? 3 : 1,
    size: (plot) => axisPx(plot.width),
    stroke: tokens.muted,
    font: `12px ${tokens.font}`,
    grid: { show: side === 'left', stroke: tokens.line, width: 1 },
    ticks: { stroke: tokens.line, width: 1 },
    splits: (_u, _axis, min, max) => ticks(min, max, Math.floor(heightPx / Y_SPACE_PX)),
    filter: (_u, splits) => splits,
    values: (_u, splits) => (log ? logTexts : linearTexts)(splits),
    // asked before splits, and has to find one of its own: else uPlot draws no axis
    incrs: (_u, _axis, _min, _max, height) => ((heightPx = height), [Number.MAX_VALUE]),
  };
}

function axes({ lines, log, tokens }: Look): uPlot.Axis[] {
  const time: uPlot.Axis = {
    stroke: tokens.muted,
    font: `12px ${tokens.font}`,
    grid: { stroke: tokens.line, width: 1 },
    ticks: { stroke: tokens.line, width: 1 },
    values: STAMPS as uPlot.Axis.Values,
    space: 70,
  };
  const right = hasRight(lines) ? [yAxis('right', log.right, tokens)] : [];
  return [time, yAxis('left', log.left, tokens), ...right];
}

/** The series of one line: where it has a band max and min, which only stretch the scale, then the line itself. */
function seriesOf(line: ChartLine, band: boolean, dots: () => number[]): uPlot.Series[] {
  const edge: uPlot.Series = { scale: line.side, paths: () => null, points: { show: false } };
  const own: uPlot.Series = {
    scale: line.side,
    stroke: line.faint ? faded(line.colour, 0.65) : line.colour,
    width: line.faint ? 1 : 1.5,
    dash: line.dash.length > 0 ? line.dash : undefined,
    points: { show: true, size: 4, fill: line.colour, width: 0, filter: () => dots() },
  };
  return hasBand(line, band) ? [edge, { ...edge }, own] : [own];
}

/** dots: the indices that get a dot, by line; asked at each drawing. */
export function optionsFor(look: Look, width: number, height: number, dots: (line: number) => number[]): uPlot.Options {
  const { lines, band, log, utc } = look;
  const series = lines.flatMap((line, index) => seriesOf(line, band, () => dots(index)));
  return {
    width,
    height,
    ms: 1,
    padding: [TOP_PX, hasRight(lines) ? 0 : EDGE_PX, 0, 0],
    tzDate: utc ? (ms: number) => uPlot.tzDate(new Date(ms), 'Etc/UTC') : (ms: number) => new Date(ms),
    legend: { show: false },
    scales: { x: { time: true, auto: false }, left: scale(log.left), right: scale(log.right) },
    axes: axes(look),
    series: [{}, ...series],
    cursor: { points: { show: false }, drag: { x: true, y: false, setScale: false, dist: 4 } },
  };
}

/** Two charts of the same shape differ in their data alone, so that uPlot can go on with what it has. */
export function shapeOf({ lines, band, log, utc }: Look): string {
  const each = lines.map((line) => [line.key, line.side, line.colour, line.dash, line.faint, hasBand(line, band)]);
  return JSON.stringify([each, log.left, log.right, utc]);
}
