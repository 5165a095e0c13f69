import { expect, test } from 'vitest';
import { ApiError } from './api/client';
import { retryMs } from './hooks';

const BUSY = new ApiError(503, 'incomplete', 'x');

test('after each failure the wait doubles, up to a minute', () => {
  expect([1, 2, 3, 4, 10].map((failures) => retryMs(failures, 5000, BUSY))).toEqual([5000, 10_000, 20_000, 40_000, 60_000]);
});

test('never sooner than the server wants, but for more than a minute nobody waits', () => {
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
  expect(retryMs(1, 120_000, BUSY)).toBeGreaterThanOrEqual(60_000);
});
