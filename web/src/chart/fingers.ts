/** Fingers on a chart: one moves it, two zoom as well; what is below each stays below it. The page itself scrolls up and down. */
import type { Mover } from './mover';
import type { Window } from './values';
import { kept, panned, spanOf } from './window';

/** Fingers closer together than this would zoom wildly. */
const LEAST_APART_PX = 20;

/** The window after fingers went from some pixels to others, of a chart so wide. Only the first two count. Pure. */
export function underFingers(from: Window, begin: number[], now: number[], width: number): Window {
  if (begin.length < 2) return panned(from, (begin[0]! - now[0]!) / width);
  const apart = (at: number[]) => Math.max(Math.abs(at[1]! - at[0]!), LEAST_APART_PX);
  const middle = (at: number[]) => (at[0]! + at[1]!) / 2 / width;
  const span = (spanOf(from) * apart(begin)) / apart(now);
  const startMs = from.startMs + middle(begin) * spanOf(from) - middle(now) * span;
  return kept({ startMs, endMs: startMs + span });
}

/** Moves with the fingers on an element; shown: the window while nothing moves. */
export function followFingers(element: HTMLElement, mover: Mover, shown: () => Window): void {
  const fingers = new Map<number, number>(); // where each is, in pixels from the left of the element
  let begin: number[] = [];
  let from = shown();
  const placeOf = (event: PointerEvent): number => event.clientX - element.getBoundingClientRect().left;
  /** Another finger, or one less: what is shown now is what the others move. */
  const anew = (): void => {
    begin = [...fingers.values()];
    from = mover.window ?? shown();
  };
  const down = (event: PointerEvent): void => {
    if (event.pointerType !== 'touch') return;
    fingers.set(event.pointerId, placeOf(event));
    mover.hold();
    anew();
  };
  const moved = (event: PointerEvent): void => {
    if (!fingers.has(event.pointerId)) return;
    fingers.set(event.pointerId, placeOf(event));
    mover.to(underFingers(from, begin, [...fingers.values()], element.clientWidth));
  };
  const up = (event: PointerEvent): void => {
    if (!fingers.delete(event.pointerId)) return;
    if (fingers.size === 0) mover.release();
    else anew();
  };
  element.addEventListener('pointerdown', down);
  element.addEventListener('pointermove', moved);
  element.addEventListener('pointerup', up);
  element.addEventListener('pointercancel', up);
}
