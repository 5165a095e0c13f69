/** The ring as a picture: a circle for each rank of owners, around it what is missing and what moves, within it where to. */
import { memo, useId, useMemo, useRef, type PointerEvent } from 'react';
import { formatCount } from '../../format';
import { visible } from '../../text';
import type { RingInfo } from '../../api/types';
import { bandsOf, chord, circles, labelOf, layoutOf, partitionAt, pathOf, point, slicesBy, turnOf, type Arc, type Layout } from './arcs';
import { labelPlaces } from './labels';
import { toneOf } from './NodeDot';
import type { Gaps } from './replication';

const INNER = 62;
const OUTER = 100;
const CHORDS = 59;
const GAPS = { inner: 102, outer: 104.5 };
const MOVES = { inner: 106, outer: 111 };
const LABELS = 118;
const VIEW = { x: 160, y: 128 };
/** With more nodes labels have to be shorter. */
const MANY_NODES = 12;
/** Heights of a label's line, for few and for many. */
const LINE = { few: 10.5, many: 8 };

interface Props {
  ring: RingInfo;
  gaps: Gaps;
  /** Indices of the nodes that do not answer. */
  away: ReadonlySet<number>;
  changed: readonly number[];
  /** Index of the node to point out, null for none. */
  node: number | null;
  partition: number;
  onPoint: (partition: number | null) => void;
}

export function RingPicture({ ring, gaps, away, changed, node, partition, onPoint }: Props) {
  const frame = useRef<SVGSVGElement>(null);
  const ids = { title: useId(), text: useId(), hatch: useId() };
  const key = `${ring.epoch} ${ring.hash ?? ''} ${ring.moves?.length ?? 0}`;
  const layout = useMemo(() => layoutOf(ring.owners ?? [], ring.nodes.length, ring.moves), [key]);
  const pointed = (event: PointerEvent) => {
    const box = frame.current?.getBoundingClientRect();
    if (!box?.width) return;
    const scale = (2 * VIEW.x) / box.width;
    const [x, y] = [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    onPoint(partitionAt(x * scale, y * scale, layout, INNER, MOVES.outer));
  };
  return (
    <svg
      ref={frame}
      className="ring-picture"
      viewBox={`${-VIEW.x} ${-VIEW.y} ${2 * VIEW.x} ${2 * VIEW.y}`}
      role="img"
      aria-labelledby={`${ids.title} ${ids.text}`}
      onPointerMove={pointed}
      onPointerLeave={() => onPoint(null)}
    >
      <title id={ids.title}>The ring: which node owns which partition</title>
      <desc id={ids.text}>{describe(ring, gaps)}</desc>
      <pattern id={ids.hatch} width="4" height="4" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
        <rect className="ring-hatch-ground" width="4" height="4" />
        <rect className="ring-hatch" width="2" height="4" />
      </pattern>
      <Bands owners={ring.owners ?? []} layout={layout} away={away} node={node} hatch={ids.hatch} />
      <Around ring={ring} gaps={gaps} layout={layout} />
      <Ways ring={ring} layout={layout} />
      {changed.length > 0 && <Changed key={ring.epoch} layout={layout} changed={changed} />}
      <Labels ring={ring} layout={layout} away={away} node={node} />
      <line className="ring-pointer" x1={0} x2={0} y1={-INNER + 1} y2={-INNER + 8} transform={`rotate(${(turnOf(layout, partition) * 360).toFixed(2)})`} />
      <circle className="ring-middle-ground" r={37} />
      <Middle ring={ring} node={node} />
    </svg>
  );
}

/** What the picture shows, in a sentence for those who do not see it; the table beside it has it all. */
function describe(ring: RingInfo, gaps: Gaps): string {
  const parts = ring.nodes.map((node) => `${visible(node.id)} owns ${node.partitions}`);
  const moving = ring.moves?.length ?? 0;
  const lacking = gaps.none + gaps.reduced;
  return `${ring.partitions} partitions: ${parts.join(', ')}. ${moving} are moving, ${lacking} lack an owner that answers.`;
}

interface BandsProps {
  owners: number[][];
  layout: Layout;
  away: ReadonlySet<number>;
  node: number | null;
  hatch: string;
}

const Bands = memo(function Bands({ owners, layout, away, node, hatch }: BandsProps) {
  const bands = useMemo(() => bandsOf(owners, layout), [layout]);
  const ranks = circles(bands.reduce((most, band) => Math.max(most, band.rank + 1), 1), INNER, OUTER);
  const drawn = bands.map((band) => {
    const { inner, outer } = ranks[band.rank] ?? { inner: INNER, outer: OUTER };
    return { ...band, path: pathOf(band.slices, inner, outer) };
  });
  return (
    <g>
      {ranks.map((circle, rank) => <path key={`hole ${rank}`} className="ring-hole" d={pathOf(layout.arcs, circle.inner, circle.outer)} />)}
      {drawn.map((band) => (
        <path
          key={`${band.rank} ${band.node}`}
          className={`ring-band ${toneOf(band.node)} ${node !== null && node !== band.node ? 'ring-aside' : ''}`}
          d={band.path}
        />
      ))}
      {drawn.filter((band) => away.has(band.node)).map((band) => (
        <path key={`away ${band.rank} ${band.node}`} className="ring-away" fill={`url(#${hatch})`} d={band.path} />
      ))}
    </g>
  );
}, (before, after) => before.layout === after.layout && before.node === after.node && before.away === after.away);

/** Outside the owners: what lacks copies, and what is on its way, in the colour of the node that it goes to. */
function Around({ ring, gaps, layout }: { ring: RingInfo; gaps: Gaps; layout: Layout }) {
  const lacking = useMemo(() => slicesBy(layout, (partition) => gaps.care[partition]), [layout, gaps]);
  const moving = useMemo(() => {
    const target = new Map(ring.moves?.map(([partition, , to]) => [partition, to]));
    return [...slicesBy(layout, (partition) => target.get(partition))];
  }, [layout]);
  return (
    <g>
      <path className="ring-reduced" d={pathOf(lacking.get('reduced') ?? [], GAPS.inner, GAPS.outer)} />
      <path className="ring-none" d={pathOf(lacking.get('none') ?? [], GAPS.inner, GAPS.outer + 1)} />
      {moving.map(([to, slices]) => <path key={to} className={`ring-moving ${toneOf(to)}`} d={pathOf(slices, MOVES.inner, MOVES.outer)} />)}
    </g>
  );
}

function Changed({ layout, changed }: { layout: Layout; changed: readonly number[] }) {
  const among = new Set(changed);
  const slices = slicesBy(layout, (partition) => among.has(partition) || undefined).get(true) ?? [];
  return <path className="ring-changed" d={pathOf(slices, INNER - 1, OUTER + 1)} />;
}

function middleOf(arc: Arc | undefined): number {
  return arc === undefined ? 0 : (arc.start + arc.end) / 2;
}

/** From whom to whom partitions move: a stream within the ring, the broader the more of them. */
function Ways({ ring, layout }: { ring: RingInfo; layout: Layout }) {
  const counts = new Map<string, { source: number; target: number; count: number }>();
  for (const [, source, target] of ring.moves ?? []) {
    const way = counts.get(`${source} ${target}`) ?? { source, target, count: 0 };
    counts.set(`${source} ${target}`, { ...way, count: way.count + 1 });
  }
  const turn = (node: number) => middleOf(layout.arcs.find((arc) => arc.node === node));
  return (
    <g aria-hidden="true">
      {[...counts].filter(([, { source }]) => source >= 0).map(([key, { source, target, count }]) => (
        <path
          key={key}
          className={`ring-way ${toneOf(target)}`}
          strokeWidth={1.5 + 5 * Math.sqrt(count / ring.partitions)}
          d={chord(turn(source), turn(target), CHORDS)}
        />
      ))}
      {[...new Set((ring.moves ?? []).map(([, , target]) => target))].map((target) => (
        <circle key={target} className={`ring-arrival ${toneOf(target)}`} r={3} transform={`translate(${point(CHORDS, turn(target))})`} />
      ))}
    </g>
  );
}

interface LabelsProps {
  ring: RingInfo;
  layout: Layout;
  away: ReadonlySet<number>;
  node: number | null;
}

/** Names beside the ring: colour alone tells nobody apart. */
function Labels({ ring, layout, away, node }: LabelsProps) {
  const many = ring.nodes.length > MANY_NODES;
  const places = labelPlaces(layout.arcs.map(middleOf), LABELS, many ? LINE.many : LINE.few);
  return (
    <g aria-hidden="true">
      {layout.arcs.map((arc, index) => {
        const { x, y, anchor } = places[index] ?? { x: 0, y: 0, anchor: 'middle' as const };
        const name = arc.node < 0 ? 'nobody' : labelOf(visible(ring.nodes[arc.node]?.id ?? '?'), many ? 8 : 9);
        const isAside = node !== null && node !== arc.node;
        return (
          <text
            key={arc.node}
            className={`ring-label ${many ? 'ring-label-small' : ''} ${away.has(arc.node) ? 'ring-label-away' : ''} ${isAside ? 'ring-aside' : ''}`}
            textAnchor={anchor}
            transform={`translate(${x.toFixed(2)} ${y.toFixed(2)})`}
            dy="0.35em"
          >
            {away.has(arc.node) ? `✕ ${name}` : name}
          </text>
        );
      })}
    </g>
  );
}

function Middle({ ring, node }: { ring: RingInfo; node: number | null }) {
  const moving = ring.moves?.length ?? 0;
  const pointed = node === null ? undefined : ring.nodes[node];
  if (pointed !== undefined) {
    return (
      <g className="ring-middle" aria-hidden="true">
        <text className="ring-middle-large" y={-8}>{labelOf(visible(pointed.id), 14)}</text>
        <text y={6}>{formatCount(pointed.partitions)} of {formatCount(ring.partitions)}</text>
        <text y={17}>first owner of {formatCount(pointed.first_owner_of)}</text>
      </g>
    );
  }
  return (
    <g className="ring-middle" aria-hidden="true">
      <text className="ring-middle-large" y={-10}>epoch {ring.epoch}</text>
      <text y={4}>{formatCount(ring.partitions)} partitions</text>
      <text y={15}>{ring.replication} {ring.replication === 1 ? 'owner' : 'owners'} each</text>
      <text y={28} className={moving ? 'ring-middle-moving' : ''}>{moving ? `${formatCount(moving)} moving` : 'nothing moves'}</text>
    </g>
  );
}
