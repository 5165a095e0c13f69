import { describe, expect, it } from 'vitest';
import { seriesKey } from '../data/stored';
import { pointsOf, type Heard, type Series } from './series';
import { LiveStore, patienceMs, RATE_SECONDS, SPARK_POINTS } from './store';

const NOW = 1_700_000_000_000;

function point(device: string, time: number, value: number | null = 1, tags: Record<string, string> = {}): Heard {
  return { device_id: device, metric_name: 'm', tags, time, value };
}

function opened(most?: number): LiveStore {
  const store = new LiveStore(NOW, most);
  store.listen(true, NOW);
  return store;
}

function only(store: LiveStore): Series {
  const [series] = [...store.all];
  if (series === undefined) throw new Error('no series');
  return series;
}

/** A point each second until `seconds` after NOW. */
function talk(store: LiveStore, device: string, seconds: number): void {
  for (let at = 0; at <= seconds; at += 1) store.take([point(device, NOW + at * 1000, at)], NOW + at * 1000);
}

describe('series', () => {
  it('are told apart by tags, whatever characters ids have', () => {
    const key = (device: string, metric: string, tags: Record<string, string>) =>
      seriesKey({ device_id: device, metric_name: metric, tags });
    expect(key('a","b', 'c', {})).not.toBe(key('a', 'b","c', {}));
    expect(key('a', 'b', { x: '1', y: '2' })).toBe(key('a', 'b', { y: '2', x: '1' }));
    expect(key('a', 'b', { x: '1' })).not.toBe(key('a', 'b', { x: '2' }));
  });

  it('keep the newest value; a late point is no last value', () => {
    const store = opened();
    store.take([point('d', NOW, 1), point('d', NOW + 1000, 2), point('d', NOW + 500, 9)], NOW + 1000);
    expect(only(store).last).toBe(2);
    expect(only(store).values).toEqual([1, 2]);
    expect(only(store).points).toBe(3);
  });

  it('take the later of two values of one time', () => {
    const store = opened();
    store.take([point('d', NOW, 1), point('d', NOW, 5)], NOW);
    expect(only(store).values).toEqual([5]);
    expect(only(store).last).toBe(5);
  });

  it('are bounded in number and in values, and what is not kept is counted', () => {
    const store = opened(10);
    for (let at = 0; at < 25; at += 1) store.take([point(`d${at}`, NOW)], NOW);
    expect(store.size).toBe(10);
    expect(store.notKept).toBe(15);
    for (let at = 1; at < 500; at += 1) store.take([point('d0', NOW + at)], NOW);
    expect([...store.all].find(({ device }) => device === 'd0')?.values.length).toBe(SPARK_POINTS);
  });

  it('that speak have a place before those that are only known of', () => {
    const store = opened(3);
    const known = { metric_name: 'm', tags: {}, last: 1, last_time: NOW - 1000, expected_interval_s: 1 };
    store.seed(['a', 'b', 'c', 'd'].map((device_id) => ({ device_id, ...known })), NOW);
    store.take([point('x', NOW), point('y', NOW)], NOW);
    expect([...store.all].map(({ device }) => device)).toEqual(['c', 'x', 'y']);
    store.seed([{ device_id: 'wanted', ...known }], NOW, NOW, true);
    expect([...store.all].map(({ device }) => device)).toEqual(['x', 'y', 'wanted']);
    expect(store.notKept).toBe(0);
  });

  it('that came and went make room, the one that is silent for longest first', () => {
    const store = opened(2);
    store.take([point('a', NOW), point('b', NOW)], NOW);
    store.take([point('a', NOW + 61_000), point('c', NOW + 61_000)], NOW + 61_000);
    expect([...store.all].map(({ device }) => device)).toEqual(['a', 'c']);
    store.take([point('d', NOW + 62_000)], NOW + 62_000);
    expect(store.notKept).toBe(1);
  });

  it('have as usual interval the median of their last, so that one pause does not change it', () => {
    const store = opened();
    talk(store, 'd', 6);
    store.take([point('d', NOW + 100_000)], NOW + 100_000);
    expect(only(store).usualMs).toBe(1000);
    expect(patienceMs(only(store))).toBe(5000);
  });
});

describe('silence', () => {
  it('is more than three usual intervals, five seconds at least', () => {
    const store = opened();
    talk(store, 'd', 5);
    const series = only(store);
    expect(store.isSilent(series, NOW + 10_000)).toBe(false);
    expect(store.isSilent(series, NOW + 10_001)).toBe(true);
    store.take([point('d', NOW + 11_000)], NOW + 11_000);
    expect(store.isSilent(series, NOW + 11_001)).toBe(false);
  });

  it('does not grow while the stream is away', () => {
    const store = opened();
    talk(store, 'd', 5);
    store.listen(false, NOW + 6_000);
    expect(store.isSilent(only(store), NOW + 600_000)).toBe(false);
    store.listen(true, NOW + 600_000);
    expect(store.isSilent(only(store), NOW + 603_999)).toBe(false);
    expect(store.isSilent(only(store), NOW + 604_001)).toBe(true);
  });

  it('is known at once of series that the server knows as silent', () => {
    const store = opened();
    const known = { device_id: 'old', metric_name: 'm', tags: {}, last: 3, expected_interval_s: 10 };
    store.seed([{ ...known, last_time: NOW - 31_000 }], NOW);
    expect(store.isSilent(only(store), NOW)).toBe(true);
    expect(only(store).last).toBe(3);
    store.take([point('old', NOW)], NOW);
    expect(store.isSilent(only(store), NOW + 29_000)).toBe(false);
  });

  it('of a device is that of all its series', () => {
    const store = opened();
    talk(store, 'a', 5);
    store.seed(
      [
        { device_id: 'a', metric_name: 'other', tags: {}, last: 1, last_time: NOW - 90_000, expected_interval_s: 1 },
        { device_id: 'b', metric_name: 'm', tags: {}, last: 1, last_time: NOW - 90_000, expected_interval_s: 1 },
      ],
      NOW + 5000,
    );
    expect(store.summary(NOW + 5000)).toEqual({ series: 3, devices: 2, silentSeries: 2, silentDevices: 1 });
  });

  it('of a series whose interval nobody knows is a minute', () => {
    const store = opened();
    store.take([point('d', NOW)], NOW);
    expect(store.isSilent(only(store), NOW + 59_000)).toBe(false);
    expect(store.isSilent(only(store), NOW + 61_000)).toBe(true);
  });
});

describe('interruptions', () => {
  it('are a break in the sparkline and no interval', () => {
    const store = opened();
    talk(store, 'd', 4);
    store.listen(false, NOW + 4500);
    store.listen(true, NOW + 60_000);
    store.take([point('d', NOW + 61_000, 7)], NOW + 61_000);
    expect(only(store).values).toEqual([0, 1, 2, 3, 4, NaN, 7]);
    expect(only(store).usualMs).toBe(1000);
  });

  it('are made good by what the server holds, unless something newer was heard', () => {
    const store = opened();
    store.take([point('d', NOW, 1)], NOW);
    const known = { device_id: 'd', metric_name: 'm', tags: {}, expected_interval_s: null };
    store.seed([{ ...known, last: 0, last_time: NOW - 5 }], NOW + 10);
    expect(only(store).last).toBe(1);
    store.seed([{ ...known, last: 8, last_time: NOW + 5 }], NOW + 10);
    expect(only(store).last).toBe(8);
  });
});

describe('rate', () => {
  it('is that of the last whole seconds', () => {
    const store = opened();
    for (let second = 0; second < 10; second += 1) {
      store.take(new Array<Heard>(50).fill(point('d', NOW)), NOW + second * 1000);
    }
    expect(store.rate(NOW + 10_000)).toBe(50);
    expect(store.rate(NOW + 12_500)).toBe(30);
    expect(store.rate(NOW + 60_000)).toBe(0);
  });

  it('of each second is kept for a minute, oldest first, empty seconds as 0', () => {
    const store = opened();
    store.take([point('d', NOW), point('d', NOW + 1)], NOW);
    store.take([point('d', NOW + 2000)], NOW + 2000);
    expect(store.rates(NOW + 4000)).toEqual([2, 0, 1, 0]);
    expect(store.rates(NOW + 400_000)).toEqual(new Array(RATE_SECONDS - 1).fill(0));
  });
});

describe('a frozen copy', () => {
  it('does not change with its original', () => {
    const store = opened();
    store.take([point('d', NOW, 1)], NOW);
    const copy = store.frozen(NOW);
    store.take([point('d', NOW + 1000, 2), point('e', NOW)], NOW + 1000);
    expect(copy.size).toBe(1);
    expect(only(copy).values).toEqual([1]);
    expect(copy.isSilent(only(copy), NOW)).toBe(false);
  });
});

describe('data of point events', () => {
  it('is taken as far as it is what it should be', () => {
    const good = point('<b>', NOW, null);
    expect(pointsOf([good, { device_id: 1 }, null, 'x', { ...good, time: '1' }])).toEqual([good]);
    expect(pointsOf({})).toEqual([]);
    expect(pointsOf(null)).toEqual([]);
  });
});
