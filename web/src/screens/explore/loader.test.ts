import { describe, expect, it } from 'vitest';
import { ApiError, type AskOptions } from '../../api/client';
import { keyOf, type Line } from './lines';
import { run, tickMs, type Hint, type Loaded, type Shown, type Spec, type World } from './loader';

const LINE: Line = { device: 'a', metric: 'm', tags: {}, side: 'left', hidden: false };
const COVERAGE = { partitions_asked: 1, partitions_answered: 1, complete: true, epoch: 1, delete_number: 0, nodes: ['n'], missing: [] };

function spec(patch: Partial<Spec> = {}): Spec {
  return { lines: [LINE], range: { kind: 'fixed', startMs: 0, endMs: 100_000 }, pixels: 100, compareDays: 0, utc: true, follow: false, ...patch };
}

interface Asked {
  path: string;
  body: Record<string, unknown>;
}

/** A server that has one point every stepMs; each question is kept. A pause lets the clock go on. */
class FakeWorld implements World {
  readonly asked: Asked[] = [];
  readonly paused: number[] = [];
  failures: (ApiError | undefined)[] = [];
  /** Whether each answer is complete, as long as it says. */
  complete: boolean[] = [];
  /** Zones that it does not know are those of the tests' machine, too. */
  knowsZones = true;
  /** The server's clock before this one. */
  aheadMs = 0;
  private readonly stop = new AbortController();

  constructor(private readonly stepMs: number, private clock = 1_000_000, private pausesLeft = 0,
    private readonly untilMs = Infinity) {}

  readonly ask = async <T>(path: string, options: AskOptions): Promise<T> => {
    const body = options.body as Record<string, unknown>;
    this.asked.push({ path, body });
    const failure = this.failures.shift();
    if (failure !== undefined) throw failure;
    if (!this.knowsZones && body.timezone !== undefined) throw new ApiError(400, 'bad_request', 'timezone is not known', { field: 'timezone' });
    return (path === '/query' ? this.buckets(body) : path === '/api/v1/samples' ? this.samples(body) : this.series()) as T;
  };

  now(): number {
    return this.clock;
  }

  async serverNow(): Promise<number> {
    return this.clock + this.aheadMs;
  }

  async pause(ms: number): Promise<void> {
    this.paused.push(ms);
    this.clock += ms;
    if (this.pausesLeft-- <= 0 || this.clock >= this.untilMs) this.stop.abort();
  }

  private times(body: Record<string, unknown>): number[] {
    const [from, to] = [Date.parse(String(body.start_time)), Date.parse(String(body.end_time))];
    const first = Math.max(0, Math.ceil(from / this.stepMs));
    return Array.from({ length: Math.max(0, Math.floor(to / this.stepMs) - first + 1) }, (_, at) => (first + at) * this.stepMs);
  }

  private samples(body: Record<string, unknown>): unknown {
    const times = this.times(body);
    const limit = Number(body.limit);
    const series = [{ device_id: 'a', metric_name: 'm', tags: {}, times: times.slice(0, limit), values: times.slice(0, limit) }];
    return { series, next_cursor: times.length > limit ? 'more' : null, coverage: this.coverage() };
  }

  private buckets(body: Record<string, unknown>): unknown {
    const bucketMs = String(body.interval).endsWith('ms') ? parseInt(String(body.interval)) : parseInt(String(body.interval)) * 1000;
    const counts = new Map<number, number>();
    for (const time of this.times(body)) {
      const edge = Math.floor(time / bucketMs) * bucketMs;
      counts.set(edge, (counts.get(edge) ?? 0) + 1);
    }
    const rows = [...counts].map(([time, count]) => ({ time, device_id: 'a', metric_name: 'm', tags: {}, min: time, avg: time, max: time, count }));
    return { rows, coverage: this.coverage() };
  }

  private coverage(): unknown {
    return { ...COVERAGE, complete: this.complete.shift() ?? true };
  }

  private series(): unknown {
    return { series: [{ device_id: 'a', metric_name: 'm', tags: {}, first_time: 20_000, last_time: 70_000 }], next_cursor: null, coverage: this.coverage() };
  }

  async run(wanted: Spec, hint: Hint = {}, seen: (data: Loaded) => void = () => undefined): Promise<Shown> {
    let shown: Shown = { loading: true };
    await run(wanted, hint, this, this.stop.signal, (change) => {
      shown = { ...shown, ...change };
      if (change.data !== undefined) seen(change.data);
    });
    return shown;
  }
}

function timesOf(shown: Shown): number[] {
  return shown.data?.lines.get(keyOf(LINE))?.times ?? [];
}

describe('what is loaded', () => {
  it('are buckets where there are more points than pixels, and not more than pixels', async () => {
    const world = new FakeWorld(100);
    const shown = await world.run(spec());
    expect(world.asked.map(({ path }) => path)).toEqual(['/query']);
    expect(shown.data?.step?.text).toBe('2s');
    expect(timesOf(shown).length).toBeLessThanOrEqual(100);
  });

  it('are the points where they fit', async () => {
    const world = new FakeWorld(10_000);
    const shown = await world.run(spec());
    expect(world.asked.map(({ path }) => path)).toEqual(['/query', '/api/v1/samples']);
    expect(shown.data?.step).toBeNull();
    expect(timesOf(shown)).toContain(50_000);
    expect(world.asked[1]!.body.limit).toBe(100);
  });

  it('are points at once where the answer before says that they will fit', async () => {
    const hint: Hint = {};
    await new FakeWorld(10_000).run(spec(), hint);
    const world = new FakeWorld(10_000);
    await world.run(spec({ range: { kind: 'fixed', startMs: 0, endMs: 50_000 } }), hint);
    expect(world.asked.map(({ path }) => path)).toEqual(['/api/v1/samples']);
  });

  it('are buckets after all where that was wrong', async () => {
    const world = new FakeWorld(100);
    const shown = await world.run(spec(), { pointsPerMs: 0.0001 });
    expect(world.asked.map(({ path }) => path)).toEqual(['/api/v1/samples', '/query']);
    expect(shown.data?.step?.text).toBe('2s');
  });

  it('is from the first to the last point where the range is open', async () => {
    const shown = await new FakeWorld(100).run(spec({ range: { kind: 'all' } }));
    expect(shown.data?.window).toEqual({ startMs: 19_000, endMs: 71_000 });
  });

  it("is the last minute by the server's clock, whatever this one's says", async () => {
    const world = new FakeWorld(100);
    world.aheadMs = -300_000;
    const shown = await world.run(spec({ range: { kind: 'last', seconds: 60 } }));
    expect(shown.data?.window).toEqual({ startMs: 640_000, endMs: 700_000 });
    expect(shown.data?.atMs).toBe(1_000_000);
  });

  it('is the day before as well, drawn over this one', async () => {
    const day = 86_400_000;
    const world = new FakeWorld(10_000);
    const shown = await world.run(spec({ range: { kind: 'fixed', startMs: day, endMs: day + 100_000 }, compareDays: 1 }));
    expect(shown.data?.compared.get(keyOf(LINE))?.times[0]).toBe(day);
  });

  it('asks for both days at once', async () => {
    const day = 86_400_000;
    const world = new FakeWorld(10_000);
    await world.run(spec({ range: { kind: 'fixed', startMs: day, endMs: day + 100_000 }, compareDays: 1 }));
    expect(world.asked.map(({ path }) => path)).toEqual(['/query', '/query', '/api/v1/samples', '/api/v1/samples']);
  });

  it('are days of UTC where the server does not know the zone, and it says so', async () => {
    const world = new FakeWorld(86_400_000 / 4);
    world.knowsZones = false;
    const hint: Hint = {};
    const years = spec({ range: { kind: 'fixed', startMs: 0, endMs: 50 * 86_400_000 }, utc: false });
    const shown = await world.run(years, hint);
    expect(world.asked.map(({ body }) => body.timezone !== undefined)).toEqual([true, false]);
    expect(world.asked[1]!.body.start_time).toBe('1970-01-01T00:00:00.000000000Z');
    expect([shown.error, shown.data?.utcDays, shown.data?.step?.text]).toEqual([undefined, true, '1d']);
    await world.run(years, hint);
    expect(world.asked).toHaveLength(3);
  });

  it('is a line without values where the series is gone', async () => {
    const world = new FakeWorld(100);
    world.failures = [new ApiError(404, 'unknown_series', 'no such device')];
    const shown = await world.run(spec());
    expect([shown.error, shown.data?.points, shown.loading]).toEqual([undefined, 0, false]);
  });
});

describe('live follow', () => {
  it('asks only for the end, and moves the window', async () => {
    const world = new FakeWorld(100, 1_000_000, 1);
    const shown = await world.run(spec({ range: { kind: 'last', seconds: 100 }, follow: true }));
    expect(world.paused).toEqual([2000, 2000]);
    expect(world.asked).toHaveLength(2);
    expect(Date.parse(String(world.asked[1]!.body.start_time))).toBeGreaterThanOrEqual(988_000);
    expect(shown.data?.window).toEqual({ startMs: 902_000, endMs: 1_002_000 });
    const times = timesOf(shown);
    expect(times).toEqual(Array.from({ length: times.length }, (_, at) => times[0]! + at * 2000));
    expect(times[times.length - 1]).toBe(1_000_000);
  });

  it('asks for everything once a minute', async () => {
    const world = new FakeWorld(100, 1_000_000, 30);
    await world.run(spec({ range: { kind: 'last', seconds: 100 }, follow: true }));
    const whole = world.asked.filter(({ body }) => Date.parse(String(body.end_time)) - Date.parse(String(body.start_time)) > 90_000);
    expect(whole).toHaveLength(2);
  });

  it('keeps what it has while the server is away, and goes on when it is back', async () => {
    const world = new FakeWorld(100, 1_000_000, 2);
    const seen: Shown[] = [];
    const stop = new AbortController();
    let calls = 0;
    const ask = <T>(path: string, options: AskOptions): Promise<T> => {
      calls += 1;
      return calls === 2 ? Promise.reject(new ApiError(503, 'not_ready', 'no ring')) : world.ask<T>(path, options);
    };
    const pause = async (ms: number): Promise<void> => {
      await world.pause(ms);
      if (seen.filter(({ data }) => data !== undefined).length === 2) stop.abort();
    };
    await run(spec({ range: { kind: 'last', seconds: 100 }, follow: true }), {}, { ask, now: () => world.now(), serverNow: () => world.serverNow(), pause }, stop.signal, (change) => seen.push(change));
    expect(seen.map(({ error, data }) => [error?.status, data !== undefined])).toEqual([
      [undefined, false], [undefined, true], [503, false], [undefined, true]]);
    expect(seen[2]!.retryAtMs).toBeGreaterThan(1_000_000);
  });

  it.each([[500, 'internal'], [503, 'timeout']])('goes on after an error %s that may not pass by itself', async (status, code) => {
    const world = new FakeWorld(100, 1_000_000, 3);
    world.failures = [undefined, new ApiError(status, code, 'failed', { setting: 'query.timeout_s' })];
    const shown = await world.run(spec({ range: { kind: 'last', seconds: 100 }, follow: true }));
    expect(world.paused).toHaveLength(4);
    expect(world.paused[1]).toBeGreaterThanOrEqual(30_000);
    expect([shown.error, timesOf(shown).at(-1)]).toEqual([undefined, 1_032_000]);
  });

  it('is incomplete as long as a part of it is, and asks for all of it when everybody is back', async () => {
    const world = new FakeWorld(100, 1_000_000, 5);
    world.complete = [false, false];
    const seen: (boolean | undefined)[] = [];
    await world.run(spec({ range: { kind: 'last', seconds: 100 }, follow: true }), {}, ({ coverage }) => seen.push(coverage?.complete));
    expect(seen).toEqual([false, false, false, true, true, true]);
    const whole = world.asked.filter(({ body }) => Date.parse(String(body.end_time)) - Date.parse(String(body.start_time)) > 90_000);
    expect(whole).toHaveLength(2);
  });

  it('asks as often as there are new buckets, at most once a second', () => {
    expect([tickMs(null, 0), tickMs({ ms: 20, text: '20ms' }, 0), tickMs({ ms: 5000, text: '5s' }, 0), tickMs({ ms: 3_600_000, text: '1h' }, 0)])
      .toEqual([1000, 1000, 5000, 30_000]);
    expect(tickMs(null, 1)).toBe(5000);
  });
});

describe('a wall', () => {
  it.each([['buckets', 900, 1000, 24], ['points', 900, 5000, 6]])('keeps what its width needs of %s, and nothing twice, for hours', async (_, seconds, stepMs, hours) => {
    const [pixels, begunMs] = [300, 1_700_000_000_000];
    const world = new FakeWorld(stepMs, begunMs, Infinity, begunMs + hours * 3_600_000);
    let most = 0;
    const shown = await world.run(spec({ range: { kind: 'last', seconds }, follow: true, pixels }), {}, (data) => {
      most = Math.max(most, data.lines.get(keyOf(LINE))!.times.length);
    });
    const times = timesOf(shown);
    expect(most).toBeLessThanOrEqual(pixels + 4);
    expect(times.every((time, at) => at === 0 || time > times[at - 1]!)).toBe(true);
    expect(times.at(-1)).toBeGreaterThan(world.now() - 60_000);
  }, 60_000);
});

describe('a view that is left', () => {
  it('shows nothing any more, whenever its answer comes', async () => {
    const stop = new AbortController();
    const shown: Shown[] = [];
    const world = new FakeWorld(100);
    const late: World = { ...world, now: () => 0, serverNow: async () => 0, pause: async () => undefined, ask: async <T>(path: string, options: AskOptions) => {
      const answer = await world.ask<T>(path, options);
      stop.abort(); // the view changes while the answer is on its way
      return answer;
    } };
    await run(spec(), {}, late, stop.signal, (change) => shown.push(change));
    expect([world.asked.length, shown.some(({ data }) => data !== undefined)]).toEqual([1, false]);
  });
});

describe('failures', () => {
  it('that stay are told and not tried again', async () => {
    const world = new FakeWorld(100);
    world.failures = [new ApiError(422, 'limit', 'too much')];
    const shown = await world.run(spec());
    expect([shown.error?.status, shown.retryAtMs, world.paused]).toEqual([422, undefined, []]);
  });

  it('that pass are tried again, not sooner than the server wants', async () => {
    const world = new FakeWorld(100, 1_000_000, 5);
    world.failures = [new ApiError(429, 'limit', 'busy', { retryAfterS: 7 })];
    const shown = await world.run(spec());
    expect(world.paused).toHaveLength(1);
    expect(world.paused[0]).toBeGreaterThanOrEqual(7000);
    expect(world.paused[0]).toBeLessThanOrEqual(8750); // spread by a quarter at most
    expect([shown.error, timesOf(shown).length > 0]).toEqual([undefined, true]);
  });
});
