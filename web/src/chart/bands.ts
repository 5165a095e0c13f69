/**
 * The bands from min to max below the lines. uPlot's own bands cut one filled path by another for each of them, which
 * costs more than everything else of a frame; here each is one filled outline.
 */
import type uPlot from 'uplot';
import { hasBand, type Aligned, type Column } from './align';
import { faded } from './options';
import { firstFrom, type ChartLine } from './values';

type Place = (value: number) => number;

/** Values of a scale to pixels of the canvas. Pure but for reading the plot. */
function placer(plot: uPlot, scaleKey: string): Place {
  const scale = plot.scales[scaleKey]!;
  const { min, max } = { min: scale.min!, max: scale.max! };
  const [from, to] = [plot.valToPos(min, scaleKey, true), plot.valToPos(max, scaleKey, true)];
  if (scale.distr !== 3) return (value) => from + ((value - min) / (max - min)) * (to - from);
  const [low, high] = [Math.log10(min), Math.log10(max)];
  return (value) => from + ((Math.log10(value) - low) / (high - low)) * (to - from);
}

/** Indices of values that hang together: null breaks, undefined is skipped. Pure. */
export function runs(values: Column, from: number, to: number): number[][] {
  const found: number[][] = [];
  let run: number[] = [];
  for (let at = from; at < to; at++) {
    if (typeof values[at] === 'number') run.push(at);
    else if (values[at] === null && run.length > 0) {
      found.push(run);
      run = [];
    }
  }
  if (run.length > 0) found.push(run);
  return found;
}

function outline(context: CanvasRenderingContext2D, run: number[], x: (at: number) => number, top: Place, bottom: Place): void {
  if (run.length === 1) {
    const [at] = run as [number];
    context.rect(x(at) - 1, top(at), 2, bottom(at) - top(at));
    return;
  }
  context.moveTo(x(run[0]!), top(run[0]!));
  for (let i = 1; i < run.length; i++) context.lineTo(x(run[i]!), top(run[i]!));
  for (let i = run.length - 1; i >= 0; i--) context.lineTo(x(run[i]!), bottom(run[i]!));
  context.closePath();
}

/** Draws the bands of all lines that have one, cut to the plot. */
export function drawBands(plot: uPlot, lines: ChartLine[], { times, columns }: Aligned, wanted: boolean): void {
  const { ctx: context, bbox } = plot;
  const { min, max } = plot.scales.x!;
  if (min === undefined || max === undefined) return;
  const [from, to] = [Math.max(0, firstFrom(times, min!) - 1), Math.min(times.length, firstFrom(times, max!) + 1)];
  const placeX = placer(plot, 'x');
  context.save();
  context.beginPath();
  context.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  context.clip();
  lines.forEach((line, index) => {
    if (!hasBand(line, wanted) || columns[index]?.length !== 3) return;
    const [most, least] = columns[index] as [Column, Column, Column];
    const placeY = placer(plot, line.side);
    context.fillStyle = faded(line.colour, lines.length > 6 ? 0.1 : 0.18);
    context.beginPath();
    for (const run of runs(least, from, to)) {
      outline(context, run, (at) => placeX(times[at]!), (at) => placeY(most[at] as number), (at) => placeY(least[at] as number));
    }
    context.fill();
  });
  context.restore();
}
