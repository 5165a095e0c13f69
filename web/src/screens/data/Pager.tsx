/** Pages of a list whose API leads forwards by cursors: which one is shown stands in the URL, those seen are kept to go back. */

import { useRef } from 'react';
import { Button } from '../../ui';
import { FIRST_PAGE, pageBefore, placeOf, type Place } from './search';

export interface Paging {
  number: number;
  /** As the API takes it. */
  cursor: string | undefined;
  first?: () => void;
  /** undefined: there is none, or nobody knows how to get there. */
  previous?: () => void;
  next: (cursor: string) => void;
}

/** page, cursor: of the URL. of: what is asked for; pages seen of something else lead nowhere. */
export function usePaging(page: number, cursor: string, go: (place: Place) => void, of: string): Paging {
  const place = placeOf(page, cursor);
  const seen = useRef({ of, cursors: new Map<number, string>() });
  if (seen.current.of !== of) seen.current = { of, cursors: new Map() };
  seen.current.cursors.set(place.page, place.cursor);
  const before = pageBefore(place, seen.current.cursors);
  return {
    number: place.page,
    cursor: place.cursor === '' ? undefined : place.cursor,
    first: place.page === 1 ? undefined : () => go(FIRST_PAGE),
    previous: before === undefined ? undefined : () => go(before),
    next: (after) => go({ page: place.page + 1, cursor: after }),
  };
}

interface PagerProps {
  what: string;
  paging: Paging;
  loading: boolean;
  /** The cursor of the next page, null on the last one. */
  next: string | null;
}

/** Nothing while there is one page only. */
export function Pager({ what, paging, loading, next }: PagerProps) {
  const { number, first, previous } = paging;
  if (first === undefined && next === null) return null;
  return (
    <nav className="data-pager" aria-label={`Pages of ${what}`}>
      <Button small onClick={first} disabled={first === undefined || loading}>First</Button>
      <Button small onClick={previous} disabled={previous === undefined || loading}>Previous</Button>
      <span role="status">Page {number}{loading ? ' …' : ''}</span>
      <Button small onClick={() => next !== null && paging.next(next)} disabled={next === null || loading}>Next</Button>
    </nav>
  );
}
