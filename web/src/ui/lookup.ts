/** What a picker finds: names of devices, metrics, tags or values of a tag that contain a text, a page at a time. */
import { ask } from '../api/client';
import type { Page } from '../api/types';
import { asSearch, isPattern } from '../text';

export type Kind = 'device' | 'metric' | 'tag';

/** Narrows what is offered: only metrics of these devices, and so on. Patterns as the API takes them. */
export interface Scope {
  device_id?: (string | { exact: string })[];
  metric_name?: (string | { exact: string })[];
}

export interface Found {
  id: string;
  series: number;
}

export interface FoundPage {
  found: Found[];
  cursor: string | null;
}

const PAGE = 200;
const PATHS: Record<Kind, string> = { device: '/api/v1/devices', metric: '/api/v1/metrics-names', tag: '/api/v1/tags' };

type Row = { device_id?: string; metric_name?: string; name?: string; value?: string; series: number };

function bodyOf(kind: Kind, text: string, scope: Scope, tagName: string | undefined, cursor: string | null): Record<string, unknown> {
  const body: Record<string, unknown> = { limit: kind === 'tag' ? 1000 : PAGE, allow_partial: true };
  if (scope.device_id !== undefined && scope.device_id.length > 0) body.device_id = scope.device_id;
  if (scope.metric_name !== undefined && scope.metric_name.length > 0) body.metric_name = scope.metric_name;
  if (kind === 'device') body.device_id = asSearch(text);
  if (kind === 'metric') body.metric_name = asSearch(text);
  if (tagName !== undefined) body.name = tagName;
  if (cursor !== null) body.cursor = cursor;
  return body;
}

/** Tags have no pattern of their own in the API: there are few, and they are searched here. */
function filtered(kind: Kind, text: string, found: Found[]): Found[] {
  if (kind !== 'tag' || text === '' || isPattern(text)) return found;
  const wanted = text.toLowerCase();
  return found.filter(({ id }) => id.toLowerCase().includes(wanted));
}

export async function lookup(
  kind: Kind, text: string, scope: Scope, tagName: string | undefined, cursor: string | null, signal: AbortSignal,
): Promise<FoundPage> {
  const page = await ask<Page & { rows: Row[] }>(PATHS[kind], { method: 'POST', body: bodyOf(kind, text, scope, tagName, cursor), signal });
  const found = page.rows.map((row) => ({ id: row.device_id ?? row.metric_name ?? row.value ?? row.name ?? '', series: row.series }));
  return { found: filtered(kind, text, found), cursor: page.next_cursor };
}
