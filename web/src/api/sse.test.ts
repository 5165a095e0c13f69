import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { reached, unreached } from './client';
import { json, serve, type Serving } from './serve.test-helper';
import { giveUp, openSignIn, setToken, signInWanted } from './session';
import { backoffMs, openStream, sseParser, type OpenStream, type SseEvent, type StreamState } from './sse';

function parse(pieces: string[]): SseEvent[] {
  const events: SseEvent[] = [];
  const take = sseParser((event) => events.push(event));
  pieces.forEach(take);
  return events;
}

const TEXT = 'event: ready\ndata: {"nodes":["a"]}\n\n: heartbeat\n\nevent: point\r\ndata: [1]\r\n\r\ndata: two\ndata:lines\nid: 5\n\n';
const EVENTS = [
  { name: 'ready', data: '{"nodes":["a"]}' }, { name: 'point', data: '[1]' }, { name: 'message', data: 'two\nlines' },
];

describe('the text of events', () => {
  test('whole', () => {
    expect(parse([TEXT])).toEqual(EVENTS);
  });

  test('cut anywhere in two', () => {
    for (let cut = 0; cut <= TEXT.length; cut += 1) expect(parse([TEXT.slice(0, cut), TEXT.slice(cut)])).toEqual(EVENTS);
  });

  test('by single characters', () => {
    expect(parse([...TEXT])).toEqual(EVENTS);
  });

  test('an event that does not end is none, nor is one without data', () => {
    expect(parse(['event: point\ndata: [1]\n'])).toEqual([]);
    expect(parse(['event: point\n\n'])).toEqual([]);
  });

  test('only the first space goes, and a colon may be in the data', () => {
    expect(parse(['data:  a: b\n\n'])).toEqual([{ name: 'message', data: ' a: b' }]);
  });
});

describe('waiting', () => {
  test('doubles up to half a minute', () => {
    expect([1, 2, 3, 20].map((failures) => backoffMs(failures, undefined, () => 0.5))).toEqual([500, 1000, 2000, 30_000]);
  });

  test('is spread by a quarter each way', () => {
    expect(backoffMs(1, undefined, () => 0)).toBe(375);
    expect(backoffMs(1, undefined, () => 1)).toBe(625);
  });

  test('is not shorter than the server wants', () => {
    expect(backoffMs(1, 5, () => 0.5)).toBe(5000);
  });
});

describe('a stream', () => {
  let serving: Serving | undefined;
  let stream: OpenStream | undefined;
  const page = Object.assign(new EventTarget(), { hidden: false });

  beforeEach(() => {
    page.hidden = false;
    vi.stubGlobal('document', page);
  });

  afterEach(async () => {
    stream?.close();
    await serving?.close();
    vi.unstubAllGlobals();
    setToken('');
    openSignIn();
    signInWanted.set(null);
  });

  function see(hidden: boolean): void {
    page.hidden = hidden;
    page.dispatchEvent(new Event('visibilitychange'));
  }

  function watch(): { states: StreamState[]; events: unknown[] } {
    const seen = { states: [] as StreamState[], events: [] as unknown[] };
    stream = openStream('/live', { device_id: 'a' }, {
      event: (name, data) => seen.events.push([name, data]),
      state: (state) => seen.states.push(state),
    });
    return seen;
  }

  test('that breaks is opened again, and says so', async () => {
    let turn = 0;
    serving = await serve((_, response) => {
      turn += 1;
      response.writeHead(200, { 'content-type': 'text/event-stream' }).write(`event: point\ndata: [${turn}]\n\n`);
      if (turn === 1) setTimeout(() => response.destroy(), 20);
    });
    const { states, events } = watch();
    await vi.waitFor(() => expect(events).toEqual([['point', [1]], ['point', [2]]]), { timeout: 5000 });
    expect(states.map(({ kind }) => kind)).toEqual(['connecting', 'open', 'lost', 'connecting', 'open']);
  });

  test('that the server ends with an error says its words', async () => {
    serving = await serve((_, response) =>
      response.writeHead(200).end('event: error\ndata: {"error": "slow_reader", "message": "too slow"}\n\n'));
    const { states } = watch();
    await vi.waitFor(() => expect(states.find(({ kind }) => kind === 'lost')).toMatchObject({ reason: 'The server dropped this page as too slow a reader: too slow' }));
  });

  test('that is refused says why and waits as long as it should', async () => {
    serving = await serve((_, response) => json(response, 429, { error: 'limit', message: 'too many streams' }, { 'retry-after': '9' }));
    const { states } = watch();
    await vi.waitFor(() => expect(states.at(-1)).toMatchObject({ kind: 'lost', reason: 'too many streams' }));
    const last = states.at(-1);
    if (last?.kind === 'lost') expect(last.retryAtMs - Date.now()).toBeGreaterThan(8000);
    stream?.again(); // a person does not want to wait
    await vi.waitFor(() => expect(states.map(({ kind }) => kind)).toEqual(['connecting', 'lost', 'connecting', 'lost']));
  });

  test('that failed because the server was away is opened when another question reaches it', async () => {
    serving = await serve((request) => request.socket.destroy());
    const { states } = watch();
    await vi.waitFor(() => expect(states.filter(({ kind }) => kind === 'lost')).toHaveLength(3), { timeout: 5000 });
    const before = states.length;
    unreached('it is still away');
    reached();
    expect(states.length).toBe(before + 1);
    expect(states.at(-1)).toEqual({ kind: 'connecting' });
  });

  test('that nobody is signed in for is opened when somebody is', async () => {
    serving = await serve((request, response) => {
      if (request.headers.authorization !== 'Bearer good') return json(response, 401, { error: 'unauthorized', message: 'no' });
      response.writeHead(200).write('event: ready\ndata: {}\n\n');
    });
    const { states, events } = watch();
    await vi.waitFor(() => expect(signInWanted.get()).not.toBeNull());
    giveUp();
    await vi.waitFor(() => expect(states.at(-1)).toMatchObject({ kind: 'lost', reason: 'This server wants a token.' }));
    setToken('good');
    await vi.waitFor(() => expect(events).toEqual([['ready', {}]]));
  });

  test('that nobody looks at for a minute gives its connection back, and is opened when somebody does', async () => {
    serving = await serve((_, response) => void response.writeHead(200).write('event: ready\ndata: {}\n\n'));
    const { states, events } = watch();
    await vi.waitFor(() => expect(events).toHaveLength(1));
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    see(true);
    vi.advanceTimersByTime(59_000);
    expect(states.at(-1)).toEqual({ kind: 'open' });
    vi.advanceTimersByTime(60_000);
    expect(states.at(-1)).toMatchObject({ kind: 'lost', reason: 'Nobody looked at this page' });
    vi.useRealTimers();
    see(false);
    await vi.waitFor(() => expect(events).toHaveLength(2));
  });

  test('that was closed says nothing more', async () => {
    serving = await serve((_, response) => void response.writeHead(200).write('event: ready\ndata: {}\n\n'));
    const { states, events } = watch();
    await vi.waitFor(() => expect(events).toHaveLength(1));
    stream?.close();
    const before = states.length;
    await serving.close();
    serving = undefined;
    expect(states).toHaveLength(before);
  });
});
