/** Links from one screen into another. Pure. */

import type { Tags } from '../../api/types';
import { pickedId, tagsToList } from '../../text';
import { rangeToText, type Range } from '../../time';
import { joinHash, writeState } from '../../url';
import { lineToText } from '../explore/lines';

interface Series {
  device_id: string;
  metric_name: string;
  tags: Tags;
}

export function dataHref(device: string): string {
  return joinHash('data', writeState('', {}, { device }));
}

export function liveHref(device: string): string {
  return joinHash('live', writeState('', {}, { find: device }));
}

/** range: Explore's own where it is left out. */
export function exploreHref(of: Series, range?: Range): string {
  return seriesHref([of], range);
}

/** A question about one series: exactly its tags, where it has any. */
export function queryHref(of: Series, range: Range): string {
  const exact = Object.fromEntries(Object.entries(of.tags).map(([name, value]) => [name, pickedId(value)]));
  const tags = tagsToList(exact);
  return joinHash('query', writeState('', {}, {
    device: [pickedId(of.device_id)], metric: [pickedId(of.metric_name)], range: rangeToText(range),
    ...(tags.length === 0 ? {} : { tags, exact: true }),
  }));
}

export function seriesHref(all: Series[], range?: Range): string {
  const line = all.map((of) => lineToText({ device: of.device_id, metric: of.metric_name, tags: of.tags, side: 'left', hidden: false }));
  return joinHash('explore', writeState('', {}, { line, range: range === undefined ? undefined : rangeToText(range) }));
}
