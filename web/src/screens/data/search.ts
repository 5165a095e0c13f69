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
  if (text.length <= MOST_PATTERN - 2) return undefined;
  return `${text.length} characters, at most ${MOST_PATTERN - 2} can be searched for`;
}

/** Pages by cursor: those before the one that is shown, which is `cursor` (undefined: the first). */
export interface Paging {
  before: (string | undefined)[];
  cursor: string | undefined;
}

export const FIRST_PAGE: Paging = { before: [], cursor: undefined };

export function nextPage(paging: Paging, nextCursor: string): Paging {
  return { before: [...paging.before, paging.cursor], cursor: nextCursor };
}

export function previousPage(paging: Paging): Paging {
  if (paging.before.length === 0) return paging;
  return { before: paging.before.slice(0, -1), cursor: paging.before[paging.before.length - 1] };
}
