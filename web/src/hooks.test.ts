import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { ApiError, reached, unreached } from './api/client';
import { setToken } from './api/session';
import { retryMs, runLoop, type State } from './hooks';

const least = (): number => 0;
const BUSY = new ApiError(503, 'incomplete', 'x');

describe('waiting after failures', () => {
  test('doubles each time, up to half a minute', () => {
    expect([1, 2, 3, 4, 10].map((failures) => retryMs(failures, 5000, BUSY, least))).toEqual([5000, 10_000, 20_000, 30_000, 30_000]);
  });

  test('is never shorter than the server wants, and by chance up to a quarter longer', () => {
    expect(retryMs(1, 1000, new ApiError(429, 'limit', 'x', { retryAfterS: 7 }), least)).toBe(7000);
    expect(retryMs(1, 1000, new ApiError(429, 'limit', 'x', { retryAfterS: 7000 }), least)).toBe(7_000_000);
    expect(retryMs(1, 1000, new ApiError(429, 'limit', 'x', { retryAfterS: 8 }), () => 1)).toBe(10_000);
  });

  test('a server that is away is looked for every ten seconds at least', () => {
    expect(retryMs(9, 1000, new ApiError(0, 'unreachable', 'x'), least)).toBe(10_000);
  });

  test('what is asked once begins with a second', () => {
    expect([1, 2].map((failures) => retryMs(failures, null, BUSY, least))).toEqual([1000, 2000]);
  });

  test('what is asked seldom is not stale for long after a short trouble', () => {
    expect([1, 2, 3, 4].map((failures) => retryMs(failures, 60_000, BUSY, least))).toEqual([5000, 10_000, 20_000, 30_000]);
  });
});

describe('asking again and again', () => {
  const page = Object.assign(new EventTarget(), { hidden: false });
  let asked = 0;
  let next: () => Promise<number>;
  let state: State<number>;
  let loop: { stop(): void; now(): void } | undefined;

  beforeEach(() => {
    vi.useFakeTimers();
    vi.stubGlobal('document', page);
    page.hidden = false;
    asked = 0;
    state = { loading: true, fresh: false, late: false };
    next = () => Promise.resolve(asked);
    reached();
  });

  afterEach(() => {
    loop?.stop();
    vi.unstubAllGlobals();
    vi.useRealTimers();
  });

  function start(everyMs: number | null): void {
    const fn = () => {
      asked += 1;
      return next();
    };
    loop = runLoop<number>(() => fn, everyMs, (change) => {
      state = { ...state, ...change };
    });
  }

  const pass = (ms: number): Promise<unknown> => vi.advanceTimersByTimeAsync(ms);

  test('what was stopped asks no more, whoever still holds it', async () => {
    start(1000);
    await pass(0);
    loop?.stop();
    loop?.now();
    await pass(60_000);
    expect(asked).toBe(1);
    expect(state.late, 'no timer was left').toBe(false);
  });

  test('at once and then every so often', async () => {
    start(1000);
    await pass(0);
    expect(state).toMatchObject({ value: 1, fresh: true, loading: false });
    await pass(2000);
    expect(asked).toBe(3);
  });

  test('what was there stays when it fails, and is fresh again afterwards', async () => {
    start(1000);
    await pass(0);
    next = () => Promise.reject(BUSY);
    await pass(1000);
    expect(state).toMatchObject({ value: 1, error: BUSY, fresh: false, loading: false });
    next = () => Promise.resolve(7);
    await pass(1300);
    expect(state).toMatchObject({ value: 7, error: undefined, fresh: true });
  });

  test('one that waits long asks at once when the server is back', async () => {
    start(1000);
    await pass(0);
    next = () => Promise.reject(new ApiError(0, 'unreachable', 'x'));
    unreached('x');
    await pass(9000);
    const before = asked;
    next = () => Promise.resolve(7);
    reached();
    await pass(0);
    expect(asked).toBe(before + 1);
    expect(state.value).toBe(7);
  });

  test('what fails by itself is not asked more often because something else succeeds', async () => {
    next = () => {
      unreached('x');
      return Promise.reject(new ApiError(0, 'unreachable', 'x'));
    };
    start(1000);
    for (let second = 0; second < 60; second += 1) {
      await pass(1000);
      reached();
    }
    expect(asked).toBeLessThan(12);
  });

  test('what the server wants to be left alone for is not asked sooner because the server is back', async () => {
    start(1000);
    await pass(0);
    next = () => Promise.reject(new ApiError(429, 'limit', 'x', { retryAfterS: 30 }));
    unreached('x');
    await pass(1000);
    reached();
    await pass(28_000);
    expect(asked).toBe(2);
    await pass(12_000);
    expect(asked).toBe(3);
  });

  test('what takes long is called late, and what was there is no more fresh', async () => {
    start(1000);
    await pass(0);
    let answer: (value: number) => void = () => undefined;
    next = () => new Promise((resolve) => (answer = resolve));
    await pass(8000);
    expect(state).toMatchObject({ value: 1, late: true, fresh: false });
    answer(9);
    await pass(0);
    expect(state).toMatchObject({ value: 9, late: false, fresh: true });
  });

  test('an answer that is cut is asked for again some times, and then no more', async () => {
    next = () => Promise.reject(new ApiError(200, 'not_json', 'x'));
    start(null);
    await pass(120_000);
    expect(asked).toBe(4);
  });

  test('a question that the server has no time for is not asked again by itself', async () => {
    next = () => Promise.reject(new ApiError(503, 'incomplete', 'x', { setting: 'query.timeout_s' }));
    start(null);
    await pass(120_000);
    expect(asked).toBe(1);
  });

  test('a page that nobody sees asks nothing, and asks at once when it is seen', async () => {
    start(1000);
    await pass(0);
    page.hidden = true;
    await pass(60_000);
    expect(asked).toBe(1);
    page.hidden = false;
    page.dispatchEvent(new Event('visibilitychange'));
    await pass(0);
    expect(asked).toBe(2);
  });

  test('what is asked once is not asked again for an error that stays', async () => {
    next = () => Promise.reject(new ApiError(400, 'bad_request', 'x'));
    start(null);
    await pass(60_000);
    expect(asked).toBe(1);
  });

  test('what is asked once is asked again while the server is busy, and then no more', async () => {
    next = () => (asked < 3 ? Promise.reject(BUSY) : Promise.resolve(5));
    start(null);
    await pass(60_000);
    expect(asked).toBe(3);
    expect(state.value).toBe(5);
  });

  test('another token asks anew', async () => {
    start(null);
    await pass(0);
    setToken('other');
    await pass(0);
    expect(asked).toBe(2);
    setToken('');
  });

  test('an answer that comes after the end changes nothing', async () => {
    let answer: (value: number) => void = () => undefined;
    next = () => new Promise((resolve) => (answer = resolve));
    start(1000);
    await pass(0);
    loop?.stop();
    answer(9);
    await pass(5000);
    expect(state.value).toBeUndefined();
    expect(asked).toBe(1);
  });
});
