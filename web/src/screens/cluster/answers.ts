/** What the routes of this screen answer, as docs/http-api.md says it, and how fields of a status are looked at. */
import type { DeadLetterSample, HistoryRow, Job, Repair, RingInfo, RingNode, Status, WorkerStatus } from '../../api/types';

export type { DeadLetterSample, HistoryRow, Job, Repair, RingInfo, RingNode, Status, WorkerStatus };

export interface WayTold {
  source: string | null;
  target: string;
  partitions: number;
}

export interface Absent {
  node: string;
  reason: string;
}

export interface MovesAnswer {
  epoch: number;
  driver: string | null;
  driver_error: string | null;
  moves: WayTold[];
  jobs: Job[];
  repairs: Repair[];
  missing: Absent[];
}

export interface HistoryAnswer {
  rows: HistoryRow[];
}

export interface DeadRow {
  bridge: string;
  reason: string;
  count: number;
  samples: (DeadLetterSample & { device?: string; payload_bytes?: number })[];
}

export interface DeadBridge {
  bridge: string;
  ready: boolean;
  age_s: number;
  bytes: number;
  limit_bytes: number;
  waiting: number;
  error: string;
  uncounted_bytes: number;
}

export interface DeadAnswer {
  rows: DeadRow[];
  bridges?: DeadBridge[];
  missing?: Absent[];
}

export type Fields = Record<string, unknown>;

/** A number of a status, null where it has none of that name. */
export function figure(of: Fields | undefined, name: string): number | null {
  const value = of?.[name];
  return typeof value === 'number' && Number.isFinite(value) ? value : null;
}

/** A text of a status, '' where it has none of that name. */
export function words(of: Fields | undefined, name: string): string {
  const value = of?.[name];
  return typeof value === 'string' ? value : '';
}

/** A map within a status, empty where it has none of that name. */
export function part(of: Fields | undefined, name: string): Fields {
  const value = of?.[name];
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Fields) : {};
}

/** A list of texts within a status. */
export function texts(of: Fields | undefined, name: string): string[] {
  const value = of?.[name];
  return Array.isArray(value) ? value.filter((each): each is string => typeof each === 'string') : [];
}
