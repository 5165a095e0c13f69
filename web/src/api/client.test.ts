import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { ApiError, ask, connection, isAborted, isPassing, retryAfter, slowSince, tryToken, urlOf } from './client';
import { json, serve, type Answer, type Serving } from './serve.test-helper';
import { giveUp, openSignIn, setToken, signIn, signInWanted, token } from './session';

let serving: Serving | undefined;

async function answering(answer: Answer): Promise<void> {
  serving = await serve(answer);
}

async function failed(promise: Promise<unknown>): Promise<ApiError> {
  const error: unknown = await promise.then(() => undefined, (thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(ApiError);
  return error as ApiError;
}

beforeEach(() => {
  setToken('');
  openSignIn();
  signInWanted.set(null);
});

afterEach(async () => {
  await serving?.close();
  serving = undefined;
});

describe('URLs', () => {
  test('lists repeat, undefined is left out, everything is encoded', () => {
    expect(urlOf('/a', { d: ['x&y', 'ü '], n: 5, b: false, u: undefined })).toBe('/a?d=x%26y&d=%C3%BC+&n=5&b=false');
    expect(urlOf('/a', { u: undefined })).toBe('/a');
  });

  test('a plus in a time is no space', () => {
    expect(urlOf('/a', { t: '2024-05-01T12:00:00+02:00' })).toContain('%2B02');
  });
});

describe('answers', () => {
  test('a body goes as JSON and an answer comes back', async () => {
    await answering((request, response, body) => json(response, 200, { got: JSON.parse(body) as unknown, type: request.headers['content-type'] }));
    expect(await ask('/query', { method: 'POST', body: { a: '\u202e' } })).toEqual({ got: { a: '\u202e' }, type: 'application/json' });
    expect(connection.get().kind).toBe('up');
  });

  test('an error says what the server says', async () => {
    const coverage = { missing: [{ node: 'ing2', partitions: 3, reason: 'gone' }] };
    await answering((_, response) => json(response, 503, { error: 'incomplete', message: 'lacks', setting: 's', limit: 1, value: 2, coverage }, { 'retry-after': '3' }));
    const error = await failed(ask('/x'));
    expect(error).toMatchObject({ status: 503, code: 'incomplete', message: 'lacks', setting: 's', limit: 1, value: 2, coverage, retryAfterS: 3 });
    expect(isPassing(error)).toBe(true);
    expect(connection.get().kind).toBe('up');
  });

  test('a field at fault is named, and does not pass by itself', async () => {
    await answering((_, response) => json(response, 400, { error: 'bad_request', message: 'unknown operation', field: 'operation' }));
    const error = await failed(ask('/x'));
    expect(error.field).toBe('operation');
    expect(isPassing(error)).toBe(false);
  });

  test('a page of something in between is said by its status', async () => {
    await answering((_, response) => response.writeHead(502, 'Bad Gateway').end('<html>'));
    expect(await failed(ask('/x'))).toMatchObject({ status: 502, code: 'http_error', message: 'The server answered 502 Bad Gateway' });
  });

  test('half an answer is none', async () => {
    await answering((_, response) => response.writeHead(200).end('{"rows": [1, 2'));
    expect(await failed(ask('/x'))).toMatchObject({ status: 200, code: 'not_json' });
  });

  test('an answer that breaks off is no answer', async () => {
    await answering((_, response) => {
      response.writeHead(200, { 'content-length': '100' }).write('{');
      setTimeout(() => response.destroy(), 20);
    });
    const error = await failed(ask('/x'));
    expect(error).toMatchObject({ status: 0, code: 'broken' });
    expect(isPassing(error)).toBe(true);
    expect(connection.get().kind).toBe('up');
  });

  test('when to come back: seconds, or a time as proxies say it', () => {
    const now = Date.parse('2024-05-01T12:00:00Z');
    expect(retryAfter('7')).toBe(7);
    expect(retryAfter('Wed, 01 May 2024 12:00:30 GMT', now)).toBe(30);
    expect(retryAfter('Wed, 01 May 2024 11:00:00 GMT', now)).toBe(0);
    expect([null, '', '-1', 'soon'].map((text) => retryAfter(text))).toEqual([undefined, undefined, undefined, undefined]);
  });

  test('a question that takes long is told of until it is over', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date'] });
    try {
      await answering(() => undefined);
      const controller = new AbortController();
      const begunMs = Date.now();
      const one = failed(ask('/x', { signal: controller.signal }));
      expect(slowSince.get()).toBeNull();
      vi.advanceTimersByTime(6_000);
      expect(slowSince.get()).toBe(begunMs);
      controller.abort();
      await one;
      expect(slowSince.get()).toBeNull();
    } finally {
      vi.useRealTimers();
    }
  });

  test('no server: it says so, and passes', async () => {
    await answering((request) => request.socket.destroy());
    const error = await failed(ask('/x'));
    expect(error).toMatchObject({ status: 0, code: 'unreachable' });
    expect(isPassing(error)).toBe(true);
    expect(connection.get()).toMatchObject({ kind: 'down' });
  });

  test('a server that is too slow: it says how long was waited', async () => {
    await answering(() => undefined);
    expect(await failed(ask('/x', { timeoutMs: 50 }))).toMatchObject({ code: 'timeout' });
  });

  test('a question that is taken back is no fault of the server', async () => {
    await answering(() => undefined);
    const controller = new AbortController();
    const promise = failed(ask('/x', { signal: controller.signal }));
    controller.abort();
    expect(isAborted(await promise)).toBe(true);
  });
});

describe('tokens', () => {
  const guarded: Answer = (request, response) => {
    if (request.headers.authorization === 'Bearer good') json(response, 200, { ok: true });
    else json(response, 401, { error: 'unauthorized', message: 'no token' }, { 'www-authenticate': 'Bearer' });
  };

  test('after a sign-in everybody who waited is asked again', async () => {
    await answering(guarded);
    const both = Promise.all([ask('/a'), ask('/b')]);
    await vi.waitFor(() => expect(signInWanted.get()).toBe('This server wants a token.'));
    signIn('good');
    expect(await both).toEqual([{ ok: true }, { ok: true }]);
    expect(signInWanted.get()).toBeNull();
  });

  test('a token is tried without anybody else hearing of it', async () => {
    await answering(guarded);
    await tryToken('good', new AbortController().signal);
    expect(await failed(tryToken('bad', new AbortController().signal))).toMatchObject({ status: 401, message: 'no token' });
    expect(token.get()).toBe('');
    expect(signInWanted.get()).toBeNull();
  });

  test('who is refused in the middle of a session is told that it is over', async () => {
    await answering(guarded);
    setToken('gone');
    const one = ask('/a');
    await vi.waitFor(() => expect(signInWanted.get()).toBe('You were signed out: no token.'));
    signIn('good');
    expect(await one).toEqual({ ok: true });
  });

  test('a question that is taken back waits for nobody', async () => {
    await answering(guarded);
    const controller = new AbortController();
    const one = failed(ask('/a', { signal: controller.signal }));
    await vi.waitFor(() => expect(signInWanted.get()).not.toBeNull());
    controller.abort();
    await one;
    const other = ask('/b');
    signIn('good');
    expect(await other).toEqual({ ok: true });
  });

  test('a wrong token is asked for once more', async () => {
    await answering(guarded);
    const one = ask('/a');
    await vi.waitFor(() => expect(signInWanted.get()).not.toBeNull());
    signIn('bad');
    await vi.waitFor(() => expect(signInWanted.get()).not.toBeNull());
    signIn('good');
    expect(await one).toEqual({ ok: true });
  });

  test('who closes the dialog gets the error, and is not asked again', async () => {
    await answering(guarded);
    const one = failed(ask('/a'));
    await vi.waitFor(() => expect(signInWanted.get()).not.toBeNull());
    giveUp();
    expect((await one).status).toBe(401);
    expect((await failed(ask('/a'))).status).toBe(401);
    expect(signInWanted.get()).toBeNull();
  });

  test('the token is in the header and never in the URL', async () => {
    const seen: (string | undefined)[] = [];
    await answering((request, response) => {
      seen.push(request.url, request.headers.authorization);
      json(response, 200, {});
    });
    setToken('mt_secret');
    await ask('/a', { params: { x: 1 } });
    expect(seen).toEqual(['/a?x=1', 'Bearer mt_secret']);
  });
});
