/**
 * A chart that is moved in time without being drawn anew: its picture, time axis and all, is shifted by the compositor, for
 * to draw twenty lines of thousands of points takes longer than a frame where there is no graphics card. What comes into
 * view stays empty until the hand rests; there are no values for it yet anyhow.
 */
import type uPlot from 'uplot';
import { spanOf } from './window';
import type { Window } from './values';

/** How many CSS pixels a picture of `from` has to go to the right to stand where it does in `to`. Pure. */
export function shiftPx(from: Window, to: Window, width: number): number {
  return ((from.startMs - to.startMs) / spanOf(from)) * width;
}

/** Whether two windows differ in place alone. Pure. */
export function isMove(from: Window, to: Window): boolean {
  return Math.abs(spanOf(from) - spanOf(to)) <= spanOf(from) * 1e-6 + 1e-3;
}

export class Glide {
  private frame: HTMLDivElement | undefined;
  private picture: HTMLCanvasElement | undefined;
  private from: Window | undefined;

  constructor(private readonly plot: uPlot) {}

  /** Shows the plot, which is drawn for `drawn`, as if it were drawn for `window`. */
  to(drawn: Window, window: Window): void {
    if (this.frame === undefined) this.begin(drawn);
    if (this.picture === undefined || this.from === undefined) return;
    this.picture.style.transform = `translateX(${shiftPx(this.from, window, this.plot.over.clientWidth)}px)`;
  }

  /** The plot itself is seen again. */
  end(): void {
    this.frame?.remove();
    this.frame = undefined;
  }

  private begin(drawn: Window): void {
    const { bbox, ctx: { canvas }, over } = this.plot;
    const ratio = canvas.width / canvas.clientWidth;
    const picture = document.createElement('canvas');
    picture.width = bbox.width;
    picture.height = canvas.height;
    picture.getContext('2d')?.drawImage(canvas, bbox.left, 0, bbox.width, canvas.height, 0, 0, bbox.width, canvas.height);
    const frame = document.createElement('div');
    frame.className = 'chart-glide';
    frame.append(picture);
    for (const [element, left] of [[frame, bbox.left / ratio], [picture, 0]] as const) {
      element.style.left = `${left}px`;
      element.style.width = `${bbox.width / ratio}px`;
      element.style.height = `${canvas.height / ratio}px`;
    }
    over.before(frame);
    this.frame = frame;
    this.picture = picture;
    this.from = drawn;
  }
}
