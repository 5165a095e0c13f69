/** Live: the points that come are those that are stored, silence is seen, and an interruption ends by itself. */
import type { Locator, Page } from '@playwright/test';
import { expect, expectAccessible, expectFitsPhone, open, supervise, test, told } from './page';
import { lately, publish } from './publishing';

const HOSTILE = '"><img src=x onerror=alert(1)>\u202e\u2067${{7*7}}';

function rowOf(page: Page, device: string, metric: string): Locator {
  return page.getByRole('row').filter({ has: page.getByText(device, { exact: true }) }).filter({ hasText: metric });
}

function value(row: Locator): Locator {
  return row.locator('td.live-value');
}

async function isLive(page: Page): Promise<void> {
  await expect(page.locator('.live-state')).toContainText('live');
  await expect(page.locator('.live-state')).toContainText('hearing');
}

test('shows the newest points as they are stored, and how many come', async ({ page, request }) => {
  await open(page, 'live?find=sensor_1');
  await isLive(page);
  const cell = value(rowOf(page, 'sensor_1', 'temperature'));
  const before = await cell.getAttribute('title');
  await expect(cell).not.toHaveAttribute('title', before ?? '');
  const shown = Number(await cell.getAttribute('title'));
  await expect
    .poll(async () => {
      const path = '/api/v1/samples?device_id=sensor_1&metric_name=temperature&start_time=-60s&limit=0';
      const { series } = await told(request, path);
      return series.flatMap((each: any) => each.values);
    })
    .toContain(shown);
  await expect(page.locator('.live-rate strong')).toHaveText(/^(2\d|3\d|4\d)(\.\d+)?\/s$/);
  await expect(rowOf(page, 'sensor_1', 'temperature').getByRole('img')).toHaveAttribute('aria-label', /to/);
});

test('finds words, and the URL says what is shown', async ({ page }) => {
  await open(page, 'live?find=sensor_');
  await expect(rowOf(page, 'sensor_1', 'temperature')).toBeVisible();
  await page.getByLabel('Find').fill('SENSOR_2 humid');
  await expect(page.locator('tbody tr:not(.live-space)')).toHaveCount(1);
  await expect(rowOf(page, 'sensor_2', 'humidity')).toBeVisible();
  expect(page.url()).toContain('find=');
  await page.reload();
  await expect(page.getByLabel('Find')).toHaveValue('SENSOR_2 humid');
  await page.getByLabel('Find').fill('nothing is called so');
  await page.getByRole('button', { name: /Show all/ }).click();
  await expect(page.getByLabel('Find')).toHaveValue('');
  expect(await page.locator('tbody tr:not(.live-space)').count()).toBeGreaterThan(10);
});

test('the stream can be narrowed to some series', async ({ page }) => {
  await open(page, 'live?device=sensor_3&metric=press');
  await isLive(page);
  await expect(rowOf(page, 'sensor_3', 'pressure')).toBeVisible();
  await expect(page.locator('tbody tr:not(.live-space)')).toHaveCount(1);
});

test('stands still while it is paused, and says what came meanwhile', async ({ page }) => {
  await open(page, 'live?find=sensor_1');
  await isLive(page);
  const cell = value(rowOf(page, 'sensor_1', 'temperature'));
  await expect(cell).toBeVisible();
  await page.getByRole('button', { name: 'Pause' }).click();
  const frozen = await cell.getAttribute('title');
  await expect(page.locator('.live-paused')).toContainText(/[1-9]\d* points have come since/);
  await expect(page.locator('.live-paused')).toContainText(/\d{3} points have come since/); // some seconds' worth
  await expect(cell).toHaveAttribute('title', frozen ?? '');
  await page.getByRole('button', { name: 'Go on' }).click();
  await expect(cell).not.toHaveAttribute('title', frozen ?? '');
});

test('a device that falls silent is marked, and no more when it speaks again', async ({ page }) => {
  await open(page, 'live?find=_1');
  await isLive(page);
  publish(lately('quiet_1', 8));
  const row = rowOf(page, 'quiet_1', 'level');
  await expect(row).toBeVisible();
  await expect(row).not.toHaveClass(/silent/);
  await expect(row).toHaveClass(/silent/, { timeout: 20_000 });
  await expect(row).toContainText('silent');
  await page.getByLabel('Show', { exact: true }).selectOption('silent');
  await expect(row).toBeVisible();
  await expect(rowOf(page, 'sensor_1', 'temperature')).toHaveCount(0);
  await page.getByLabel('Show', { exact: true }).selectOption('all');
  publish(lately('quiet_1', 1));
  await expect(row).not.toHaveClass(/silent/);
});

test('hostile ids are text', async ({ page }) => {
  publish(lately(HOSTILE, 3));
  await open(page, 'live?find=onerror+level');
  const row = page.locator('tbody tr:not(.live-space)');
  await expect(row).toContainText('<img src=x onerror=alert(1)>');
  await expect(row).toContainText('⟨U+202E⟩');
  await expect(page.locator('main img')).toHaveCount(0);
});

test('thousands of series: few rows in the document, every one within reach', async ({ page }) => {
  test.setTimeout(120_000);
  const now = Math.floor(Date.now() / 1000);
  await open(page, 'live?find=many_');
  await isLive(page);
  const devices = Array.from({ length: 5000 }, (_, at) => `many_${at + 1}`);
  publish(devices.map((device_id) => ({ device_id, metric_name: 'level', timestamp: now, value: 1 })));
  const frame = page.locator('.live-frame');
  await expect(frame).toHaveAttribute('aria-label', 'Newest points of 5,000 series', { timeout: 60_000 });
  expect(await frame.locator('tbody tr').count()).toBeLessThan(80);
  await frame.evaluate((element) => { element.scrollTop = element.scrollHeight; });
  await expect(rowOf(page, 'many_5000', 'level')).toBeVisible();
  await page.getByLabel('Find').fill('many_4321');
  await expect(rowOf(page, 'many_4321', 'level')).toBeVisible();
});

test('says that the server is gone, and goes on by itself when it is back', async ({ page, complaints }) => {
  test.setTimeout(120_000);
  await open(page, 'live?find=sensor_1');
  await isLive(page);
  const cell = value(rowOf(page, 'sensor_1', 'temperature'));
  await expect(cell).toBeVisible();
  supervise('stop', 'query');
  try {
    await expect(page.locator('.live-state')).toContainText('lost', { timeout: 30_000 });
    await expect(page.getByRole('log')).toContainText('Connection lost');
    await expect(cell).toBeVisible();
    await expect(page.locator('tr.silent').filter({ hasText: 'sensor_' })).toHaveCount(0);
  } finally {
    supervise('start', 'query');
  }
  await expect(page.getByRole('log')).toContainText('Connected again after', { timeout: 60_000 });
  const back = await cell.getAttribute('title');
  await expect(cell).not.toHaveAttribute('title', back ?? '');
  complaints.splice(0); // the browser itself writes down each request that failed
});

test('axe finds nothing, and it fits a phone', async ({ page }) => {
  await open(page, 'live?find=sensor_1');
  await isLive(page);
  await expect(rowOf(page, 'sensor_1', 'temperature')).toBeVisible();
  await page.getByText('Narrow the stream').click();
  await expectAccessible(page);
  await expectFitsPhone(page);
});
