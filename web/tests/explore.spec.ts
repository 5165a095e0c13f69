/** Several series on one chart: added, zoomed, come back; what is drawn is what the API tells. */
import { readFileSync } from 'node:fs';
import type { Page } from '@playwright/test';
import { expect, expectAccessible, expectFitsPhone, numberIn, open, test, told } from './page';

// whose days are not those of UTC
test.use({ timezoneId: 'Europe/Berlin' });

const LINES = 'explore?line=sensor_1~temperature&line=sensor_2~temperature';

test('the values are those of the API, and days are those of the zone', async ({ page, request }) => {
  const startMs = Date.now() - 6_000_000; // what the simulator told of the past: few enough to be shown as points
  const endMs = startMs + 1_800_000;
  await open(page, `${LINES}&range=${startMs}..${endMs}`);
  const row = page.getByRole('row').filter({ hasText: 'sensor_1 temperature' });
  const times = { start_time: new Date(startMs).toISOString(), end_time: new Date(endMs).toISOString() };
  const question = { device_id: 'sensor_1', metric_name: 'temperature', operation: ['count', 'min', 'max', 'last'], ...times };
  const { result } = await told(request, '/query', question);
  expect(result.count).toBeGreaterThan(0);
  await expect.poll(async () => numberIn(await row.getByRole('cell').nth(-3).textContent())).toBe(result.count);
  const titles = row.locator('span[title]');
  expect((await titles.evaluateAll((all) => all.map((one) => one.getAttribute('title')))).map(Number)).toEqual([result.last, result.min, result.max]);
  await expect(page.locator('.chart-box canvas').first()).toBeVisible();
  const ofDays = page.waitForRequest((sent) => sent.url().endsWith('/query') && (sent.postData() ?? '').includes('"interval":"7d"'));
  await expect(page.getByRole('columnheader', { name: 'Last', exact: true })).toBeVisible();
  await open(page, `explore?line=sensor_1~temperature&range=${endMs - 3650 * 86_400_000}..${endMs}`);
  await expect(page.getByRole('columnheader', { name: 'Last average' })).toBeVisible();
  expect((await ofDays).postDataJSON()).toMatchObject({ timezone: 'Europe/Berlin' });
  await expect.poll(async () => numberIn(await row.getByRole('cell').nth(-3).textContent())).toBeGreaterThanOrEqual(result.count);
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
  const exact = page.getByRole('button', { name: 'Exact …' });
  await expect(exact).toHaveAttribute('aria-pressed', 'true');
  expect((await plot.boundingBox())!.y, 'the chart stays below the hand').toBe(box.y);
  await exact.click();
  await expect(page.locator('.range-exact')).toBeVisible();
  await exact.click();
  await expect(page.locator('.range-exact')).toBeHidden();
  await plot.dblclick();
  await expect(page).toHaveURL(/range=all/);
});

test("the last minutes are those of the server's clock, whatever the browser's says", async ({ page }) => {
  await page.clock.setSystemTime(Date.now() + 7_200_000);
  const asked = page.waitForRequest((sent) => sent.url().endsWith('/query'));
  await open(page, `${LINES}&range=900s`);
  const { end_time: end } = (await asked).postDataJSON() as { end_time: string };
  expect(Math.abs(Date.parse(end) - Date.now())).toBeLessThan(600_000);
  const row = page.getByRole('row').filter({ hasText: 'sensor_1 temperature' });
  await expect.poll(async () => numberIn(await row.getByRole('cell').nth(-3).textContent())).toBeGreaterThan(0);
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
  const endMs = Date.now() - 4_200_000;
  const startMs = endMs - 600_000;
  await open(page, `explore?line=sensor_1~temperature&range=${startMs}..${endMs}`);
  const waiting = page.waitForEvent('download');
  await page.getByRole('button', { name: 'CSV' }).click();
  const rows = readFileSync(await (await waiting).path(), 'utf8').trim().split('\r\n');
  const times = { start_time: new Date(startMs).toISOString(), end_time: new Date(endMs).toISOString() };
  const question = { device_id: 'sensor_1', metric_name: 'temperature', time_unit: 'ns', format: 'csv', ...times };
  const answer = await (await request.post('/api/v1/samples', { data: question })).text();
  const exact = answer.trim().split(/\r?\n/).slice(1);
  const nanos = (time: string) => BigInt(Date.parse(`${time.slice(0, 19)}Z`)) * 1_000_000n + BigInt(time.slice(20, 29));
  const last = (row: string) => Number(row.split(',').at(-1));
  expect(rows[0]).toBe('time,device_id,metric_name,tags,value');
  expect(rows.slice(1).map(last)).toEqual(exact.map(last));
  expect(exact).toHaveLength(rows.length - 1);
  expect(exact.every((row, at) => row.includes(String(nanos(rows[at + 1]!))))).toBe(true);
  const picture = page.waitForEvent('download');
  await page.getByRole('button', { name: 'PNG' }).click();
  const png = readFileSync(await (await picture).path());
  const drawn = await page.locator('.chart-box canvas').first().evaluate((canvas: HTMLCanvasElement) => [canvas.width, canvas.height]);
  expect(png.readUInt32BE(16)).toBe(drawn[0]);
  expect(png.readUInt32BE(20)).toBeGreaterThan(drawn[1]! + 40); // a title above, a name below
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

/** How much of the chart is not empty. */
function ink(page: Page): Promise<number> {
  return page.locator('.chart-box canvas').first().evaluate((canvas: HTMLCanvasElement) => {
    const { data } = canvas.getContext('2d')!.getImageData(0, 0, canvas.width, canvas.height);
    return data.filter((value, at) => at % 4 === 3 && value > 0).length;
  });
}

test('on a phone: the band is seen, a finger moves, two zoom', async ({ page, request }) => {
  await page.setViewportSize({ width: 390, height: 844 });
  const endMs = Date.now() - 60_000;
  const spanMs = 7_200_000;
  const startMs = endMs - spanMs;
  await open(page, `explore?line=sensor_1~temperature&range=${startMs}..${endMs}`);
  await expect(page.locator('.explore-facts')).toContainText('as average and min to max of');
  const band = page.getByRole('button', { name: 'Min to max' });
  await expect(band).toHaveAttribute('aria-pressed', 'true');
  const whole = await ink(page);
  await band.click();
  await expect.poll(() => ink(page)).toBeLessThan(whole * 0.95);
  const waiting = page.waitForEvent('download');
  await page.getByRole('button', { name: 'CSV' }).click();
  const [head, ...rows] = readFileSync(await (await waiting).path(), 'utf8').trim().split('\r\n').map((row) => row.split(','));
  expect(head!.slice(-4)).toEqual(['min', 'avg', 'max', 'count']);
  const [first, second] = [rows.at(3)![0]!, rows.at(4)![0]!];
  const times = { start_time: first, end_time: second, time_unit: 'rfc3339', interval: (Date.parse(second) - Date.parse(first)) / 1000 };
  const answer = await told(request, '/query', { device_id: 'sensor_1', metric_name: 'temperature', operation: ['min', 'avg', 'max', 'count'], ...times });
  const { min, avg, max, count } = answer.rows[0];
  expect(rows[3]!.slice(-4).map(Number)).toEqual([min, avg, max, count]);

  const touch = await page.context().newCDPSession(page);
  const box = (await page.locator('.u-over').boundingBox())!;
  const fingers = (...xs: number[]) => xs.map((x, id) => ({ x: box.x + x * box.width, y: box.y + box.height / 2, id }));
  const gesture = async (from: number[], to: number[]): Promise<void> => {
    await touch.send('Input.dispatchTouchEvent', { type: 'touchStart', touchPoints: fingers(...from) });
    for (const share of [0.25, 0.5, 0.75, 1]) {
      const at = from.map((x, finger) => x + share * (to[finger]! - x));
      await touch.send('Input.dispatchTouchEvent', { type: 'touchMove', touchPoints: fingers(...at) });
    }
    await touch.send('Input.dispatchTouchEvent', { type: 'touchEnd', touchPoints: [] });
  };
  const range = () => (/range=(\d+)\.\.(\d+)/.exec(page.url()) ?? []).slice(1).map(Number) as [number, number];
  await gesture([0.3], [0.8]);
  await expect.poll(() => (startMs - range()[0]) / spanMs).toBeGreaterThan(0.4);
  await expect.poll(() => range()[1] - range()[0]).toBe(spanMs);
  await gesture([0.4, 0.6], [0.2, 0.8]);
  await expect.poll(() => range()[1] - range()[0]).toBeLessThan(spanMs / 2);
  expect(range()[1] - range()[0]).toBeGreaterThan(spanMs / 5);
});
