/** A server that goes wrong in every way, below all five screens at once: each says so, keeps what it has, and goes on by itself. */
import type { BrowserContext, Page } from '@playwright/test';
import { expect, forgiveNetwork, open, supervise, test, told } from './page';
import { half, Proxy, refuse, reset, silence, type Asked, type Fault } from './proxy';

const SERIES = 'device=sensor_1&metric=temperature';

interface Opened {
  name: string;
  page: Page;
  /** Has the screen ask something now; those that ask all the time need none. */
  nudge(): Promise<void>;
  /** What it has is there. */
  keeps(): Promise<void>;
}

type Way = [name: string, hash: string, nudge: (page: Page) => Promise<void>, keeps: (page: Page) => Promise<void>];

const NOTHING = async (): Promise<void> => undefined;
const WAYS: Way[] = [
  ['query', `query?${SERIES}&op=max&range=all`,
    (page) => page.getByRole('button', { name: /^Run/ }).click(),
    (page) => expect(page.getByTestId('result')).toHaveText(/\d/, { timeout: 45_000 })],
  ['explore', 'explore?line=sensor_1~temperature&range=3600s&follow=false',
    (page) => page.getByRole('button', { name: 'Refresh' }).click(),
    (page) => expect(page.getByRole('row').filter({ hasText: 'sensor_1 temperature' }).getByRole('cell').nth(-3)).toHaveText(/\d/, { timeout: 45_000 })],
  ['live', 'live?find=sensor_1', NOTHING,
    (page) => expect(page.getByRole('row').filter({ hasText: 'sensor_1' }).first()).toBeVisible({ timeout: 45_000 })],
  ['cluster', 'cluster', NOTHING,
    (page) => expect(page.getByRole('row').filter({ hasText: 'ing1' }).first()).toBeVisible({ timeout: 45_000 })],
  ['data', 'data?search=sensor_',
    async (page) => {
      const field = page.getByLabel('Metric');
      await field.fill((await field.inputValue()) === '' ? 'temp' : '');
    },
    (page) => expect(page.getByRole('row').filter({ hasText: 'sensor_1' }).first()).toBeVisible({ timeout: 45_000 })],
];

async function openAll(context: BrowserContext, url: string): Promise<Opened[]> {
  return Promise.all(WAYS.map(async ([name, hash, nudge, keeps]) => {
    const page = await context.newPage();
    await page.setExtraHTTPHeaders({ 'x-screen': name });
    await page.goto(`${url}/#/${hash}`);
    await keeps(page);
    return { name, page, nudge: () => nudge(page), keeps: () => keeps(page) };
  }));
}

interface Trouble {
  name: string;
  fault: Fault;
  /** What each page says, the live one by its stream. */
  says: RegExp;
  live?: RegExp;
}

const BUSY_S = 3;
const BUSY = { error: 'limit', message: 'too many requests are here', setting: 'query.queue', limit: 64, value: 65 };
const TROUBLES: Trouble[] = [
  { name: 'busy', fault: refuse(429, BUSY, { 'retry-after': String(BUSY_S) }), says: /too many requests are here/ },
  { name: 'not ready', fault: refuse(503, { error: 'not_ready', message: 'no node has answered yet' }), says: /no node has answered yet/ },
  { name: 'half an answer', fault: half, says: /The answer broke off on its way/, live: /The connection to the server broke|Connecting again/ },
  { name: 'no server', fault: reset, says: /The server has not been reached since .*\d\d:\d\d:\d\d/ },
];

/** Questions that were asked again sooner than so many milliseconds after they were answered. */
function tooSoon(asked: Asked[], ms: number): string[] {
  const answered = new Map<string, number>();
  return asked.flatMap(({ screen, path, atMs, open: isOpen, takenBack }) => {
    const key = `${screen} ${path}`;
    const pause = atMs - (answered.get(key) ?? -Infinity);
    if (!isOpen && !takenBack) answered.set(key, atMs);
    return pause < ms ? [`${key} after ${pause} ms`] : [];
  });
}

function mostOften(asked: Asked[]): number {
  const counts = new Map<string, number>();
  for (const { screen, path } of asked) counts.set(`${screen} ${path}`, (counts.get(`${screen} ${path}`) ?? 0) + 1);
  return Math.max(0, ...counts.values());
}

async function isWell({ name, page, keeps }: Opened, says: RegExp): Promise<void> {
  await keeps();
  if (name === 'explore') await expect(page.locator('.explore-facts')).toContainText('complete', { timeout: 45_000 });
  const words = name === 'live' ? page.locator('.live-state, .away').getByText(says) : page.getByText(says); // its journal stays
  await expect(words, `${name} is well again`).toHaveCount(0, { timeout: 30_000 });
  await expect(page.getByText('stale', { exact: true }), `${name} is fresh again`).toHaveCount(0, { timeout: 30_000 });
  await expect(page.getByRole('banner').getByText('connected', { exact: true })).toBeVisible();
  if (name === 'live') await expect(page.locator('.live-state')).toContainText('hearing', { timeout: 45_000 });
}

test('five screens beside a server that goes wrong: each says how, keeps what it has, and goes on by itself', async ({ context, complaints }) => {
  test.setTimeout(180_000);
  const proxy = new Proxy(process.env.MINITRUE_HTTP ?? '');
  await proxy.start();
  try {
    const screens = await openAll(context, proxy.url);
    for (const { name, fault, says, live } of TROUBLES) {
      proxy.fail(fault);
      proxy.cut();
      await Promise.all(screens.map((screen) => screen.nudge()));
      await Promise.all(screens.map(async (screen) => {
        const words = screen.name === 'live' && live !== undefined ? screen.page.locator('.live-state').getByText(live) : screen.page.getByText(says);
        await expect(words.first(), `${screen.name}: ${name}`).toBeVisible({ timeout: 20_000 });
        await screen.keeps();
        if (screen.name === 'explore') await expect(screen.page.locator('.explore-facts').getByText('complete'), name).toHaveCount(0);
      }));
      if (name === 'busy') {
        await expect.poll(() => mostOften(proxy.asked), 'it is asked again').toBeGreaterThan(1);
        expect(tooSoon(proxy.asked, BUSY_S * 1000), 'not sooner than the server wants').toEqual([]);
      }
      // a browser asks once more by itself where a connection that it had kept is broken
      expect(mostOften(proxy.asked), `questions of one kind: ${name}`).toBeLessThan(16);
      proxy.fail(null);
      await Promise.all(screens.map((screen) => isWell(screen, says)));
    }
    await saysThatItWaits(screens, proxy);
  } finally {
    await proxy.stop();
  }
  forgiveNetwork(complaints);
});

async function saysThatItWaits(screens: Opened[], proxy: Proxy): Promise<void> {
  const held: (() => void)[] = [];
  proxy.fail((asked, answer, pass) => {
    held.push(pass);
    silence(asked, answer, pass);
  });
  await Promise.all(screens.map((screen) => screen.nudge()));
  await Promise.all(screens.map(async ({ name, page, keeps }) => {
    await expect(page.getByText(/The server takes long/), name).toBeVisible({ timeout: 25_000 });
    await keeps();
  }));
  const cluster = screens.find(({ name }) => name === 'cluster')!;
  await expect(cluster.page.getByText(/as of .*the server takes long to answer/).first()).toBeVisible();
  // what was left is not waited for
  await cluster.page.getByRole('link', { name: 'Live', exact: true }).click();
  const left = (): string[] =>
    proxy.asked.filter(({ screen, path, open: isOpen }) => isOpen && screen === 'cluster' && !/\/(me|live)$/.test(path)).map(({ path }) => path);
  await expect.poll(left, 'questions of a screen that was left').toEqual([]);
  await cluster.page.getByRole('link', { name: 'Cluster', exact: true }).click();
  proxy.fail(null);
  for (const pass of held) pass();
  await Promise.all(screens.map((screen) => isWell(screen, /The server takes long/)));
}

test('nodes that are gone: each screen says what is missing, and has all again when they are back', async ({ page, request, complaints }) => {
  test.setTimeout(120_000);
  await open(page, `query?${SERIES}&op=max&range=all`);
  await expect(page.getByTestId('result')).toBeVisible();
  supervise('stop', 'ing1', 'ing2');
  try {
    const ring = await told(request, '/api/v1/ring?owners=true');
    const gone = ring.nodes.flatMap((node: any, at: number) => (node.id === 'ing3' ? [] : [at]));
    expect(ring.owners.some((owners: number[]) => owners.every((owner) => gone.includes(owner))), 'some partition has no owner left').toBe(true);
    // of every series, so that some are missing wherever they lie
    await open(page, 'query?metric=temperature&op=count&range=all');
    await page.getByRole('button', { name: 'Run query' }).click();
    await expect(page.locator('.error-box')).toContainText('Incomplete.', { timeout: 30_000 });
    await expect(page.locator('.error-box')).toContainText(/ing[12]/);
    await page.getByRole('button', { name: 'Ask for what there is' }).click();
    await expect(page.locator('.coverage')).toContainText('partial', { timeout: 30_000 });
    await expect(page.locator('.coverage .missing')).toContainText(/ing[12]: \d+ partitions/);
    await page.goto('/#/data');
    await expect(page.locator('.coverage').first()).toContainText('partial', { timeout: 30_000 });
    const lines = Array.from({ length: 6 }, (_, at) => `line=sensor_${at + 1}~temperature`).join('&');
    await page.goto(`/#/explore?${lines}&range=3600s`);
    await expect(page.locator('.coverage').first()).toContainText('partial', { timeout: 30_000 });
  } finally {
    supervise('start', 'ing1', 'ing2');
  }
  await expect(page.locator('.explore-facts')).toContainText('complete', { timeout: 60_000 });
  await page.goto('/#/live?find=sensor_1');
  await expect(page.locator('.live-state')).toContainText('ing1', { timeout: 60_000 });
  forgiveNetwork(complaints);
});
