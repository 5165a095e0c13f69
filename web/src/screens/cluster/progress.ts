/** How far moves and repairs are, and who drives them. Pure. */
import { formatTime } from '../../time';

export interface JobFigures {
  state: string;
  partitions: number;
  done: number;
  bytes: number;
  seconds: number;
}

export interface Progress {
  /** 0 to 1. */
  share: number;
  /** Bytes a second, null before anything came. */
  rate: number | null;
  /** Seconds that it takes yet at the same pace, null where nobody can tell. */
  leftS: number | null;
}

/** Of one job, from what its node says of it. */
export function progressOf(job: JobFigures): Progress {
  const total = Math.max(job.partitions, 0);
  const share = total ? Math.min(1, Math.max(0, job.done / total)) : job.state === 'done' ? 1 : 0;
  const isOpen = job.state === 'running' || job.state === 'waiting';
  const canTell = isOpen && share > 0 && share < 1 && job.seconds > 0;
  return {
    share,
    rate: job.seconds > 0 && job.bytes > 0 ? job.bytes / job.seconds : null,
    leftS: canTell ? (job.seconds * (1 - share)) / share : null,
  };
}

/** One way of partitions: from one node to another. source: null where the target is one more owner. */
export interface Way {
  source: number | null;
  target: number;
  partitions: number[];
}

/** Moves gathered by where they go from and to, the most first. moves: [partition, source or -1, target]. */
export function waysOf(moves: readonly (readonly number[])[]): Way[] {
  const ways = new Map<string, Way>();
  for (const [partition = -1, source = -1, target = -1] of moves) {
    const key = `${source} ${target}`;
    const way = ways.get(key) ?? { source: source < 0 ? null : source, target, partitions: [] };
    way.partitions.push(partition);
    ways.set(key, way);
  }
  return [...ways.values()].sort((a, b) => b.partitions.length - a.partitions.length || a.target - b.target);
}

/** The most moves that were open since there was none, to tell how many are done. total: 0 where nothing moves. */
export interface Change {
  total: number;
  open: number;
}

/** The change as it goes on, seen `open` moves. More moves than ever before: more were asked for. */
export function followChange(before: Change, open: number): Change {
  if (open === 0) return { total: 0, open: 0 };
  return { total: Math.max(before.open === 0 ? 0 : before.total, open), open };
}

/** What ringctl notes of itself ends in marks for programs: a start, the time in UTC, a token. */
const NOTE = /^(.*?)(?: \(begun \d+ \S+\))?, last heard (\S+Z), \S+$/;

/** Who drives, for people; a note of another form as it is. */
export function driverWords(note: string): string {
  const found = NOTE.exec(note);
  return found === null ? note : `${found[1]}, last heard ${formatTime(Date.parse(found[2]!))}`;
}
