/**
 * Moves a chart under a hand: the drawing follows at each frame, whoever loads data hears of it when the hand rests (an
 * answer that comes meanwhile would cost frames). While it is active the window of the chart is the mover's, not the one that was handed in.
 */
import type { Window } from './values';

/** A hand that has not moved for so long rests. */
const REST_MS = 150;
/** One that holds on is given longer: to load and draw below it costs the frames of its next move. */
const HELD_REST_MS = 500;

export class Mover {
  private target: Window | undefined;
  private frame = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private held = false;

  constructor(private readonly draw: (window: Window) => void, private readonly tell: (window: Window) => void) {}

  /** Where it has got to; undefined while nothing moves. */
  get window(): Window | undefined {
    return this.target;
  }

  to(window: Window): void {
    this.target = window;
    if (this.frame === 0) {
      this.frame = requestAnimationFrame(() => {
        this.frame = 0;
        if (this.target !== undefined) this.draw(this.target);
      });
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.report(), this.held ? HELD_REST_MS : REST_MS);
  }

  /** From now on it stays active until release(), whether it moves or not. */
  hold(): void {
    this.held = true;
  }

  get isHeld(): boolean {
    return this.held && this.target !== undefined;
  }

  release(): void {
    this.held = false;
    this.report();
  }

  private report(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    const { target } = this;
    if (target === undefined) return;
    if (!this.held) this.target = undefined;
    this.tell(target);
  }

  stop(): void {
    clearTimeout(this.timer);
    cancelAnimationFrame(this.frame);
    this.timer = undefined;
    this.frame = 0;
    this.target = undefined;
  }
}
