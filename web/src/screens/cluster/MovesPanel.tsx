/** What moves, who drives it, and pulls and repairs with how far they are. */
import { formatBytes, formatCount } from '../../format';
import { visible } from '../../text';
import { formatDuration } from '../../time';
import { Badge, Id, Table, type Column } from '../../ui';
import type { Job, MovesAnswer, WayTold } from '../../api/types';
import { driverWords, progressOf, type Change } from './progress';

/** As many ended jobs are listed. */
const ENDED_SHOWN = 20;
const OPEN = ['running', 'waiting'];
const KINDS: Record<string, string> = { pull: 'move', repair: 'repair', round: 'round of repair', refill: 'refill' };

export function MovesPanel({ told, change }: { told: MovesAnswer; change: Change }) {
  const open = told.jobs.filter((job) => OPEN.includes(job.state));
  const ended = told.jobs.filter((job) => !OPEN.includes(job.state)).sort((a, b) => endedAgo(a) - endedAgo(b));
  const isQuiet = told.moves.length === 0 && open.length === 0;
  return (
    <>
      <p>{told.driver ? `Changes are driven by ${visible(driverWords(told.driver))}.` : 'Nobody drives changes now.'}</p>
      {told.driver_error && <p className="cluster-quiet">The ring store does not say who drives: {visible(told.driver_error)}</p>}
      {change.total > 0 && <Whole change={change} />}
      {told.moves.length > 0 && <ul className="cluster-ways">{told.moves.map((way) => <Way key={`${way.source} ${way.target}`} way={way} />)}</ul>}
      {isQuiet && <p className="cluster-quiet">Nothing moves, and nothing is being repaired.</p>}
      {open.length > 0 && <Jobs caption="Moves and repairs going on" jobs={open} />}
      {(told.missing ?? []).map(({ node, reason }) => (
        <p key={node} className="cluster-quiet"><Id text={node} /> does not tell what it works on: {visible(reason)}</p>
      ))}
      {ended.length > 0 && (
        <details>
          <summary>Ended: {formatCount(ended.length)}{ended.length > ENDED_SHOWN ? `, the last ${ENDED_SHOWN} are listed` : ''}</summary>
          <Jobs caption="Moves and repairs that ended" jobs={ended.slice(0, ENDED_SHOWN)} />
        </details>
      )}
    </>
  );
}

function endedAgo(job: Job): number {
  return typeof job.ended_s_ago === 'number' ? job.ended_s_ago : Number.MAX_VALUE;
}

function Whole({ change }: { change: Change }) {
  const done = change.total - change.open;
  return (
    <div className="cluster-progress">
      <progress max={change.total} value={done} aria-label="Partitions that have arrived" />
      <span>{formatCount(done)} of {formatCount(change.total)} partitions have arrived</span>
    </div>
  );
}

function Way({ way }: { way: WayTold }) {
  const many = `${formatCount(way.partitions)} ${way.partitions === 1 ? 'partition' : 'partitions'}`;
  if (way.source === null) return <li><Id text={way.target} /> becomes one more owner of {many}</li>;
  return <li>{many} from <Id text={way.source} /> to <Id text={way.target} /></li>;
}

const COLUMNS: Column<Job>[] = [
  { key: 'node', title: 'Node', cell: (job) => <Id text={job.node} /> },
  { key: 'kind', title: 'What', cell: (job) => <>{KINDS[job.kind] ?? visible(job.kind)}{job.peer && <> from <Id text={job.peer} /></>}</> },
  { key: 'state', title: 'State', cell: (job) => <State job={job} /> },
  { key: 'done', title: 'Compared', cell: (job) => <Compared job={job} /> },
  { key: 'points', title: 'Points', align: 'right', cell: (job) => formatCount(job.points) },
  { key: 'bytes', title: 'Size', align: 'right', cell: (job) => formatBytes(job.bytes) },
  { key: 'pace', title: 'Pace', align: 'right', cell: (job) => <Pace job={job} /> },
  { key: 'time', title: 'Time', align: 'right', cell: (job) => <Time job={job} /> },
];

function Jobs({ caption, jobs }: { caption: string; jobs: Job[] }) {
  return <Table caption={caption} columns={COLUMNS} rows={jobs} rowKey={(job) => `${job.node} ${job.job}`} />;
}

function State({ job }: { job: Job }) {
  const tone = job.state === 'failed' ? 'bad' : job.state === 'done' ? 'ok' : 'info';
  return (
    <div className="cluster-state">
      <Badge tone={tone}>{job.state}</Badge>
      {job.error && <small>{visible(job.error)}</small>}
    </div>
  );
}

function Compared({ job }: { job: Job }) {
  const { share } = progressOf(job);
  return (
    <div className="cluster-progress">
      <progress max={1} value={share} aria-label={`Compared by ${visible(job.node)}`} />
      <span>{Math.floor(share * 100)} %<small>{formatCount(job.done)} of {formatCount(job.partitions)}</small></span>
    </div>
  );
}

function Pace({ job }: { job: Job }) {
  const { rate } = progressOf(job);
  return rate === null ? '–' : `${formatBytes(rate)}/s`;
}

function Time({ job }: { job: Job }) {
  const { leftS } = progressOf(job);
  return <>{formatDuration(job.seconds)}{leftS !== null && <small>about {formatDuration(leftS)} left</small>}</>;
}
