import { describe, expect, it } from 'vitest';
import type { Heard } from './series';
import { LiveStore } from './store';
import { Arranger, oneOf, PerFrame, rowsInside, type Wanted } from './view';

const NOW = 1_700_000_000_000;
const ALL: Wanted = { find: '', show: 'all', sort: 'name' };

function point(device: string, value: number, time = NOW): Heard {
  return { device_id: device, metric_name: 'temp', tags: { room: 'Lab' }, time, value };
}

function filled(): LiveStore {
  const store = new LiveStore(NOW);
  store.listen(true, NOW);
  store.take([point('s10', 1), point('s2', 3, NOW + 5), point('pump', 2, NOW + 9)], NOW);
  return store;
}

function devices(store: LiveStore, wanted: Partial<Wanted>, nowMs = NOW): string[] {
  return new Arranger().arrange(store, { ...ALL, ...wanted }, nowMs).map((series) => series.device);
}

describe('what is shown', () => {
  it('comes by name, numbers in them as numbers', () => {
    expect(devices(filled(), {})).toEqual(['pump', 's2', 's10']);
  });

  it('comes by value, newest or longest silence, if so wanted', () => {
    expect(devices(filled(), { sort: 'value' })).toEqual(['s2', 'pump', 's10']);
    expect(devices(filled(), { sort: 'newest' })).toEqual(['pump', 's2', 's10']);
    const store = filled();
    store.take([point('pump', 1, NOW + 900), point('s10', 1, NOW + 900)], NOW + 900);
    expect(devices(store, { sort: 'quiet' })[0]).toBe('s2');
  });

  it('has every word in device, metric or tags, whatever the case', () => {
    expect(devices(filled(), { find: 'S  lab' })).toEqual(['s2', 's10']);
    expect(devices(filled(), { find: 'TEMP pump' })).toEqual(['pump']);
    expect(devices(filled(), { find: 'absent' })).toEqual([]);
  });

  it('is what is silent, or what is not', () => {
    const store = filled();
    store.take([point('s2', 3, NOW + 70_000)], NOW + 70_000);
    expect(devices(store, { show: 'silent' }, NOW + 70_000)).toEqual(['pump', 's10']);
    expect(devices(store, { show: 'speaking' }, NOW + 70_000)).toEqual(['s2']);
  });

  it('has series that came since', () => {
    const store = filled();
    const arranger = new Arranger();
    expect(arranger.arrange(store, ALL, NOW)).toHaveLength(3);
    store.take([point('a', 1)], NOW);
    expect(arranger.arrange(store, ALL, NOW).map((series) => series.device)).toEqual(['a', 'pump', 's2', 's10']);
    expect(arranger.arrange(new LiveStore(NOW), ALL, NOW)).toEqual([]);
  });
});

describe('rows in the window', () => {
  it('are those inside and some more', () => {
    expect(rowsInside(1000, 400, 40, 1000, 3)).toEqual({ first: 22, end: 38 });
  });

  it('never leave the list', () => {
    expect(rowsInside(0, 400, 40, 5, 3)).toEqual({ first: 0, end: 5 });
    expect(rowsInside(-50, 400, 40, 100, 3)).toEqual({ first: 0, end: 13 });
    expect(rowsInside(90_000, 400, 40, 10, 3)).toEqual({ first: 10, end: 10 });
    expect(rowsInside(0, 0, 40, 0, 3)).toEqual({ first: 0, end: 0 });
  });
});

describe('per frame', () => {
  function made(leastMs: number) {
    const waiting = new Map<number, (atMs: number) => void>();
    let handles = 0;
    let runs = 0;
    const request = (then: (atMs: number) => void) => (waiting.set((handles += 1), then), handles);
    const once = new PerFrame(() => void (runs += 1), leastMs, request, (handle) => void waiting.delete(handle));
    const frame = (atMs: number) => {
      const due = [...waiting.values()];
      waiting.clear();
      due.forEach((then) => then(atMs));
    };
    return { once, waiting, frame, runs: () => runs };
  }

  it('runs once however often it was asked, and not after stop', () => {
    const { once, waiting, frame, runs } = made(0);
    once.ask();
    once.ask();
    expect(waiting.size).toBe(1);
    frame(1);
    expect(runs()).toBe(1);
    once.ask();
    once.stop();
    frame(2);
    expect(runs()).toBe(1);
  });

  it('waits for a later frame while the last run is too young', () => {
    const { once, frame, runs } = made(100);
    once.ask();
    frame(1000);
    once.ask();
    frame(1016);
    expect(runs()).toBe(1);
    frame(1100);
    expect(runs()).toBe(2);
    frame(1200);
    expect(runs()).toBe(2);
  });
});

describe('a choice in the URL', () => {
  it('is one of those that exist', () => {
    expect(oneOf('b', ['a', 'b'])).toBe('b');
    expect(oneOf('<script>', ['a', 'b'])).toBe('a');
  });
});
