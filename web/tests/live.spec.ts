/** Points as they come; filter, pause, and a connection that is lost and found. */
import { expect, expectAccessible, expectFitsPhone, open, test, told } from './page';

test('points of every series come, at a rate', async ({ page, request }) => {
  await open(page, 'live');
  await expect(page.getByText('live', { exact: true })).toBeVisible();
  const rows = page.getByRole('table').getByRole('row');
  const row = rows.filter({ hasText: 'sensor_1' }).filter({ hasText: 'temperature' });
  await expect(row).toContainText(/now|s ago/);
  await expect(page.locator('.live-rate strong')).toHaveText(/[1-9].*\/s/);
  const shown = Number(await row.getByRole('cell').nth(2).getAttribute('title'));
  const { series } = await told(request, '/api/v1/samples?device_id=sensor_1&metric_name=temperature&start_time=-60s&limit=1000');
  expect(series[0].values).toContain(shown);
});

test('what is found is shown alone, and a pause holds it still', async ({ page }) => {
  await open(page, 'live');
  await page.getByLabel('Find').fill('sensor_3');
  const rows = page.locator('.live-table tbody tr:not(.live-space)');
  await expect(rows).toHaveCount(3);
  await page.getByRole('button', { name: 'Pause' }).click();
  const before = await rows.allInnerTexts();
  await expect(page.getByText(/[1-9]\d* points have come since/)).toBeVisible();
  expect(await rows.allInnerTexts()).toEqual(before);
  await page.getByRole('button', { name: 'Go on' }).click();
});

test('axe finds nothing, and it fits a phone', async ({ page }) => {
  await open(page, 'live');
  await expect(page.getByRole('table').getByRole('row').nth(2)).toBeVisible();
  await expectAccessible(page);
  await expectFitsPhone(page);
});
