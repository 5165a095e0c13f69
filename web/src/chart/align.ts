/**
 * Lines as the columns that uPlot draws: one array of times for all of them, and for each line its values at these.
 * `undefined` is a time of another line, over which this one is drawn on; `null` is a gap, where it breaks. Pure.
 */
import { drawnAt, gapBehind, usualMs, type ChartLine, type Values } from './values';

export type Column = (number | null | undefined)[];

export interface Aligned {
  times: number[];
  /** For each line its columns: [avg], or [max, min, avg] where it has a band. */
  columns: Column[][];
  /** For each line the indices that get a dot of their own. */
  dots: number[][];
  /** How many values are not drawn, for a logarithm has no place for them. */
  unshown: number;
}

interface Placed {
  values: Values;
  at: number[];
  gaps: boolean[];
}

/** Lines of points with fewer than this are drawn with a dot for each. */
const FEW_POINTS = 150;

export function hasBand(line: ChartLine, wanted: boolean): boolean {
  return wanted && !line.faint && line.values.bucketMs > 0;
}

function placed(values: Values): Placed {
  const usual = usualMs(values);
  return {
    values,
    at: values.times.map((_, at) => drawnAt(values, at)),
    gaps: values.times.map((_, at) => at + 1 < values.times.length && gapBehind(values, at, usual)),
  };
}

/** All times of all lines and one within each gap, ascending, each once. */
function union(all: Placed[]): number[] {
  const times: number[] = [];
  for (const { at, gaps } of all) {
    for (let i = 0; i < at.length; i++) {
      times.push(at[i]!);
      if (gaps[i]) times.push((at[i]! + at[i + 1]!) / 2);
    }
  }
  const sorted = Float64Array.from(times).sort();
  return Array.from(sorted.filter((time, i) => i === 0 || time !== sorted[i - 1]));
}

/** For each time of the chart the index of the line's value there, -1 for none, -2 within a gap. */
function places(line: Placed, times: number[]): Int32Array {
  const found = new Int32Array(times.length).fill(-1);
  let next = 0;
  for (let i = 0; i < times.length; i++) {
    if (next < line.at.length && line.at[next] === times[i]) found[i] = next++;
    else if (next > 0 && next < line.at.length && line.gaps[next - 1]) found[i] = -2;
  }
  return found;
}

function column(found: Int32Array, figures: number[], log: boolean): Column {
  const made: Column = new Array(found.length);
  for (let i = 0; i < found.length; i++) {
    const at = found[i]!;
    const value = at >= 0 ? figures[at]! : undefined;
    made[i] = value === undefined ? (at === -2 ? null : undefined) : log && value <= 0 ? null : value;
  }
  return made;
}

/** Indices of values with a break (or nothing) on both sides: a line through them would have no length. */
export function lonely(values: Column): number[] {
  const found: number[] = [];
  let before = -1; // of the value before, -1 where the line is broken
  let alone = false;
  for (let i = 0; i < values.length; i++) {
    if (values[i] === undefined) continue;
    if (values[i] === null) {
      if (alone) found.push(before);
      alone = false;
      before = -1;
    } else {
      alone = before === -1;
      before = i;
    }
  }
  if (alone) found.push(before);
  return found;
}

function dotsOf(line: ChartLine, values: Column): number[] {
  if (line.values.bucketMs > 0 || line.values.times.length >= FEW_POINTS) return lonely(values);
  return values.flatMap((value, i) => (typeof value === 'number' ? [i] : []));
}

/** band: whether buckets show min to max; log: which sides have a logarithmic scale. */
export function align(lines: ChartLine[], band: boolean, log: { left: boolean; right: boolean }): Aligned {
  const all = lines.map((line) => placed(line.values));
  const times = union(all);
  const result: Aligned = { times, columns: [], dots: [], unshown: 0 };
  lines.forEach((line, index) => {
    const { values } = line;
    const found = places(all[index]!, times);
    const made = (figures: number[]) => column(found, figures, log[line.side]);
    const avg = made(values.avg);
    result.columns.push(hasBand(line, band) ? [made(values.max), made(values.min), avg] : [avg]);
    result.dots.push(dotsOf(line, avg));
    if (log[line.side]) result.unshown += values.avg.filter((value) => value <= 0).length;
  });
  return result;
}
