/** A small line of the last values on a canvas. null is a gap. */
import { useEffect, useRef } from 'react';
import { useTokens } from '../hooks';
import { formatNumber } from '../format';

interface SparkProps {
  values: (number | null)[];
  width: number;
  height: number;
  /** What it is of, for those who do not see it. */
  label: string;
  color?: string;
}

function bounds(values: (number | null)[]): { least: number; most: number } {
  let least = Infinity;
  let most = -Infinity;
  for (const value of values) {
    if (value === null || !Number.isFinite(value)) continue;
    if (value < least) least = value;
    if (value > most) most = value;
  }
  return { least, most };
}

function draw(canvas: HTMLCanvasElement, { values, width, height }: SparkProps, color: string): void {
  const context = canvas.getContext('2d');
  if (context === null) return;
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  context.scale(density, density);
  context.clearRect(0, 0, width, height);
  const { least, most } = bounds(values);
  if (least > most) return;
  const step = values.length > 1 ? (width - 4) / (values.length - 1) : 0;
  // halves: the difference of two large floats of opposite signs may be infinite
  const reach = most / 2 - least / 2;
  const at = (value: number) => (reach === 0 ? height / 2 : 2 + (height - 4) * (1 - (value / 2 - least / 2) / reach));
  context.strokeStyle = color;
  context.fillStyle = color;
  context.lineWidth = 1.5;
  context.beginPath();
  let drawing = false;
  values.forEach((value, index) => {
    if (value === null || !Number.isFinite(value)) return void (drawing = false);
    if (drawing) context.lineTo(2 + index * step, at(value));
    else context.moveTo(2 + index * step, at(value));
    drawing = true;
  });
  context.stroke();
  const last = values[values.length - 1];
  if (last !== null && last !== undefined) context.fillRect(2 + (values.length - 1) * step - 1.5, at(last) - 1.5, 3, 3);
}

export function Spark(props: SparkProps) {
  const { values, width, height, label, color } = props;
  const ref = useRef<HTMLCanvasElement>(null);
  const tokens = useTokens();
  const line = color ?? tokens.series[0] ?? '';
  useEffect(() => {
    if (ref.current !== null) draw(ref.current, props, line);
  }, [values, width, height, line]);
  const { least, most } = bounds(values);
  const words = least > most ? `${label}: no values` : `${label}: ${formatNumber(least)} to ${formatNumber(most)}`;
  return <canvas ref={ref} className="spark" role="img" aria-label={words} style={{ width, height }} />;
}
