/** What bridges refused, by reason, with the newest of each. */
import { Id } from '../../ui';
import { formatCount } from '../../format';
import { formatTime } from '../../time';
import { visible } from '../../text';
import type { DeadAnswer } from '../../api/types';
import { byReason, deadRemarks, type DeadReason } from './deadletters';

export function DeadLettersPanel({ told }: { told: DeadAnswer }) {
  const reasons = byReason(told.rows);
  const remarks = deadRemarks(told.bridges ?? []);
  return (
    <>
      {reasons.length === 0 && <p className="cluster-quiet">No message was refused.</p>}
      {reasons.map((reason) => (
        <Reason key={reason.reason} of={reason} />
      ))}
      {remarks.map((remark) => (
        <p key={remark} className="cluster-quiet">{visible(remark)}</p>
      ))}
      {reasons.length > 0 && (
        <p className="cluster-quiet">
          <code>tools/deadletter</code> shows them whole, replays and purges them.
        </p>
      )}
    </>
  );
}

function Reason({ of: { reason, count, bridges, samples } }: { of: DeadReason }) {
  return (
    <details className="dead-reason">
      <summary>
        <strong>{reason}</strong> <span className="num">{formatCount(count)}</span>
        <small>
          {' '}
          {bridges.length === 1 ? visible(bridges[0]) : `${bridges.length} bridges`}
        </small>
      </summary>
      {samples.length === 0 && <p className="cluster-quiet">No samples are kept of these.</p>}
      <ol className="dead-samples">
        {samples.map((sample, at) => (
          <li key={`${sample.bridge} ${String(sample.time)} ${at}`}>
            <p>
              <time>{typeof sample.time === 'number' ? formatTime(sample.time * 1000, { precise: true }) : (sample.time ?? '–')}</time>{' '}
              <Id text={sample.topic} />
            </p>
            <p className="dead-detail">{visible(sample.detail)}</p>
            <pre dir="auto" tabIndex={0}>
              <code>{visible(sample.payload) || '(empty)'}</code>
            </pre>
          </li>
        ))}
      </ol>
    </details>
  );
}
