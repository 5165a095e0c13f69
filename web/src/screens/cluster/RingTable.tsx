/** The ring in numbers: the legend of the picture, and all of it for those who do not see that. */
import { formatCount } from '../../format';
import { Id, Table, type Column } from '../../ui';
import type { RingInfo, RingNode } from '../../api/types';
import type { Gaps } from './replication';
import { NodeDot } from './NodeDot';

interface Props {
  ring: RingInfo;
  gaps: Gaps;
  /** Nodes that do not answer. */
  away: ReadonlySet<number>;
  chosen: number | null;
  onChoose: (node: number | null) => void;
  /** The one that the pointer or the focus is on. */
  onPoint: (node: number | null) => void;
}

interface Row {
  node: RingNode;
  index: number;
}

export function RingTable({ ring, gaps, away, chosen, onChoose, onPoint }: Props) {
  const owned = ring.nodes.reduce((sum, node) => sum + node.partitions, 0);
  const moved = (place: 1 | 2, node: number) => (ring.moves ?? []).filter((move) => move[place] === node).length;
  const figure = (key: string, title: string, of: (row: Row) => string): Column<Row> => ({ key, title, align: 'right', cell: of });
  const columns: Column<Row>[] = [
    {
      key: 'node',
      title: 'Node',
      cell: ({ node, index }) => (
        <button
          type="button"
          className="node-button"
          aria-pressed={chosen === index}
          title="Point out in the picture"
          onClick={() => onChoose(chosen === index ? null : index)}
          onPointerEnter={() => onPoint(index)}
          onPointerLeave={() => onPoint(null)}
          onFocus={() => onPoint(index)}
          onBlur={() => onPoint(null)}
        >
          <NodeDot index={index} />
          <Id text={node.id} />
          {away.has(index) && <span className="ring-bad"> away</span>}
        </button>
      ),
    },
    figure('owns', 'Owns', ({ node }) => formatCount(node.partitions)),
    figure('share', 'Share', ({ node }) => (owned ? `${((100 * node.partitions) / owned).toFixed(1)} %` : '–')),
    figure('first', 'As first', ({ node }) => formatCount(node.first_owner_of)),
    figure('coming', 'Coming', ({ index }) => formatCount(moved(2, index))),
    figure('leaving', 'Leaving', ({ index }) => formatCount(moved(1, index))),
    figure('missed', 'Missed by', ({ index }) => formatCount(gaps.missedBy.get(index) ?? 0)),
  ];
  return (
    <Table
      caption="Partitions by node"
      columns={columns}
      rows={ring.nodes.map((node, index) => ({ node, index }))}
      rowKey={({ node }) => node.id}
      rowClass={({ index }) => (away.has(index) ? 'is-bad' : chosen === index ? 'is-chosen' : undefined)}
    />
  );
}
