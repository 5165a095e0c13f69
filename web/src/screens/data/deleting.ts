/** A delete from the dry run to its last word: what is asked, what has to be typed, what the answers mean. Pure. */

import type { ApiError } from '../../api/client';
import type { Deleted, DeleteRecord, Me, Status, Tags, WouldGo } from '../../api/types';
import { formatCount } from '../../format';
import { apiTime, rangeToMs, type Range } from '../../time';

/** metric null: every metric. tags null: whatever the tags. */
export interface Target {
  device: string;
  metric: string | null;
  tags: Tags | null;
}

/** Milliseconds, both ends included; null is open. */
export interface Times {
  startMs: number | null;
  endMs: number | null;
}

export function mayDelete(me: Me): boolean {
  return !me.auth || me.scopes.includes('delete') || me.scopes.includes('admin');
}

/** The times that a range means now. They are fixed before the dry run, so that the delete takes what was shown. */
export function fixedTimes(range: Range, nowMs: number): Times {
  const { startMs, endMs } = rangeToMs(range, nowMs);
  return { startMs: startMs === null ? null : Math.floor(startMs), endMs: endMs === null ? null : Math.floor(endMs) };
}

function timeText(ms: number | null): string | undefined {
  return ms === null ? undefined : apiTime(ms);
}

/** The body of DELETE /api/v1/series. Every text is meant literally, whatever characters it has. */
export function deleteBody(target: Target, times: Times, dryRun: boolean): Record<string, unknown> {
  const tags = target.tags;
  return {
    device_id: { exact: target.device },
    metric_name: target.metric === null ? undefined : { exact: target.metric },
    tags: tags === null ? undefined : Object.fromEntries(Object.keys(tags).map((name) => [name, { exact: tags[name] }])),
    start_time: timeText(times.startMs),
    end_time: timeText(times.endMs),
    dry_run: dryRun ? true : undefined,
    time_unit: 'ms',
  };
}

/** What a person types to confirm: the device's id, or, where no keyboard types that, the number of points. */
export function phraseOf(device: string, points: number): string {
  return /^[!-~](?:[ -~]{0,62}[!-~])?$/.test(device) && !/ {2}/.test(device) ? device : `delete ${points} points`;
}

export function isTyped(typed: string, phrase: string): boolean {
  return typed.trim() === phrase;
}

export function counted(count: number, one: string, many = `${one}s`): string {
  return `${formatCount(count)} ${count === 1 ? one : many}`;
}

/** What the dry run found, as one sentence. */
export function wouldGoWords(found: WouldGo): string {
  if (found.points === 0) return 'No points would go: nothing is stored there in this range.';
  return `${counted(found.points, 'point')} of ${counted(found.series, 'series', 'series')} would go.`;
}

export interface Told {
  tone: 'ok' | 'warn' | 'bad';
  title: string;
  lines: string[];
}

/** The answer to a delete, in words. */
export function resultWords(told: Deleted): Told {
  const lines = [matchedWords(told)];
  if (told.adopted.length > 0) lines.push(`Acted on by ${told.adopted.join(', ')}.`);
  for (const each of told.waiting) lines.push(`Waiting for ${each.worker}: ${each.reason}.`);
  if (told.waiting.length > 0) lines.push('Points published through a bridge that waits may still count as older ones.');
  for (const each of told.unreachable) {
    lines.push(`${each.worker} cannot be reached (${each.reason}): it applies the delete before it answers again.`);
  }
  const done = told.waiting.length === 0;
  const tone = done && told.unreachable.length === 0 ? 'ok' : 'warn';
  const title = done ? `Deleted: delete ${told.number} is in force.` : `Delete ${told.number} is in force, not everybody acts on it yet.`;
  return { tone, title, lines };
}

function matchedWords(told: Deleted): string {
  const matched = told.matched;
  if (matched === null) return 'How many points it took could not be counted in time.';
  const found = `It took ${counted(matched.points, 'point')} of ${counted(matched.series, 'series', 'series')}`;
  return matched.complete ? `${found}.` : `${found}, of the nodes that answered.`;
}

/** A delete that failed: whether it is in force all the same. 'unknown': the list of deletes has to be looked at. */
export function isInForce(error: ApiError): 'no' | 'yes' | 'unknown' {
  if (error.message.includes('may be in force or not')) return 'unknown';
  if (/delete \d+ is in force/.test(error.message)) return 'yes';
  if (error.message.startsWith('nothing is deleted') || (error.status >= 400 && error.status < 500)) return 'no';
  return 'unknown';
}

/** Where in the form an error stands; undefined: at no field of it. */
export function placeOf(error: ApiError): 'metric' | 'range' | undefined {
  if (error.field === 'start_time' || error.field === 'end_time') return 'range';
  return error.field?.startsWith('metric_name') === true ? 'metric' : undefined;
}

export function failureWords(error: ApiError): Told {
  const lines = [error.message];
  const inForce = isInForce(error);
  if (inForce === 'no') return { tone: 'bad', title: 'Nothing was deleted.', lines };
  if (inForce === 'yes') return { tone: 'warn', title: 'The delete is in force, but something failed behind it.', lines };
  return { tone: 'bad', title: 'Whether anything was deleted is not known yet.', lines };
}

/** The record of a delete whose answer never came, among those with a higher number than the last known. */
export function recordOf(
  records: readonly DeleteRecord[],
  target: Target,
  times: Times,
  after: number,
): DeleteRecord | undefined {
  return records.find(
    (each) =>
      each.number > after &&
      each.device_id === target.device &&
      each.metric_name === target.metric &&
      each.start_time === times.startMs &&
      each.end_time === times.endMs &&
      sameTags(each.tags, target.tags),
  );
}

function sameTags(a: Tags | null, b: Tags | null): boolean {
  if (a === null || b === null) return a === b;
  const names = Object.keys(a);
  return names.length === Object.keys(b).length && names.every((name) => a[name] === b[name]);
}

/** Who of those that a delete waited for acts on it by now. number: the delete's, which is the epoch that commits it. */
export function stillWaiting(status: Status, waiting: readonly string[], number: number): string[] {
  const workers = { ...status.nodes, ...status.bridges };
  return waiting.filter((name) => {
    const epoch = workers[name]?.epoch;
    return !(typeof epoch === 'number' && epoch >= number);
  });
}
