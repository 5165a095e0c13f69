import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { ApiError, reached, unreached } from './api/client';
import { setToken } from './api/session';
import { retryMs, runLoop, type State } from './hooks';

const BUSY = new ApiError(503, 'incomplete', 'x');

describe('waiting after failures', () => {
  test('doubles each time, up to a minute', () => {
    expect([1, 2, 3, 4, 10].map((failures) => retryMs(failures, 5000, BUSY))).toEqual([5000, 10_000, 20_000, 40_000, 60_000]);
  });

  test('is never shorter than the server wants, but for more than a minute nobody waits', () => {
    expect(retryMs(1, 1000, new ApiError(429, 'limit', 'x', { retryAfterS: 7 }))).toBe(7000);
    expect(retryMs(1, 1000, new ApiError(429, 'limit', 'x', { retryAfterS: 7000 }))).toBe(60_000);
  });

  test('a server that is away is looked for every ten seconds at least', () => {
    expect(retryMs(9, 1000, new ApiError(0, 'unreachable', 'x'))).toBe(10_000);
  });

  test('what is asked once begins with a second', () => {
    expect([1, 2].map((failures) => retryMs(failures, null, BUSY))).toEqual([1000, 2000]);
  });

  test('what is asked seldom is not asked more often because it fails', () => {
    expect(retryMs(1, 120_000, BUSY)).toBe(120_000);
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
    state = { loading: true, fresh: false };
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
    await pass(1000);
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
