/** How many owners of each partition are there and current, against how many there should be. Pure. */
import { formatCount } from '../../format';

export type Care = 'full' | 'reduced' | 'none';

export interface Gaps {
  /** By partition: all owners that there should be answer and lack nothing; fewer do; none does. */
  care: Care[];
  /** Partitions that the ring gives fewer owners than it should. */
  short: number;
  /** Partitions with an owner that does not answer or is behind, but with one that can be asked. */
  reduced: number;
  /** Partitions of which nobody can be asked. */
  none: number;
  /** By node that is missing: how many partitions it is missed by. */
  missedBy: Map<number, number>;
}

/** owners: by partition, indices of nodes. isThere: by node, whether it answers and lacks nothing. */
export function gapsOf(
  owners: readonly (readonly number[])[],
  replication: number,
  isThere: readonly boolean[],
): Gaps {
  const gaps: Gaps = { care: [], short: 0, reduced: 0, none: 0, missedBy: new Map() };
  for (const of of owners) {
    const there = of.filter((node) => isThere[node]).length;
    for (const node of of) if (!isThere[node]) gaps.missedBy.set(node, (gaps.missedBy.get(node) ?? 0) + 1);
    const care: Care = there === 0 ? 'none' : there < replication ? 'reduced' : 'full';
    if (of.length < replication) gaps.short += 1;
    if (care === 'none') gaps.none += 1;
    if (care === 'reduced') gaps.reduced += 1;
    gaps.care.push(care);
  }
  return gaps;
}

/** The gaps in a sentence. */
export function gapsText(gaps: Gaps, replication: number): string {
  const total = formatCount(gaps.care.length);
  const copies = `${replication} ${replication === 1 ? 'owner' : 'owners'}`;
  if (gaps.none === 0 && gaps.reduced === 0) return `Every partition has its ${copies}.`;
  const said: string[] = [];
  if (gaps.none) said.push(`${formatCount(gaps.none)} of ${total} partitions have no owner that answers: their points cannot be read`);
  if (gaps.reduced) said.push(`${formatCount(gaps.reduced)} of ${total} partitions have fewer than ${copies} that answer and lack nothing`);
  if (gaps.short) said.push(`${formatCount(gaps.short)} have fewer owners in the ring than they should`);
  return `${said.join('; ')}.`;
}
