/**
 * Range and ticks of an axis of values, for all that a float64 can be: uPlot's own know increments from 1e-32 to 1e31, and
 * show no label beyond. Pure.
 */
import { formatNumber } from '../format';

type Ends = [number, number];

/** Half of the largest float64: the length of an axis has to be one, too. */
const MOST = 8e307;
const LEAST = 1e-307;
const FREE_SHARE = 0.06;

function clamped(value: number): number {
  return Math.min(Math.max(value, -MOST), MOST);
}

/** All values with some room above and below; 0 stays the end where there is nothing beyond it. */
export function linearRange(least: number | null, most: number | null): Ends {
  if (least === null || most === null) return [0, 1];
  const [min, max] = [clamped(least), clamped(most)];
  const room = Math.max(min === max ? Math.abs(min) * 0.1 : (max - min) * FREE_SHARE, LEAST);
  if (min === 0 && max === 0) return [-1, 1];
  return [min >= 0 && min < room ? 0 : clamped(min - room), max <= 0 && -max < room ? 0 : clamped(max + room)];
}

const exponentOf = (value: number): number => Math.floor(Math.log10(value));
const powerOf = (exponent: number): number => Number(`1e${exponent}`);

/** At most about so many steps are between the ends of a logarithmic axis that shows less than a decade. */
const NEAR_STEPS = 5;

/** The whole steps around values that are less than a decade apart; none longer than the leading digit, so that 0 is never an end. */
function nearRange(least: number, most: number): Ends {
  const leading: TickStep = { amount: 1, exponent: exponentOf(least) };
  const fitting = least === most ? leading : stepFor(least, most, NEAR_STEPS);
  const step = lengthOf(fitting) < lengthOf(leading) ? fitting : leading;
  const low = Math.floor(least / lengthOf(step) + 1e-9);
  const high = Math.max(Math.ceil(most / lengthOf(step) - 1e-9), low + 1);
  return [multiple(low, step), multiple(high, step)];
}

/** Whole decades; closer where the values are less than one apart, so that these are no flat line. */
export function logRange(least: number | null, most: number | null): Ends {
  if (least === null || most === null) return [1, 10];
  if (least >= LEAST && most <= MOST && most < 10 * least) return nearRange(least, most);
  const low = Math.max(-307, exponentOf(Math.max(least, LEAST)));
  const above = exponentOf(Math.max(most, LEAST));
  const high = powerOf(above) < most ? above + 1 : above;
  return [powerOf(low), Math.min(powerOf(Math.max(high, low + 1)), Number.MAX_VALUE)];
}

interface TickStep {
  /** 1, 2 or 5 of 10 to the power of exponent. */
  amount: number;
  exponent: number;
}

function lengthOf({ amount, exponent }: TickStep): number {
  return amount * powerOf(exponent);
}

/** By its decimal text each is as round as it can be: 3 * 0.1 is not. */
function multiple(count: number, { amount, exponent }: TickStep): number {
  return Number(`${count * amount}e${exponent}`);
}

/** The shortest step of 1, 2 or 5 that gives at most so many ticks, and that float64 can tell apart here. */
function stepFor(min: number, max: number, most: number): TickStep {
  const rough = Math.max((max - min) / Math.max(1, most), Math.max(Math.abs(min), Math.abs(max)) * 2 ** -50, 1e-322);
  const exponent = exponentOf(rough);
  const amount = [1, 2, 5].find((one) => one * powerOf(exponent) >= rough * (1 - 1e-9));
  return amount === undefined ? { amount: 1, exponent: exponent + 1 } : { amount, exponent };
}

function multiplesWithin(min: number, max: number, step: TickStep): number[] {
  const first = Math.ceil(min / lengthOf(step) - 1e-9);
  const count = Math.min(Math.floor(max / lengthOf(step) + 1e-9) - first + 1, 100);
  return Array.from({ length: Math.max(0, count) }, (_, at) => multiple(first + at, step));
}

/** At most `most` round numbers from min to max (a few more where these are not whole steps). */
export function linearTicks(min: number, max: number, most: number): number[] {
  return multiplesWithin(min, max, stepFor(min, max, most));
}

/** Decades, as many as have room, with 2 and 5 between them where these have, too. */
function decadeTicks(min: number, max: number, most: number): number[] {
  const [low, high] = [Math.floor(Math.log10(min) + 1e-9), Math.round(Math.log10(max))];
  const every = Math.max(1, Math.ceil((high - low) / Math.max(1, most)));
  const between = 3 * Math.log10(max / min) <= most ? [1, 2, 5] : [1];
  const exponents = Array.from({ length: Math.floor((high - low) / every) + 1 }, (_, at) => low + at * every);
  return exponents.flatMap((exponent) => between.map((amount) => amount * powerOf(exponent)))
    .filter((tick) => tick >= min * (1 - 1e-9) && tick <= max * (1 + 1e-9));
}

/** Equal steps, no shorter than has room at the upper end, where they lie closest. */
function nearTicks(min: number, max: number, most: number): number[] {
  const room = max * (1 - (min / max) ** (1 / Math.max(1, most)));
  return multiplesWithin(min, max, stepFor(max - room, max, 1));
}

/** Decades; where less than one of them is seen, equal steps if these divide the axis more finely. */
export function logTicks(min: number, max: number, most: number): number[] {
  const decades = decadeTicks(min, max, most);
  if (max / min >= 10) return decades;
  const near = nearTicks(min, max, most);
  return near.length > decades.length ? near : decades;
}

export function logTexts(ticks: (number | null)[]): string[] {
  const [first, last] = [ticks[0] ?? NaN, ticks.at(-1) ?? NaN];
  if (last / first < 10) return linearTexts(ticks);
  return ticks.map((tick) => (tick === null ? '' : formatNumber(tick)));
}

/** As many digits as tell neighbours apart, which are equally far from each other. */
export function linearTexts(ticks: (number | null)[]): string[] {
  const known = ticks.filter((tick) => tick !== null);
  const step = known.length > 1 ? Math.abs(known[1]! - known[0]!) : 0;
  const size = Math.max(...known.map(Math.abs), 0);
  const digits = step > 0 && size > 0 ? Math.min(17, Math.max(6, exponentOf(size) - exponentOf(step) + 2)) : 6;
  return ticks.map((tick) => (tick === null ? '' : formatNumber(tick, digits)));
}
