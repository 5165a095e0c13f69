/** Several series on one chart: added, zoomed, come back; what is drawn is what the API tells. */
import { readFileSync } from 'node:fs';
import { expect, expectAccessible, expectFitsPhone, numberIn, open, test, told } from './page';

const LINES = 'explore?line=sensor_1~temperature&line=sensor_2~temperature';

test('series are found and drawn, with as many points as the API has', async ({ page, request }) => {
  const startMs = Date.now() - 3_600_000;
  const endMs = startMs + 1_800_000;
  await open(page, `${LINES}&range=${startMs}..${endMs}`);
  const row = page.getByRole('row').filter({ hasText: 'sensor_1 temperature' });
  const times = { start_time: new Date(startMs).toISOString(), end_time: new Date(endMs).toISOString() };
  const { count } = await told(request, '/query', { device_id: 'sensor_1', metric_name: 'temperature', operation: 'count', ...times });
  expect(count).toBeGreaterThan(0);
  await expect.poll(async () => numberIn(await row.getByRole('cell').nth(-3).textContent())).toBe(count);
  await expect(page.locator('.chart-box canvas').first()).toBeVisible();
});

test('drag zooms into a finer grain, double-click comes back, and the URL follows', async ({ page }) => {
  const asked: string[] = [];
  page.on('request', (sent) => {
    if (/\/(query|samples)$/.test(sent.url())) asked.push(sent.postData() ?? '');
  });
  await open(page, `${LINES}&range=all`);
  const plot = page.locator('.u-over');
  await expect(plot).toBeVisible();
  await expect(page.locator('.chart-box')).toHaveAttribute('data-loading', 'false');
  const before = asked.length;
  const box = (await plot.boundingBox())!;
  await page.mouse.move(box.x + box.width * 0.4, box.y + 100);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.5, box.y + 120, { steps: 5 });
  await page.mouse.up();
  await expect(page).toHaveURL(/range=\d+(\.\d+)?\.\.\d+/);
  await expect.poll(() => asked.length).toBeGreaterThan(before);
  await plot.dblclick();
  await expect(page).toHaveURL(/range=all/);
});

test('axe finds nothing, and it fits a phone', async ({ page }) => {
  await open(page, `${LINES}&range=3600s`);
  await expect(page.getByRole('row').filter({ hasText: 'sensor_2 temperature' })).toBeVisible();
  await expectAccessible(page);
  await expectFitsPhone(page);
});

test('keys zoom, come back and step from value to value', async ({ page }) => {
  await open(page, `${LINES}&range=all`);
  const chart = page.getByRole('application', { name: /sensor_1 temperature/ });
  await expect(page.locator('.chart-box')).toHaveAttribute('data-loading', 'false');
  await chart.focus();
  await page.keyboard.press('+');
  await expect(page).toHaveURL(/range=\d+(\.\d+)?\.\.\d+/);
  await page.keyboard.press('Backspace');
  await expect(page).toHaveURL(/range=all/);
  await expect(page.locator('.chart-box')).toHaveAttribute('data-loading', 'false');
  await page.keyboard.press('Shift+ArrowRight');
  const marked = page.getByRole('row').filter({ hasText: 'sensor_1 temperature' }).getByRole('cell').nth(1);
  await expect(marked).toHaveText(/\d/);
  await page.keyboard.press('Escape');
  await expect(marked).toHaveText('–');
});

test('what is kept as CSV is what the API has', async ({ page, request }) => {
  const endMs = Date.now() - 1_800_000;
  const startMs = endMs - 600_000;
  await open(page, `explore?line=sensor_1~temperature&range=${startMs}..${endMs}`);
  const waiting = page.waitForEvent('download');
  await page.getByRole('button', { name: 'CSV' }).click();
  const rows = readFileSync(await (await waiting).path(), 'utf8').trim().split('\r\n');
  const times = { start_time: new Date(startMs).toISOString(), end_time: new Date(endMs).toISOString() };
  const { series } = await told(request, '/api/v1/samples', { device_id: 'sensor_1', metric_name: 'temperature', ...times });
  expect(rows[0]).toBe('time,device_id,metric_name,tags,value');
  expect(rows.slice(1).map((row) => Number(row.split(',').at(-1)))).toEqual(series[0].values);
});

test('it follows what comes, and has the day before beside it when asked', async ({ page }) => {
  await open(page, `${LINES}&range=900s`);
  const last = page.getByRole('row').filter({ hasText: 'sensor_1 temperature' }).getByRole('cell').nth(3);
  await expect(last).toHaveText(/\d/);
  const first = await last.textContent();
  await expect(last).not.toHaveText(first ?? '', { timeout: 20_000 });
  await page.getByLabel('Compare with').selectOption('1');
  await expect(page).toHaveURL(/compare=1/);
  await expect(page.getByRole('columnheader', { name: 'the day before' })).toBeVisible();
});

test('a hand moves it, and it asks for what came into view', async ({ page }) => {
  const endMs = Date.now() - 600_000;
  await open(page, `${LINES}&range=${endMs - 600_000}..${endMs}`);
  await expect(page.locator('.chart-box')).toHaveAttribute('data-loading', 'false');
  const box = (await page.locator('.u-over').boundingBox())!;
  await page.keyboard.down('Shift');
  await page.mouse.move(box.x + 200, box.y + 100);
  await page.mouse.down();
  await page.mouse.move(box.x + 200 + box.width / 2, box.y + 100, { steps: 5 });
  await page.mouse.up();
  await page.keyboard.up('Shift');
  const start = () => Number(/range=(\d+)/.exec(page.url())?.[1]);
  await expect.poll(start).toBeLessThan(endMs - 600_000 - 250_000);
  await expect.poll(start).toBeGreaterThan(endMs - 600_000 - 350_000);
});
