/** What is stored, of whom, and a delete that has to be meant. */
import { expect, expectAccessible, expectFitsPhone, numberIn, open, test, told } from './page';

test('devices and their series are as the API tells', async ({ page, request }) => {
  await open(page, 'data?search=sensor_4');
  const row = page.getByRole('row').filter({ hasText: 'sensor_4' });
  await expect(row).toBeVisible();
  const { rows } = await told(request, '/api/v1/devices?device_id=sensor_4');
  expect(numberIn(await row.getByRole('cell').nth(1).textContent())).toBe(rows[0].series);
  await row.getByRole('link').click();
  await expect(page.getByRole('heading', { name: 'sensor_4' })).toBeVisible();
  await expect(page.getByRole('row').filter({ hasText: 'temperature' })).toBeVisible();
});

test('hostile ids are text', async ({ page, request }) => {
  const { rows } = await told(request, '/api/v1/devices?device_id=hostile*');
  expect(rows.length).toBe(4);
  await open(page, 'data?search=hostile');
  await expect(page.getByRole('row').filter({ hasText: 'hostile' })).toHaveCount(rows.length);
  await expect(page.getByText('<img src=x onerror=alert(1)>')).toBeVisible();
  await expect(page.getByText('⟨U+202E⟩')).toBeVisible();
  await expect(page.locator('main img')).toHaveCount(0);
  for (let at = 0; at < rows.length; at++) {
    await page.getByRole('row').filter({ hasText: 'hostile' }).nth(at).getByRole('link').click();
    await expect(page.getByRole('row').filter({ hasText: 'value' })).toBeVisible();
    await page.getByRole('button', { name: 'All devices' }).click();
  }
});

test('a delete shows what would go, wants to be typed, and takes it', async ({ page, request }) => {
  await open(page, 'data?device=sensor_6');
  await page.getByRole('button', { name: 'Delete …', exact: true }).first().click();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Metric').selectOption({ label: 'temperature' });
  await dialog.getByRole('button', { name: 'All', exact: true }).click();
  await dialog.getByRole('button', { name: 'Look what would go' }).click();
  const remove = dialog.getByRole('button', { name: /^Delete [\d,]+ points$/ });
  await expect(remove).toBeDisabled();
  await dialog.getByRole('textbox').fill(await dialog.locator('.data-phrase').innerText());
  const before = Date.now();
  await remove.click();
  await expect(dialog.getByText('done', { exact: true })).toBeVisible({ timeout: 40_000 });
  const { series } = await told(request, '/api/v1/series?device_id=sensor_6&metric_name=temperature');
  for (const one of series) expect(one.first_time).toBeGreaterThan(before / 1000 - 60);
});

test('axe finds nothing, and it fits a phone', async ({ page }) => {
  await open(page, 'data');
  await expect(page.getByRole('row').filter({ hasText: 'sensor_1' })).toBeVisible();
  await expectAccessible(page);
  await expectFitsPhone(page);
  await open(page, 'data?device=sensor_1');
  await expect(page.getByRole('row').filter({ hasText: 'temperature' })).toBeVisible();
  await expectAccessible(page);
});
