/** The ring as picture and numbers, side by side: what is pointed at in one is pointed out in the other. */
import { useId, useMemo, useState } from 'react';
import { Id } from '../../ui';
import type { RingInfo } from '../../api/types';
import { NodeDot } from './NodeDot';
import type { NodeRow } from './nodes';
import type { Gaps } from './replication';
import { RingPicture } from './RingPicture';
import { RingTable } from './RingTable';

interface Props {
  ring: RingInfo;
  gaps: Gaps;
  /** Partitions whose owners have just changed. */
  changed: readonly number[];
  rows: readonly NodeRow[];
}

export function RingPanel({ ring, gaps, changed, rows }: Props) {
  const [chosen, setChosen] = useState<number | null>(null);
  const [pointed, setPointed] = useState<number | null>(null);
  const [below, setBelow] = useState<number | null>(null);
  const [looked, setLooked] = useState(0);
  const silent = rows.filter((row) => row.tone === 'bad').map((row) => row.index).join(' ');
  const away = useMemo(() => new Set(silent === '' ? [] : silent.split(' ').map(Number)), [silent]);
  const partition = Math.min(below ?? looked, ring.partitions - 1);
  const node = pointed ?? chosen;
  return (
    <div className="cluster-ring-body">
      <RingPicture ring={ring} gaps={gaps} away={away} changed={changed} node={node} partition={partition} onPoint={setBelow} />
      <div>
        <RingTable ring={ring} gaps={gaps} away={away} chosen={chosen} onChoose={setChosen} onPoint={setPointed} />
        <p className="cluster-quiet ring-key">
          Each node has a piece of the outer circle, as long as it is the first owner of many partitions; the circles within are their other owners.
        </p>
        <Look ring={ring} gaps={gaps} partition={partition} onLook={setLooked} />
      </div>
    </div>
  );
}

interface LookProps {
  ring: RingInfo;
  gaps: Gaps;
  partition: number;
  onLook: (partition: number) => void;
}

/** One partition, chosen by the slider or the pointer. */
function Look({ ring, gaps, partition, onLook }: LookProps) {
  const id = useId();
  return (
    <div className="ring-look">
      <label htmlFor={id}>Partition</label>
      <input
        id={id}
        type="range"
        min={0}
        max={ring.partitions - 1}
        value={partition}
        aria-valuetext={spoken(ring, partition)}
        onChange={(event) => onLook(Number(event.target.value))}
      />
      <Told ring={ring} gaps={gaps} partition={partition} />
    </div>
  );
}

function spoken(ring: RingInfo, partition: number): string {
  const owners = (ring.owners?.[partition] ?? []).map((index) => ring.nodes[index]?.id ?? '?');
  return `${partition}: ${owners.join(', ') || 'nobody'}`;
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
