/** The way from an answer to Explore: its series, as many as a chart has lines for, and its range. The interval is Explore's own. */
import { ask } from '../../api/client';
import type { QueryRequest, SeriesPage } from '../../api/types';
import { useAsk } from '../../hooks';
import { seriesHref } from '../data/links';
import { MOST_LINES } from '../explore/lines';
import { rangeOf, seriesBody } from './request';

/** Nothing while the series are not known; the answer itself has said whatever is wrong. */
export function ExploreLink({ request }: { request: QueryRequest }) {
  const body = JSON.stringify(seriesBody(request, MOST_LINES));
  const { value } = useAsk((signal) => ask<SeriesPage>('/api/v1/series', { method: 'POST', body: JSON.parse(body) as unknown, signal }), [body]);
  if (value === undefined || value.series.length === 0) return null;
  const most = value.next_cursor === null ? '' : ` (the first ${value.series.length} series)`;
  return <a className="explore-link" href={seriesHref(value.series, rangeOf(request))}>Open in Explore{most}</a>;
}
