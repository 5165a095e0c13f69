/** The colour of a node: by its place in the ring's list, so that it is the same in the picture and in every table. */

/** Of --series-1 to --series-8. */
const COLOURS = 8;

/** The class that gives the colour. Beyond eight nodes they come again, paler. */
export function toneOf(index: number): string {
  const paler = Math.floor(index / COLOURS) % 3;
  return `node-tone-${(index % COLOURS) + 1}${paler ? ` node-paler-${paler}` : ''}`;
}

export function NodeDot({ index }: { index: number }) {
  return <i className={`node-dot ${toneOf(index)}`} aria-hidden="true" />;
}
