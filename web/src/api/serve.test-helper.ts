/** A real HTTP server for tests of the client: node has no page, so that paths need a host. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { vi } from 'vitest';

export type Answer = (request: IncomingMessage, response: ServerResponse, body: string) => void;

export interface Serving {
  close(): Promise<void>;
}

async function textOf(request: IncomingMessage): Promise<string> {
  let text = '';
  for await (const piece of request) text += String(piece);
  return text;
}

/** fetch of a path goes to `answer` until it is closed. */
export async function serve(answer: Answer): Promise<Serving> {
  const server: Server = createServer((request, response) => void textOf(request).then((body) => answer(request, response, body)));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const real = globalThis.fetch;
  vi.stubGlobal('fetch', (path: string, init?: RequestInit) => real(`${base}${path}`, init));
  const close = async (): Promise<void> => {
    vi.stubGlobal('fetch', real);
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  };
  return { close };
}

export function json(response: ServerResponse, status: number, body: unknown, headers: Record<string, string> = {}): void {
  response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(body));
}
