/** A chart as an image: the canvas with a title above and the names of its lines below, for what is outside the canvas. */
import type { Tokens } from '../hooks';
import { visible } from '../text';
import type { ChartLine } from './values';

const PAD = 12;
const ROW = 20;
const SWATCH = 22;

interface Place {
  line: ChartLine;
  name: string;
  x: number;
  y: number;
}

/** Two axes have different numbers: a name says when it belongs to the right one. Pure. */
export function legendName({ label, side }: ChartLine, lines: ChartLine[]): string {
  const both = lines.some((line) => line.side !== side);
  return side === 'right' && both ? `${visible(label)} (right axis)` : visible(label);
}

/** Where the names stand: side by side, in as many rows as they need. Pure. */
export function legendPlaces(lines: ChartLine[], width: number, widthOf: (text: string) => number): Place[] {
  const places: Place[] = [];
  let [x, y] = [PAD, 0];
  for (const line of lines) {
    const name = legendName(line, lines);
    const needs = SWATCH + widthOf(name) + 2 * PAD;
    if (x > PAD && x + needs > width) [x, y] = [PAD, y + ROW];
    places.push({ line, name, x, y });
    x += needs;
  }
  return places;
}

function drawName(context: CanvasRenderingContext2D, { line, name, x, y }: Place, top: number, tokens: Tokens): void {
  context.strokeStyle = line.colour;
  context.lineWidth = line.faint ? 1 : 2;
  context.setLineDash(line.dash);
  context.beginPath();
  context.moveTo(x, top + y + ROW / 2);
  context.lineTo(x + SWATCH - 6, top + y + ROW / 2);
  context.stroke();
  context.fillStyle = tokens.text;
  context.fillText(name, x + SWATCH, top + y + ROW / 2);
}

/** PNG of the chart as it is drawn now, at the resolution of the screen. */
export function pngOf(chart: HTMLCanvasElement, lines: ChartLine[], title: string, tokens: Tokens): Promise<Blob> {
  const ratio = devicePixelRatio;
  const canvas = document.createElement('canvas');
  const context = canvas.getContext('2d')!;
  const font = `12px ${tokens.font}`;
  context.font = font;
  const width = chart.width / ratio;
  const places = legendPlaces(lines, width, (text) => context.measureText(text).width);
  const top = ROW + PAD;
  const below = top + chart.height / ratio;
  canvas.width = chart.width;
  canvas.height = Math.ceil((below + (places.at(-1)?.y ?? 0) + ROW + PAD) * ratio);
  context.scale(ratio, ratio);
  context.fillStyle = tokens.surface;
  context.fillRect(0, 0, width, canvas.height / ratio);
  context.drawImage(chart, 0, top, width, chart.height / ratio);
  context.font = font;
  context.textBaseline = 'middle';
  context.fillStyle = tokens.muted;
  context.fillText(title, PAD, PAD + ROW / 2);
  for (const place of places) drawName(context, place, below, tokens);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob === null ? reject(new Error('the browser made no image')) : resolve(blob)), 'image/png');
  });
}
