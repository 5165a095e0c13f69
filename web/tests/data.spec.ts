/** Data: what it says of devices and series is what the API says; deletes take what the dry run showed, and nothing else. */
import type { Page } from '@playwright/test';
import { expect, expectAccessible, expectFitsPhone, numberIn, open, test, told } from './page';
import { lately, publish } from './publishing';

const HOSTILE = '<b>"\'&\u202eevil ';

async function stored(request: any, device: string): Promise<number> {
  const { rows } = await told(request, `/api/v1/devices?device_id.exact=${encodeURIComponent(device)}`);
  return rows.length === 0 ? 0 : rows[0].count;
}

async function isStored(request: any, device: string, count: number): Promise<void> {
  await expect.poll(() => stored(request, device), `points of ${device}`).toBe(count);
}

async function openDevice(page: Page, device: string): Promise<void> {
  await open(page, `data?device=${encodeURIComponent(device)}`);
  await expect(page.getByRole('table', { name: 'Series of the device' })).toBeVisible();
}

test('devices are listed as they are stored, and found by search', async ({ page, request }) => {
  publish(lately('still_1', 12));
  await isStored(request, 'still_1', 12);
  await open(page, 'data');
  await page.getByLabel('Device', { exact: true }).fill('still');
  const row = page.getByRole('row').filter({ hasText: 'still_1' });
  await expect(page.getByRole('table', { name: 'Devices' }).locator('tbody tr')).toHaveCount(1);
  await expect(row.getByRole('cell').nth(1)).toHaveText('1');
  await expect(row.getByRole('cell').nth(2)).toHaveText('12');
  await page.getByLabel('Device', { exact: true }).fill('there is none');
  await page.getByRole('button', { name: 'Show all devices' }).click();
  await expect(page.getByLabel('Device', { exact: true })).toHaveValue('');
  await expect.poll(() => page.getByRole('table', { name: 'Devices' }).locator('tbody tr').count()).toBeGreaterThan(1);
});

test('thousands of devices come page by page', async ({ page, request }) => {
  test.setTimeout(120_000);
  const now = Math.floor(Date.now() / 1000);
  publish(Array.from({ length: 10_000 }, (_, at) => ({
    device_id: `paged_${String(at).padStart(5, '0')}`, metric_name: 'level', timestamp: now, value: 1,
  })));
  await isStored(request, 'paged_09999', 1);
  await open(page, 'data?search=paged_');
  const first = page.getByRole('table', { name: 'Devices' }).locator('tbody tr').first();
  await expect(first).toContainText('paged_00000');
  await page.getByRole('button', { name: 'Next' }).click();
  await expect(first).toContainText('paged_00050');
  await page.getByRole('button', { name: 'Next' }).click();
  await expect(first).toContainText('paged_00100');
  await page.reload(); // which page it is stands in the URL
  await expect(first).toContainText('paged_00100');
  await page.goBack();
  await expect(first).toContainText('paged_00050');
  await page.getByRole('button', { name: 'Next' }).click();
  await expect(first).toContainText('paged_00100');
  await page.getByRole('button', { name: 'Previous' }).click();
  await expect(first).toContainText('paged_00050');
  await page.getByLabel('Device', { exact: true }).fill('PAGED_0777');
  await expect(first).toContainText('paged_07770');
  await expect(page.getByRole('table', { name: 'Devices' }).locator('tbody tr')).toHaveCount(10);
});

test('the series of a device are as the API tells, with usual interval and gaps', async ({ page, request }) => {
  const points = lately('gappy_1', 30);
  publish([...points.map((each) => ({ ...each, timestamp: each.timestamp - 600 })), ...points]);
  await isStored(request, 'gappy_1', 60);
  await openDevice(page, 'gappy_1');
  const { series } = await told(request, '/api/v1/series?device_id=gappy_1&time_unit=ms');
  const cells = page.getByRole('table', { name: 'Series of the device' }).locator('tbody tr').first().getByRole('cell');
  expect(numberIn(await cells.nth(2).textContent())).toBe(series[0].count);
  await expect(cells.nth(4).locator('time')).toHaveAttribute('title', new Date(series[0].last_time).toISOString().replace('T', ' '));
  await expect(cells.nth(5)).toHaveText('29');
  await expect(cells.nth(6)).toHaveText('1 s');
  await expect(cells.nth(7)).toContainText('longest 9 min 31 s');
});

test('a delete is shown first, wants to be typed, and takes just that', async ({ page, request, complaints }) => {
  publish([...lately('gone_1', 20), ...lately('gone_1', 20, 'other'), ...lately('gone_12', 5)]);
  await isStored(request, 'gone_1', 40);
  await isStored(request, 'gone_12', 5);
  await openDevice(page, 'gone_1');
  await page.getByRole('button', { name: 'Delete …', exact: true }).first().click();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Metric').selectOption({ label: 'level' });
  await expectAccessible(page);
  const refusal = { error: 'bad_request', field: 'end_time', message: 'end_time is before start_time' };
  await page.route('**/api/v1/series', (route) => route.fulfill({ status: 400, json: refusal }), { times: 1 });
  await dialog.getByRole('button', { name: 'Look what would go' }).click();
  await expect(dialog.getByRole('group', { name: 'Time' })).toContainText('end_time is before start_time');
  complaints.splice(0); // the browser itself writes down each answer that is an error
  await dialog.getByRole('button', { name: 'Look what would go' }).click();
  await expect(dialog).toContainText('20 points of 1 series would go.');
  expect(await stored(request, 'gone_1')).toBe(40);
  const remove = dialog.getByRole('button', { name: 'Delete 20 points' });
  await expect(remove).toBeDisabled();
  await dialog.getByLabel('To delete, type').fill('gone_12');
  await expect(remove).toBeDisabled();
  await expect(dialog.getByLabel('To delete, type')).toHaveAccessibleDescription('This is something else');
  await dialog.getByLabel('To delete, type').fill('gone_1');
  await expectAccessible(page);
  await remove.click();
  await expect(dialog).toContainText(/delete \d+ is in force/i, { timeout: 40_000 });
  await expect(dialog).toContainText('It took 20 points of 1 series.');
  await dialog.getByRole('button', { name: 'Close', exact: true }).last().click();
  expect(await stored(request, 'gone_1')).toBe(20);
  expect(await stored(request, 'gone_12')).toBe(5);
  const rows = page.getByRole('table', { name: 'Series of the device' }).locator('tbody tr');
  await expect(rows.filter({ hasText: 'level' }).getByRole('cell').nth(2)).toHaveText('0');
  await expect(rows.filter({ hasText: 'other' }).getByRole('cell').nth(2)).toHaveText('20');
  await page.getByText('Deletes in force').click();
  await expect(page.getByRole('table', { name: 'Deletes, the newest first' })).toContainText('gone_1');
});

test('hostile ids are text', async ({ page, request }) => {
  const { rows } = await told(request, '/api/v1/devices?device_id=hostile*');
  expect(rows.length).toBe(4);
  await open(page, 'data?search=hostile');
  const found = page.getByRole('table', { name: 'Devices' }).locator('tbody tr');
  await expect(found).toHaveCount(rows.length);
  await expect(page.getByText('<img src=x onerror=alert(1)>')).toBeVisible();
  await expect(page.getByText('⟨U+202E⟩')).toBeVisible();
  await expect(page.locator('main img')).toHaveCount(0);
  for (let at = 0; at < rows.length; at += 1) {
    await found.nth(at).getByRole('link').click();
    await expect(page.getByRole('row').filter({ hasText: 'value' }).first()).toBeVisible();
    await page.getByRole('button', { name: 'All devices' }).click();
  }
});

test('a device whose id nobody can type is text, and can be deleted', async ({ page, request }) => {
  publish(lately(HOSTILE, 7));
  await isStored(request, HOSTILE, 7);
  await openDevice(page, HOSTILE);
  await expect(page.getByRole('heading', { level: 2 })).toContainText('<b>"\'&⟨U+202E⟩evil␣');
  await expect(page.locator('main b')).toHaveCount(0);
  await page.getByRole('button', { name: 'Delete …', exact: true }).first().click();
  const dialog = page.getByRole('dialog');
  await dialog.getByRole('button', { name: 'Look what would go' }).click();
  await dialog.getByLabel('To delete, type').fill('delete 7 points');
  await dialog.getByRole('button', { name: 'Delete 7 points' }).click();
  await expect(dialog).toContainText(/delete \d+ is in force/i, { timeout: 40_000 });
  expect(await stored(request, HOSTILE)).toBe(0);
});

test('a token without the scope is told so', async ({ page }) => {
  const me = { name: 'wall', scopes: ['read'], auth: true, version: '0', now: Date.now() / 1000 };
  await page.route('**/api/v1/me', (route) => route.fulfill({ json: me }));
  await openDevice(page, 'sensor_1');
  await expect(page.locator('.data-device-head')).toContainText('The token wall may not delete');
  await expect(page.getByRole('button', { name: /^Delete/ })).toHaveCount(0);
});

test('a delete whose end is not known is looked up', async ({ page, request, complaints }) => {
  publish(lately('lost_1', 4));
  await isStored(request, 'lost_1', 4);
  await openDevice(page, 'lost_1');
  await page.route('**/api/v1/series', async (route) => {
    if (route.request().method() !== 'DELETE' || route.request().postDataJSON().dry_run) return route.continue();
    await route.fetch();
    return route.abort(); // deleted, and the answer never came
  });
  await page.getByRole('button', { name: 'Delete …', exact: true }).first().click();
  const dialog = page.getByRole('dialog');
  await dialog.getByRole('button', { name: 'Look what would go' }).click();
  await dialog.getByLabel('To delete, type').fill('lost_1');
  await dialog.getByRole('button', { name: 'Delete 4 points' }).click();
  await expect(dialog).toContainText(/Delete \d+ is in force/, { timeout: 40_000 });
  expect(await stored(request, 'lost_1')).toBe(0);
  complaints.splice(0); // the browser itself writes down the request that failed
});

test('axe finds nothing, and it fits a phone', async ({ page }) => {
  await open(page, 'data');
  await expect(page.getByRole('table', { name: 'Devices' })).toBeVisible();
  await expectAccessible(page);
  await expectFitsPhone(page);
  await openDevice(page, 'sensor_1');
  await expectAccessible(page);
  await expectFitsPhone(page);
});
