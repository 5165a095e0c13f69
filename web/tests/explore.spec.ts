/** Several series on one chart: added, zoomed, come back; what is drawn is what the API tells. */
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
    if (sent.url().endsWith('/query')) asked.push(sent.postData() ?? '');
  });
  await open(page, `${LINES}&range=all`);
  const plot = page.locator('.u-over');
  await expect(plot).toBeVisible();
  await expect.poll(() => asked.length).toBeGreaterThan(0);
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
