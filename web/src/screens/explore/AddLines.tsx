/** Finds series by device, metric and tags, and adds them to the chart. */
import { useEffect, useRef, useState } from 'react';
import { ApiError, ask, asApiError, isAborted } from '../../api/client';
import type { SeriesPage } from '../../api/types';
import { formatCount } from '../../format';
import { patternOf } from '../../text';
import { Button, ErrorBox, Field, Picker, Select, TagsEditor } from '../../ui';
import { MOST_LINES, type Line } from './lines';

interface Wanted {
  devices: string[];
  metrics: string[];
  tags: Record<string, string>;
  side: Line['side'];
}

const NOTHING: Wanted = { devices: [], metrics: [], tags: {}, side: 'left' };

function bodyOf({ devices, metrics, tags }: Wanted): Record<string, unknown> {
  const tagPatterns = Object.fromEntries(Object.entries(tags).map(([name, value]) => [name, patternOf(value)]));
  return {
    ...(devices.length > 0 ? { device_id: devices.map(patternOf) } : {}),
    ...(metrics.length > 0 ? { metric_name: metrics.map(patternOf) } : {}),
    ...(Object.keys(tags).length > 0 ? { tags: tagPatterns, more_tags: true } : {}),
    details: false,
    limit: MOST_LINES,
  };
}

function found(page: SeriesPage, side: Line['side']): Line[] {
  return page.series.map(({ device_id: device, metric_name: metric, tags }) => ({ device, metric, tags, side, hidden: false }));
}

interface Outcome {
  text?: string;
  error?: ApiError;
}

/** Says what became of a wish; `left` are lines that had no room any more. */
function saying(count: number, left: number, more: boolean): string {
  const added = count === 1 ? 'One series is on the chart.' : `${formatCount(count)} series are on the chart.`;
  if (more) return `${added} More match than the ${MOST_LINES} that fit: narrow the choice.`;
  return left > 0 ? `${added} ${formatCount(left)} had no room: a chart has at most ${MOST_LINES}.` : added;
}

interface Props {
  /** Adds lines, tells how many of them had no room. */
  onAdd: (lines: Line[]) => number;
}

export function AddLines({ onAdd }: Props) {
  const [wanted, setWanted] = useState(NOTHING);
  const [outcome, setOutcome] = useState<Outcome>({});
  const [busy, setBusy] = useState(false);
  const inside = useRef<AbortController>(null);
  const latest = useRef(onAdd); // lines may have gone while the server was asked
  latest.current = onAdd;
  useEffect(() => () => inside.current?.abort(), []);
  const { devices, metrics, tags, side } = wanted;
  const change = (patch: Partial<Wanted>): void => {
    setWanted((old) => ({ ...old, ...patch }));
    setOutcome({});
  };
  const look = async (): Promise<Outcome> => {
    inside.current?.abort();
    const mine = (inside.current = new AbortController());
    const page = await ask<SeriesPage>('/api/v1/series', { method: 'POST', body: bodyOf(wanted), signal: mine.signal });
    const lines = found(page, side);
    if (lines.length === 0) return { text: page.hint ?? 'No series matches.' };
    const left = latest.current(lines);
    setWanted({ ...NOTHING, side });
    return { text: saying(lines.length - left, left, page.next_cursor !== null) };
  };
  const add = (): void => {
    if (devices.length === 0 && metrics.length === 0) return setOutcome({ error: new ApiError(0, 'choose', 'Choose a device or a metric', { field: 'device_id' }) });
    setBusy(true);
    void look().then(setOutcome, (error: unknown) => !isAborted(error) && setOutcome({ error: asApiError(error) })).finally(() => setBusy(false));
  };
  const { error, text } = outcome;
  const at = (field: string) => (error?.field === field ? error.message : undefined);
  const elsewhere = error !== undefined && !['device_id', 'metric_name', 'tags'].includes(error.field ?? '');
  return (
    <form className="add-lines" onSubmit={(event) => { event.preventDefault(); add(); }}>
      <Picker label="Devices" kind="device" multiple patterns value={devices} onChange={(value) => change({ devices: value })}
        scope={metrics.length > 0 ? { metric_name: metrics.map(patternOf) } : {}} error={at('device_id')}
        hint="* and ? stand for anything: line1/*" />
      <Picker label="Metrics" kind="metric" multiple patterns value={metrics} onChange={(value) => change({ metrics: value })}
        scope={devices.length > 0 ? { device_id: devices.map(patternOf) } : {}} error={at('metric_name')} />
      <TagsEditor value={tags} onChange={(value) => change({ tags: value })} error={at('tags')} />
      <Field label="Axis">
        {(wiring) => <Select {...wiring} value={side} onChange={(value) => change({ side: value as Line['side'] })}
          options={[{ value: 'left', label: 'Left' }, { value: 'right', label: 'Right' }]} />}
      </Field>
      <div className="add-end">
        <Button kind="primary" type="submit" disabled={busy}>Add to the chart</Button>
        <p role="status" className="hint">{text}</p>
      </div>
      {elsewhere && <ErrorBox error={error} />}
    </form>
  );
}
