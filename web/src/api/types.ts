/** What the API answers, as docs/openapi.yaml says it. Times are in the unit that was asked for (`s` unless said otherwise). */

export interface Missing {
  node: string;
  partitions: number;
  reason: string;
}

export interface Coverage {
  partitions_asked: number;
  partitions_answered: number;
  complete: boolean;
  epoch: number;
  delete_number: number;
  nodes: string[];
  missing: Missing[];
  marks_s_ago?: number;
  verified?: boolean;
  compared?: { owners: number; series_joined: number; reason: string };
}

export type Tags = Record<string, string>;
/** A text is exact, a glob (`*`, `?`) or `~regex`; `{exact}` takes it literally. */
export type OnePattern = string | { exact: string };
export type Pattern = OnePattern | OnePattern[];
export type Time = number | string;
export type Figure = number | null;

export interface QueryRequest {
  device_id: Pattern;
  metric_name: Pattern;
  operation: string | string[];
  start_time?: Time | null;
  end_time?: Time | null;
  tags?: Record<string, Pattern> | null;
  more_tags?: boolean;
  interval?: string | number;
  offset?: string | number;
  timezone?: string;
  max_points?: number;
  group_by?: string | string[];
  fill?: string | number;
  limit?: number;
  order?: 'asc' | 'desc';
  time_unit?: 's' | 'ms' | 'us' | 'ns' | 'rfc3339';
  allow_partial?: boolean;
  explain?: boolean;
  timeout_s?: number;
  consistency?: 'current' | 'verified';
}

/** A row by group and bucket: `time`, the columns of group_by, a figure by operation, and `count`. */
export interface QueryRow {
  time?: Time;
  count: number;
  device_id?: string | null;
  metric_name?: string | null;
  tags?: Tags;
  [column: string]: unknown;
}

export interface QueryAnswer {
  device_id: Pattern;
  metric_name: Pattern;
  operation: string | string[];
  start_time: Time;
  end_time: Time;
  range?: { start_time: Time | null; end_time: Time | null };
  tags?: Record<string, Pattern>;
  /** Without rows: a number, or figures by operation. */
  result?: Figure | Record<string, Figure>;
  interval?: string;
  group_by?: string[];
  rows?: QueryRow[];
  more?: boolean;
  count: number;
  duration_ns: number;
  coverage: Coverage;
  explain?: Record<string, unknown>;
}

export interface SeriesRow {
  device_id: string;
  metric_name: string;
  tags: Tags;
  /** These are absent with details=false. */
  count?: number;
  first_time?: number | null;
  last_time?: number | null;
  last?: Figure;
  expected_interval_s?: Figure;
}

export interface Page {
  next_cursor: string | null;
  hint?: string;
  coverage: Coverage;
}

export interface SeriesPage extends Page {
  series: SeriesRow[];
}

export interface RowsPage<T> extends Page {
  rows: T[];
}

interface Counted {
  series: number;
  count: number;
  first_time: number | null;
  last_time: number | null;
  last: Figure;
}

export interface DeviceRow extends Counted {
  device_id: string;
}

export interface GapRow {
  device_id: string;
  metric_name: string;
  tags: Tags;
  start_time: number;
  end_time: number;
  duration_s: number;
  expected_interval_s: number | null;
  ongoing: boolean;
}

export interface SamplesSeries {
  device_id: string;
  metric_name: string;
  tags: Tags;
  times: number[];
  values: number[];
}

export interface Samples {
  series: SamplesSeries[];
  next_cursor: string | null;
  coverage: Coverage;
}

/** The same with time_unit rfc3339. */
export interface ExactSamples {
  series: (Omit<SamplesSeries, 'times'> & { times: string[] })[];
  next_cursor: string | null;
}

/** What a node or bridge says of itself: the fields differ with who says it, so they are looked at before they are used. */
export interface WorkerStatus {
  ready?: boolean;
  reason?: string;
  connected?: boolean;
  age_s?: number;
  [field: string]: unknown;
}

export interface Status {
  ready: boolean;
  version: string;
  cluster: string | null;
  epoch: number;
  delete_number: number;
  reason?: string;
  nodes: Record<string, WorkerStatus>;
  bridges: Record<string, WorkerStatus>;
  query: Record<string, unknown>;
}

export interface RingNode {
  id: string;
  endpoint: string;
  zone: string;
  weight: number;
  state: string;
  partitions: number;
  first_owner_of?: number;
}

export interface RingInfo {
  cluster?: string;
  epoch: number;
  hash?: string;
  partitions: number;
  replication: number;
  delete_number: number;
  deletes?: number;
  behind?: Record<string, string>;
  nodes: RingNode[];
  /** With owners=true: by partition, indices into nodes. */
  owners?: number[][];
  /** With owners=true: partition, index of the source or -1, index of the target. */
  moves?: [number, number, number][];
}

export interface Job {
  node: string;
  job: string;
  kind: string;
  state: string;
  peer: string | null;
  partitions: number;
  done: number;
  points: number;
  blocks: number;
  bytes: number;
  seconds: number;
  error: string | null;
  [field: string]: unknown;
}

export interface Repair {
  node: string;
  /** Seconds since the epoch; null: never yet. */
  last_s: number | null;
  [field: string]: unknown;
}

/** Partitions on their way from one node to another; source null: no owner leaves. */
export interface WayTold {
  source: string | null;
  target: string;
  partitions: number;
}

/** A node that did not answer. */
export interface Absent {
  node: string;
  reason: string;
}

export interface MovesAnswer {
  epoch: number;
  /** Who drives moves, in words; null: nobody. */
  driver: string | null;
  driver_error: string | null;
  moves: WayTold[];
  jobs: Job[];
  repairs: Repair[];
  missing: Absent[];
}

export interface HistoryRow {
  epoch: number;
  saved_at: number | string | null;
  summary: string;
}

export interface HistoryAnswer {
  rows: HistoryRow[];
}

export interface DeadLetterSample {
  time: number | string | null;
  topic: string;
  payload: string;
  detail: string;
  device?: string;
  payload_bytes?: number;
}

export interface DeadRow {
  bridge: string;
  reason: string;
  count: number;
  samples: DeadLetterSample[];
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

export interface Me {
  name: string | null;
  scopes: string[];
  /** Whether the server wants tokens at all. */
  auth: boolean;
  version: string;
  /** Seconds since the epoch, by the server's clock. */
  now: number;
}

export interface WouldGo {
  dry_run: true;
  series: number;
  points: number;
  first_time: number | null;
  last_time: number | null;
  of_series: { device_id: string; metric_name: string; tags: Tags; points: number; first_time: number | null; last_time: number | null }[];
  coverage: Coverage;
}

export interface NotAdopted {
  worker: string;
  reason: string;
}

export interface Deleted {
  number: number;
  device_id: string;
  metric_name: string | null;
  tags: Tags | null;
  start_time: number | null;
  end_time: number | null;
  matched: { series: number; points: number; complete: boolean } | null;
  complete: boolean;
  adopted: string[];
  waiting: NotAdopted[];
  unreachable: NotAdopted[];
}

export interface DeleteRecord {
  number: number;
  device_id: string;
  metric_name: string | null;
  tags: Tags | null;
  start_time: number | null;
  end_time: number | null;
}

export interface Deletes {
  epoch: number;
  deletes: DeleteRecord[];
}
