/** The rows of an answer over time. A part of it that is marked, or another window, is asked for by the form. */
import { useMemo, useRef, useState } from 'react';
import type { QueryAnswer } from '../../api/types';
import { Chart } from '../../chart/Chart';
import { nearest, type ChartLine, type Window } from '../../chart/values';
import { spanOf } from '../../chart/window';
import { formatCount, formatNumber } from '../../format';
import { useSize, useTokens } from '../../hooks';
import { visible } from '../../text';
import { formatTime } from '../../time';
import { Id } from '../../ui';
import { linesOf, MOST_LINES, windowOf } from './course';

interface Props {
  answer: QueryAnswer;
  onZoom: (window: Window) => void;
  onPan: (window: Window) => void;
  onBack: () => void;
}

/** How far from the marker, as a share of the window, a value may be to count as below it. */
const REACH = 0.02;

function Swatch({ line }: { line: ChartLine }) {
  return (
    <svg width="20" height="10" aria-hidden="true">
      <line x1="0" y1="5" x2="20" y2="5" stroke={line.colour} strokeWidth="3" strokeDasharray={line.dash.join(' ') || undefined} />
    </svg>
  );
}

/** What is below the marker; without one the last value of each line. */
function Legend({ lines, mark, window }: { lines: ChartLine[]; mark: number | null; window: Window }) {
  const at = (line: ChartLine): number =>
    mark === null ? line.values.times.length - 1 : nearest(line.values, mark, spanOf(window) * REACH);
  return (
    <div className="query-legend">
      <span className="hint">{mark === null ? 'Last' : formatTime(mark)}</span>
      <ul>
        {lines.map((line) => {
          const figure = line.values.avg[at(line)];
          return <li key={line.key}><Swatch line={line} /> <Id text={line.label} /> <b title={String(figure ?? '')}>{formatNumber(figure)}</b></li>;
        })}
      </ul>
    </div>
  );
}

export default function QueryChart({ answer, onZoom, onPan, onBack }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const { series } = useTokens();
  const { width } = useSize(box);
  const [mark, setMark] = useState<number | null>(null);
  const { lines, groups } = useMemo(() => linesOf(answer, series), [answer, series]);
  const window = useMemo(() => windowOf(answer, lines), [answer, lines]);
  const names = lines.map((line) => visible(line.label)).join(', ');
  return (
    <div className="query-chart" data-testid="course">
      <div ref={box}>
        {width > 0 && (
          <Chart lines={lines} window={window} width={width} height={width < 500 ? 220 : 300} band={false} logLeft={false} logRight={false}
            utc={false} drag="zoom" label={`Over time: ${names}. From ${formatTime(window.startMs)} to ${formatTime(window.endMs)}`}
            onZoom={onZoom} onPan={onPan} onBack={onBack} onMark={setMark} />
        )}
      </div>
      <Legend lines={lines} mark={mark} window={window} />
      {groups > lines.length && <p className="hint">The first {MOST_LINES} of {formatCount(groups)} groups; the table has all.</p>}
    </div>
  );
}
