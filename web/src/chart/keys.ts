/** What the keys do in a chart that has the focus. Pure. */

export type Act =
  | { kind: 'pan'; share: number }
  | { kind: 'zoom'; factor: number }
  | { kind: 'step'; by: number }
  | { kind: 'back' }
  | { kind: 'leave' };

export const KEYS_HELP = 'Arrow keys move in time, Page Up and Page Down by a whole window, plus and minus zoom, '
  + 'Backspace goes back to the window before the last zoom. Shift and an arrow key step from value to value, Escape takes the marker away.';

const PLAIN: Record<string, Act> = {
  ArrowLeft: { kind: 'pan', share: -0.1 },
  ArrowRight: { kind: 'pan', share: 0.1 },
  PageUp: { kind: 'pan', share: -1 },
  PageDown: { kind: 'pan', share: 1 },
  ArrowUp: { kind: 'zoom', factor: 0.5 },
  ArrowDown: { kind: 'zoom', factor: 2 },
  '+': { kind: 'zoom', factor: 0.5 },
  '=': { kind: 'zoom', factor: 0.5 },
  '-': { kind: 'zoom', factor: 2 },
  Backspace: { kind: 'back' },
  Escape: { kind: 'leave' },
};

const WITH_SHIFT: Record<string, Act> = {
  ArrowLeft: { kind: 'step', by: -1 },
  ArrowRight: { kind: 'step', by: 1 },
  PageUp: { kind: 'step', by: -10 },
  PageDown: { kind: 'step', by: 10 },
  '+': { kind: 'zoom', factor: 0.5 },
};

export interface Pressed {
  key: string;
  shiftKey: boolean;
  ctrlKey: boolean;
  metaKey: boolean;
  altKey: boolean;
}

/** undefined: not a key of the chart, the browser may have it. */
export function actOf(pressed: Pressed): Act | undefined {
  if (pressed.ctrlKey || pressed.metaKey || pressed.altKey) return undefined;
  return (pressed.shiftKey ? WITH_SHIFT : PLAIN)[pressed.key];
}
