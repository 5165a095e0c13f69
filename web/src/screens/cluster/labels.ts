/** Where the names beside the ring stand, so that none covers another. Pure. */

export interface Place {
  x: number;
  y: number;
  anchor: 'start' | 'middle' | 'end';
}

/** So near to the middle axis a name is centred, if it is alone there. */
const CENTRED = 0.25;
/** Names across from each other in one line meet when both begin this near to the middle axis, in lines. */
const NEAR_LINES = 7;

/** The place of each name, around a circle at its turn (0 to 1, from the top, clockwise); line: the height of one. */
export function labelPlaces(turns: readonly number[], radius: number, line: number): Place[] {
  const spread = turns.map((turn) => ({ side: Math.sin(turn * 2 * Math.PI) < 0 ? -1 : 1, y: -radius * Math.cos(turn * 2 * Math.PI) }));
  for (const side of [1, -1]) apart(spread.filter((one) => one.side === side), radius + line / 2, line);
  const found = spread.map(({ side, y }) => ({ side, y, x: side * Math.sqrt(Math.max(0, radius ** 2 - y ** 2)) }));
  return found.map((one) => {
    const meets = found.some((other) => other !== one && Math.abs(other.y - one.y) < line && Math.abs(other.x - one.x) < NEAR_LINES * line);
    if (!meets && Math.abs(one.x) < CENTRED * radius) return { x: one.x, y: one.y, anchor: 'middle' };
    const x = meets && one.x === 0 ? one.side : one.x;
    return { x, y: one.y, anchor: one.side > 0 ? 'start' : 'end' };
  });
}

/** Moves names of one side down, and where there is no more room, up again, until they are a line apart. */
function apart(names: { y: number }[], limit: number, line: number): void {
  const least = Math.min(line, (2 * limit) / Math.max(1, names.length));
  names.sort((a, b) => a.y - b.y);
  let above = -Infinity;
  for (const name of names) above = name.y = Math.max(name.y, above + least);
  let below = limit + least;
  for (const name of names.reverse()) below = name.y = Math.min(name.y, below - least);
}
