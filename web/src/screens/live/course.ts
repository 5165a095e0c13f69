/** What the live screen says of its stream: its state in words, and a short journal of what happened to it. Pure. */

import type { StreamState } from '../../api/sse';

export const MOST_NOTES = 30;

export interface Note {
  atMs: number;
  tone: 'ok' | 'warn' | 'bad';
  text: string;
}

/** lostSinceMs: null while the stream is open, or has never been. */
export interface Course {
  state: StreamState;
  everOpen: boolean;
  lostSinceMs: number | null;
  notes: readonly Note[];
}

export const BEGINNING: Course = { state: { kind: 'connecting' }, everOpen: false, lostSinceMs: null, notes: [] };

export function noted(course: Course, note: Note): Course {
  return { ...course, notes: [note, ...course.notes].slice(0, MOST_NOTES) };
}

/** The course after a change of state. Only what a person should know is noted: the loss and the return, not each try. */
export function moved(course: Course, state: StreamState, nowMs: number): Course {
  const next = { ...course, state };
  if (state.kind === 'open') {
    const back = { ...next, everOpen: true, lostSinceMs: null };
    if (course.lostSinceMs === null) return back;
    const away = seconds(nowMs - course.lostSinceMs);
    return noted(back, { atMs: nowMs, tone: 'ok', text: `Connected again after ${away}. Points of that time are not in the small charts.` });
  }
  if (state.kind !== 'lost' || course.lostSinceMs !== null) return next;
  const text = `${course.everOpen ? 'Connection lost' : 'Cannot connect'}: ${state.reason}`;
  return noted({ ...next, lostSinceMs: nowMs }, { atMs: nowMs, tone: 'bad', text });
}

function seconds(ms: number): string {
  return `${Math.max(1, Math.round(ms / 1000))} s`;
}

/** The state as one short sentence. */
export function stateWords(course: Course, nowMs: number): { tone: 'ok' | 'warn' | 'bad'; text: string } {
  const { state, lostSinceMs } = course;
  if (state.kind === 'open') return { tone: 'ok', text: 'Live' };
  if (state.kind === 'lost') {
    return { tone: 'bad', text: `${state.reason}. Trying again in ${seconds(state.retryAtMs - nowMs)}` };
  }
  return lostSinceMs === null
    ? { tone: 'warn', text: 'Connecting' }
    : { tone: 'warn', text: `Connecting again, lost for ${seconds(nowMs - lostSinceMs)}` };
}

/** The `ready` event: nodes that are heard, nodes that are not (yet). */
export function readyOf(data: unknown): { nodes: string[]; missing: string[] } {
  const told = (typeof data === 'object' && data !== null ? data : {}) as Record<string, unknown>;
  return { nodes: texts(told.nodes), missing: texts(told.missing) };
}

/** The `lost` event: points of a node were missed. */
export function lostWords(data: unknown): string {
  const told = (typeof data === 'object' && data !== null ? data : {}) as Record<string, unknown>;
  const node = typeof told.node === 'string' ? told.node : 'a node';
  const reason = typeof told.reason === 'string' && told.reason !== '' ? `: ${told.reason}` : '';
  const many = typeof told.messages === 'number' ? `at most ${told.messages} messages` : 'an unknown number of messages';
  return `Points of ${node} were missed, ${many}${reason}`;
}

function texts(data: unknown): string[] {
  return Array.isArray(data) ? data.filter((each): each is string => typeof each === 'string') : [];
}
