/** A server between the page and the query worker that goes wrong on demand, and remembers what it was asked. */
import { createServer, request as ask, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';

/** What to do with a question: pass it on, or what else happens to it. */
export type Fault = (asked: IncomingMessage, answer: ServerResponse, pass: () => void) => void;

export interface Asked {
  /** As the page's header x-screen says. */
  screen: string;
  path: string;
  atMs: number;
  /** Neither answered nor taken back. */
  open: boolean;
  takenBack: boolean;
}

export class Proxy {
  readonly asked: Asked[] = [];
  url = '';
  private fault: Fault | null = null;
  private readonly sockets = new Set<Socket>();
  private readonly server: Server;

  constructor(private readonly target: string) {
    this.server = createServer((asked, answer) => this.take(asked, answer));
    this.server.on('connection', (socket) => {
      this.sockets.add(socket);
      socket.on('close', () => this.sockets.delete(socket));
    });
  }

  async start(): Promise<void> {
    await new Promise<void>((resolve) => this.server.listen(0, '127.0.0.1', resolve));
    this.url = `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.cut();
    await new Promise((resolve) => this.server.close(resolve));
  }

  /** From now on; files of the page are always passed on. null: nothing is wrong. */
  fail(fault: Fault | null): void {
    this.fault = fault;
    this.asked.splice(0);
  }

  /** Breaks every connection, streams too. */
  cut(): void {
    for (const socket of this.sockets) socket.destroy();
  }

  private take(asked: IncomingMessage, answer: ServerResponse): void {
    const path = (asked.url ?? '').split('?')[0]!;
    const pass = (): void => this.pass(asked, answer);
    if (path === '/' || path.startsWith('/assets/')) return pass();
    const note: Asked = { screen: String(asked.headers['x-screen'] ?? ''), path, atMs: Date.now(), open: true, takenBack: false };
    this.asked.push(note);
    answer.on('close', () => {
      note.open = false;
      note.takenBack = !answer.writableFinished;
    });
    if (this.fault === null) pass();
    else this.fault(asked, answer, pass);
  }

  private pass(asked: IncomingMessage, answer: ServerResponse): void {
    const { method, headers } = asked;
    const onward = ask(this.target + (asked.url ?? ''), { method, headers }, (told) => {
      answer.writeHead(told.statusCode ?? 502, told.headers);
      told.pipe(answer);
    });
    onward.on('error', () => answer.destroy());
    answer.on('close', () => onward.destroy());
    asked.pipe(onward);
  }
}

/** The error of the API with this status. */
export function refuse(status: number, body: Record<string, unknown>, headers: Record<string, string> = {}): Fault {
  return (_, answer) => void answer.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(body));
}

/** No answer, and no connection any more. */
export const reset: Fault = (asked) => void asked.socket.destroy();

/** Half an answer, which then breaks off. */
export const half: Fault = (asked, answer) => {
  asked.resume().on('end', () => { // a question that is not read to its end would end as a reset
    answer.writeHead(200, { 'content-type': 'application/json', 'content-length': '1000' }).write('{"rows": [1, 2');
    setTimeout(() => answer.destroy(), 50);
  });
};

/** No answer at all, for as long as one waits. */
export const silence: Fault = () => undefined;
