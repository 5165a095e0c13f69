import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { aheadOf } from './me';

beforeEach(() => {
  vi.useFakeTimers({ now: 1_000_000 });
  vi.resetModules();
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

function answering(now: number, afterMs: number): void {
  vi.stubGlobal('fetch', () => new Promise((resolve) => {
    const body = JSON.stringify({ name: '', scopes: [], auth: false, version: '1', now });
    setTimeout(() => resolve(new Response(body, { headers: { 'Content-Type': 'application/json' } })), afterMs);
  }));
}

describe("the server's clock", () => {
  it('was read half way between question and answer', () => {
    expect(aheadOf(50_000, 1_000, 1_400)).toBe(48_800);
  });

  it('was read at most a second before the answer: what took longer waited for a person', () => {
    expect(aheadOf(50_000, 1_000, 61_000)).toBe(-10_000);
  });

  it('is the one that a page which has just been opened waits for', async () => {
    const { askMe, serverNow, serverNowKnown } = await import('./me');
    answering(1_120, 100); // two minutes ahead
    const known = serverNowKnown();
    expect(serverNow()).toBe(1_000_000);
    void askMe();
    await vi.advanceTimersByTimeAsync(100);
    expect(await known).toBe(1_000_100 + 119_950);
    expect(serverNow()).toBe(await known);
  });

  it("is this one's where no answer comes in time", async () => {
    const { askMe, serverNowKnown } = await import('./me');
    answering(1_120, 5_000);
    void askMe();
    const known = serverNowKnown();
    await vi.advanceTimersByTimeAsync(500);
    expect(await known).toBe(1_000_500);
  });
});
