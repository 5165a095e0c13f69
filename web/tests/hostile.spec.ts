/** Ids that mean something to URLs, shells, spreadsheets, JavaScript or the eye: everywhere on the page they are text, and they come back as they were. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import type { Page } from '@playwright/test';
import { labelOf } from '../src/screens/explore/lines';
import { visible } from '../src/text';
import { expect, open, test, told } from './page';
import { publish, type Sent } from './publishing';

const METRIC = `=1+1 #%?&=/..%2F ${Date.now()}`;
const TAGS = JSON.parse('{"# % ? & =": "</script><img src=x onerror=alert(1)>", "__proto__": "a=b,c~d!e"}') as Record<string, string>;
const IDS = [
  'a # b%20c%zz?d=e&f=g;h+i',
  '=HYPERLINK("http://127.0.0.1:9/?"&A1,"here")',
  '\'=already "quoted", twice',
  'javascript:alert(1)',
  '__proto__',
  'one line\u2028another, <b>bold</b>', // a newline itself the bridge refuses
  '\u202egnp.exe\u202c\u2066\u200f$(id) `id` \\',
  'é'.repeat(128), // 256 bytes
  '  spaces around ',
];

const SHOWN = IDS.map(visible).sort();
const LABELS = IDS.map((device) => visible(labelOf({ device, metric: METRIC, tags: TAGS, side: 'left', hidden: false }))).sort();

function points(nowS: number, more: number): Sent[] {
  return IDS.flatMap((device_id, place) => [0, 1, 2].map((at) => (
    { device_id, metric_name: METRIC, tags: TAGS, timestamp: nowS + at, value: 10 * place + at + more })));
}

/** Fields of RFC 4180, without the mark that keeps spreadsheets from taking a text for a formula. */
function fieldsOf(csv: string): string[][] {
  const rows: string[][] = [[]];
  for (const [, quoted, plain = '', end] of csv.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n)/g)) {
    const text = quoted === undefined ? plain : quoted.replaceAll('""', '"');
    rows[rows.length - 1]!.push(text.replace(/^'(?='*[=+\-@\t\r\n])/, ''));
    if (end !== ',') rows.push([]);
  }
  return rows.slice(0, -1);
}

/** Nothing of an id has become an element, and every link leads to this page or to its server. */
async function isText(page: Page): Promise<void> {
  await expect(page.locator('main').locator('img, script, b:has-text("bold"), iframe')).toHaveCount(0);
  const strange = await page.locator('a[href]').evaluateAll((all) =>
    all.map((one) => (one as HTMLAnchorElement).href).filter((href) => new URL(href).origin !== location.origin));
  expect(strange).toEqual([]);
}

async function shown(page: Page, selector: string, what: string[]): Promise<void> {
  await expect.poll(async () => (await page.locator(selector).allTextContents()).sort()).toEqual(what);
}

async function pickAll(page: Page): Promise<void> {
  const box = page.getByRole('combobox', { name: 'Device' });
  for (const id of IDS) {
    await box.fill(id);
    await page.getByRole('option').filter({ has: page.getByText(visible(id), { exact: true }) }).filter({ hasText: 'series' }).click();
    await expect(page.getByRole('button', { name: `Remove ${visible(id)}`, exact: true })).toBeVisible();
  }
  await box.press('Escape');
}

test('hostile ids stay text and come back as they were: picker, answer, curl, links, lists, legend, URL, CSV', async ({ page, request }) => {
  test.setTimeout(90_000);
  page.on('dialog', (dialog) => { throw new Error(`an id ran: ${dialog.message()}`); });
  const nowS = Math.floor(Date.now() / 1000) - 120;
  publish(points(nowS, 0));
  const question = { device_id: IDS.map((exact) => ({ exact })), metric_name: { exact: METRIC } };
  await expect.poll(async () => (await told(request, '/query', { ...question, operation: 'count' }).catch(() => ({}))).result).toBe(IDS.length * 3);

  // a picker puts a = before what would else be a pattern
  await open(page, `query?op=max&group=device_id&range=all&${new URLSearchParams({ metric: `=${METRIC}` })}`);
  await pickAll(page);
  await page.getByRole('button', { name: 'Run query' }).click();
  const { rows } = await told(request, '/query', { ...question, operation: 'max', group_by: 'device_id' });
  expect(rows.map((row: any) => [row.device_id, row.max]).sort()).toEqual(IDS.map((id, place) => [id, 10 * place + 2]).sort());
  const cells = page.getByRole('table', { name: 'Rows of the answer' }).locator('tbody tr');
  const figures = (): Promise<string[]> => cells.evaluateAll((all) => all.map((row) => [...row.children].map((one) => one.textContent).join('|')).sort());
  const wanted = IDS.map((id, place) => `${visible(id)}|${10 * place + 2}|3`).sort();
  await expect.poll(figures).toEqual(wanted);
  const line = (await page.getByLabel('curl line').textContent()) ?? '';
  expect(JSON.parse(execFileSync('sh', ['-c', line], { encoding: 'utf8' })).rows).toEqual(rows);
  await isText(page);
  await page.reload();
  await shown(page, '.chip .id', [visible(METRIC), ...SHOWN].sort());
  await expect.poll(figures).toEqual(wanted);

  await page.getByRole('link', { name: 'Open in Explore' }).click();
  await shown(page, '.legend .id', LABELS);
  await page.reload();
  await shown(page, '.legend .id', LABELS);
  await expect(page.locator('.explore-facts')).toContainText(`${IDS.length * 3} points`);
  await isText(page);
  const waiting = page.waitForEvent('download');
  await page.getByRole('button', { name: 'CSV' }).click();
  const [head, ...kept] = fieldsOf(readFileSync(await (await waiting).path(), 'utf8'));
  expect(head).toEqual(['time', 'device_id', 'metric_name', 'tags', 'value']);
  const sent = points(nowS, 0).map(({ timestamp, device_id, value }) => [timestamp * 1000, device_id, METRIC, TAGS, value]);
  const read = kept.map(([time, device, metric, tags, value]) => [Date.parse(time!), device, metric, JSON.parse(tags!), Number(value)]);
  expect(read.map((one) => JSON.stringify(one)).sort()).toEqual(sent.map((one) => JSON.stringify(one)).sort());

  await page.getByRole('link', { name: 'Open in Query' }).click();
  await expect(page.getByTestId('result')).toHaveText(/^\d/);
  await expect(page.getByTestId('count')).toHaveText('3');

  await open(page, `data?${new URLSearchParams({ metric: METRIC })}`);
  await shown(page, 'tbody tr td:first-child .id', SHOWN);
  await isText(page);
  for (const id of IDS) {
    await page.getByRole('link', { name: visible(id), exact: true }).click();
    await expect(page.getByRole('heading', { name: visible(id), exact: true })).toBeVisible();
    const row = page.getByRole('table', { name: 'Series of the device' }).getByRole('row').filter({ hasText: visible(METRIC) });
    await expect(row.getByRole('cell').nth(2)).toHaveText('3');
    await page.goBack();
  }

  await open(page, `live?${new URLSearchParams({ metric: METRIC })}`);
  await expect(page.locator('.live-state')).toContainText('hearing');
  publish(points(nowS + 60, 100));
  const heard = (): Promise<string[]> => page.locator('tbody tr:not(.live-space)').evaluateAll((all) =>
    all.map((row) => `${row.querySelector('.live-device')?.textContent}|${row.querySelector('.live-value')?.textContent}`).sort());
  await expect.poll(heard).toEqual(IDS.map((id, place) => `${visible(id)}|${10 * place + 102}`).sort());
  await isText(page);
  const links = await page.locator('.live-metric a').evaluateAll((all) => all.map((one) => one.getAttribute('href')));
  const lines = links.map((href) => href!.replace(/^.*\?/, '')).join('&');
  await page.goto(`/#/explore?${lines}&range=all`);
  await shown(page, '.legend .id', LABELS);
  await page.goBack();
  await page.getByRole('link', { name: visible(IDS[0]!), exact: true }).click();
  await expect(page.getByRole('heading', { name: visible(IDS[0]!), exact: true })).toBeVisible();
});
