/** Dead letters of all bridges, gathered by reason. Pure. */
import type { DeadBridge, DeadRow } from '../../api/types';

export interface DeadReason {
  reason: string;
  count: number;
  bridges: string[];
  /** The newest first. */
  samples: (DeadRow['samples'][number] & { bridge: string })[];
}

/** As many samples of a reason are shown. */
export const MOST_SAMPLES = 20;

function timeOf(time: number | string | null): number {
  return typeof time === 'number' ? time : time === null ? 0 : Date.parse(time) / 1000 || 0;
}

/** The most frequent first. */
export function byReason(rows: readonly DeadRow[]): DeadReason[] {
  const found = new Map<string, DeadReason>();
  for (const row of rows) {
    const reason = found.get(row.reason) ?? { reason: row.reason, count: 0, bridges: [], samples: [] };
    reason.count += row.count;
    reason.bridges.push(row.bridge);
    reason.samples.push(...row.samples.map((sample) => ({ ...sample, bridge: row.bridge })));
    found.set(row.reason, reason);
  }
  for (const reason of found.values()) {
    reason.samples.sort((a, b) => timeOf(b.time) - timeOf(a.time));
    reason.samples.splice(MOST_SAMPLES);
  }
  return [...found.values()].sort((a, b) => b.count - a.count || (a.reason < b.reason ? -1 : 1));
}

/** What has to be known of the bridges' dead letters, beside what lies in them. */
export function deadRemarks(bridges: readonly DeadBridge[]): string[] {
  return bridges.flatMap((each) => [
    ...(each.error ? [`${each.bridge}: ${each.waiting} records could not be written yet: ${each.error}`] : []),
    ...(each.ready ? [] : [`${each.bridge} is not heard; this is what it told last`]),
    ...(each.uncounted_bytes ? [`${each.bridge} has older files that are not counted here`] : []),
  ]);
}
