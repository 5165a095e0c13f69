/** How what a person types into a search becomes a pattern of the API, and which page of the answer is shown. Pure. */

import { asSearch } from '../../text';

/** The server takes no longer glob or expression. */
export const MOST_PATTERN = 1000;

/** The pattern for a search, undefined for none. Ids may begin with a blank, so nothing is trimmed. */
export function patternOf(text: string): string | undefined {
  return text.trim() === '' ? undefined : asSearch(text);
}

/** What is wrong with a search before the server is asked, in words; undefined: nothing. */
export function faultOf(text: string): string | undefined {
  const over = asSearch(text).length - MOST_PATTERN;
  if (over <= 0) return undefined;
  return `${text.length} characters, at most ${text.length - over} of these can be searched for`;
}

/** The page that is shown: its number from 1 and its cursor, '' for the first. */
export interface Place {
  page: number;
  cursor: string;
}

export const FIRST_PAGE: Place = { page: 1, cursor: '' };

/** From a URL, which may hold anything: without a cursor there is but the first page, and none behind it is the first. */
export function placeOf(page: number, cursor: string): Place {
  if (cursor === '') return FIRST_PAGE;
  return { page: Number.isInteger(page) && page > 1 ? page : 2, cursor };
}

/** The page before, by the pages that were seen: cursors lead forwards only. undefined: not known, or none. */
export function pageBefore(place: Place, seen: ReadonlyMap<number, string>): Place | undefined {
  if (place.page <= 2) return place.page === 2 ? FIRST_PAGE : undefined;
  const cursor = seen.get(place.page - 1);
  return cursor === undefined ? undefined : { page: place.page - 1, cursor };
}
