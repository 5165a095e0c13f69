/** The ring as a picture: a circle for each rank of owners, around it what is missing and what moves. */
import { memo, useId, useMemo, useRef, useState, type PointerEvent } from 'react';
import { Id } from '../../ui';
import { formatCount } from '../../format';
import type { RingInfo } from './answers';
import { bandsOf, circles, firstOf, pathOf, runsOf, slotAt, slotOf, slotsOf } from './arcs';
import type { Gaps } from './replication';
import { NodeDot, toneOf } from './NodeDot';

const INNER = 56;
const OUTER = 100;
const GAPS = { inner: 102, outer: 105 };
const MOVES = { inner: 107, outer: 113 };
const VIEW = 118;

interface Props {
  ring: RingInfo;
  gaps: Gaps;
  /** Partitions whose owners have just changed. */
  changed: readonly number[];
  /** Index of the node to point out, null for none. */
  chosen: number | null;
}

export function RingPicture({ ring, gaps, changed, chosen }: Props) {
  const [hovered, setHovered] = useState<number | null>(null);
  const [looked, setLooked] = useState(0);
  const frame = useRef<SVGSVGElement>(null);
  const ids = { title: useId(), text: useId(), look: useId() };
  const slots = slotsOf(ring.partitions);
  const pointed = (event: PointerEvent) => {
    const box = frame.current?.getBoundingClientRect();
    if (!box?.width) return;
    const scale = (2 * VIEW) / box.width;
    const [x, y] = [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    const slot = slotAt(x * scale, y * scale, slots, INNER, MOVES.outer);
    setHovered(slot === null ? null : firstOf(slot, slots, ring.partitions));
  };
  const partition = Math.min(hovered ?? looked, ring.partitions - 1);
  return (
    <figure className="ring-figure">
      <svg
        ref={frame}
        className="ring-picture"
        viewBox={`${-VIEW} ${-VIEW} ${2 * VIEW} ${2 * VIEW}`}
        role="img"
        aria-labelledby={`${ids.title} ${ids.text}`}
        onPointerMove={pointed}
        onPointerLeave={() => setHovered(null)}
      >
        <title id={ids.title}>The ring: which node owns which partition</title>
        <desc id={ids.text}>{describe(ring, gaps)}</desc>
        <Bands ring={ring} slots={slots} chosen={chosen} />
        <Around ring={ring} gaps={gaps} slots={slots} />
        {changed.length > 0 && (
          <path
            key={ring.epoch}
            className="ring-changed"
            d={pathOf(runsOf(changed, ring.partitions), slots, INNER - 2, OUTER + 1)}
          />
        )}
        <Pointer partition={partition} slots={slots} partitions={ring.partitions} />
        <Middle ring={ring} />
      </svg>
      <figcaption>
        <label htmlFor={ids.look}>Partition</label>
        <input
          id={ids.look}
          type="range"
          min={0}
          max={ring.partitions - 1}
          value={partition}
          aria-valuetext={spoken(ring, partition)}
          onChange={(event) => setLooked(Number(event.target.value))}
        />
        <Told ring={ring} gaps={gaps} partition={partition} />
      </figcaption>
    </figure>
  );
}

/** What the picture shows, in a sentence for those who do not see it; the table below has it all. */
function describe(ring: RingInfo, gaps: Gaps): string {
  const parts = ring.nodes.map((node) => `${node.id} owns ${node.partitions}`);
  const moving = ring.moves?.length ?? 0;
  const lacking = gaps.none + gaps.reduced;
  return `${ring.partitions} partitions: ${parts.join(', ')}. ${moving} are moving, ${lacking} lack an owner that answers.`;
}

const Bands = memo(function Bands({ ring, slots, chosen }: { ring: RingInfo; slots: number; chosen: number | null }) {
  const bands = useMemo(() => bandsOf(ring.owners ?? []), [ring.hash ?? ring.epoch, ring.owners?.length]);
  const ranks = circles(bands.reduce((most, band) => Math.max(most, band.rank + 1), 1), INNER, OUTER);
  return (
    <g>
      {ranks.map((circle, rank) => (
        <path key={`hole ${rank}`} className="ring-hole" d={pathOf([{ from: 0, to: slots }], slots, circle.inner, circle.outer)} />
      ))}
      {bands.map((band) => (
        <path
          key={`${band.rank} ${band.node}`}
          className={`${toneOf(band.node)} ${chosen !== null && chosen !== band.node ? 'ring-aside' : ''}`}
          d={pathOf(band.runs, slots, ranks[band.rank].inner, ranks[band.rank].outer)}
        />
      ))}
    </g>
  );
}, (before, after) => before.ring.hash === after.ring.hash && before.ring.epoch === after.ring.epoch && before.chosen === after.chosen && before.slots === after.slots);

/** Outside the owners: what lacks copies, and what is on its way, in the colour of the node that it goes to. */
function Around({ ring, gaps, slots }: { ring: RingInfo; gaps: Gaps; slots: number }) {
  const moves = ring.moves ?? [];
  const targets = [...new Set(moves.map(([, , target]) => target))].sort((a, b) => a - b);
  const lacking = (care: string) => runsOf(indicesWhere(gaps.care, care), ring.partitions);
  return (
    <g>
      <path className="ring-reduced" d={pathOf(lacking('reduced'), slots, GAPS.inner, GAPS.outer)} />
      <path className="ring-none" d={pathOf(lacking('none'), slots, GAPS.inner, GAPS.outer + 1.5)} />
      {targets.map((target) => {
        const runs = runsOf(moves.filter((move) => move[2] === target).map(([partition]) => partition), ring.partitions);
        return <path key={target} className={`ring-moving ${toneOf(target)}`} d={pathOf(runs, slots, MOVES.inner, MOVES.outer)} />;
      })}
    </g>
  );
}

function indicesWhere(values: readonly string[], wanted: string): number[] {
  return values.flatMap((value, at) => (value === wanted ? [at] : []));
}

function Pointer({ partition, slots, partitions }: { partition: number; slots: number; partitions: number }) {
  const turn = (slotOf(partition, slots, partitions) + 0.5) / slots;
  return <line className="ring-pointer" x1={0} x2={0} y1={-INNER + 3} y2={-INNER + 10} transform={`rotate(${(turn * 360).toFixed(2)})`} />;
}

function Middle({ ring }: { ring: RingInfo }) {
  const moving = ring.moves?.length ?? 0;
  return (
    <g className="ring-middle" aria-hidden="true">
      <text className="ring-middle-large" y={-10}>epoch {ring.epoch}</text>
      <text y={4}>{formatCount(ring.partitions)} partitions</text>
      <text y={15}>{ring.replication} {ring.replication === 1 ? 'owner' : 'owners'} each</text>
      <text y={28} className={moving ? 'ring-middle-moving' : ''}>{moving ? `${formatCount(moving)} moving` : 'nothing moves'}</text>
    </g>
  );
}

function ownersOf(ring: RingInfo, partition: number): string[] {
  return (ring.owners?.[partition] ?? []).map((index) => ring.nodes[index]?.id ?? '?');
}

function spoken(ring: RingInfo, partition: number): string {
  return `${partition}: ${ownersOf(ring, partition).join(', ') || 'nobody'}`;
}

function Told({ ring, gaps, partition }: { ring: RingInfo; gaps: Gaps; partition: number }) {
  const move = ring.moves?.find(([moved]) => moved === partition);
  const care = gaps.care[partition];
  const name = (index: number) => <Id text={ring.nodes[index]?.id ?? '?'} />;
  return (
    <p className="ring-told">
      <strong>{partition}</strong>
      {(ring.owners?.[partition] ?? []).map((index) => (
        <span key={index} className="ring-owner">
          <NodeDot index={index} />
          {name(index)}
        </span>
      ))}
      {move && (
        <span>
          {move[1] < 0 ? 'gets one more owner, ' : <>moves from {name(move[1])} to </>}
          {name(move[2])}
        </span>
      )}
      {care === 'reduced' && <span className="ring-warn">not all its owners answer</span>}
      {care === 'none' && <span className="ring-bad">nobody answers for it</span>}
    </p>
  );
}
