/** Asking a question as a person does; the figure is the API's. */
import { expect, expectAccessible, expectFitsPhone, open, test, told } from './page';

test('a device and a metric are found, the answer is that of the API', async ({ page, request }) => {
  await open(page, 'query');
  await page.getByRole('combobox', { name: 'Device' }).fill('sensor_2');
  await page.getByRole('option', { name: /sensor_2\b/ }).first().click();
  await page.keyboard.press('Escape');
  await page.getByRole('combobox', { name: 'Metric' }).fill('temp');
  await page.getByRole('option', { name: /temperature/ }).first().click();
  await page.keyboard.press('Escape');
  await page.getByLabel('Operation').selectOption('max');
  await page.getByRole('button', { name: 'All', exact: true }).click();
  await page.getByRole('button', { name: 'Run query' }).click();
  const answer = await told(request, '/query', { device_id: 'sensor_2', metric_name: 'temperature', operation: 'max' });
  await expect(page.getByTestId('result')).toHaveText(String(answer.result));
  await expect(page.getByTestId('count')).toHaveText(/^[\d,]+$/);
  await expect(page.getByText('complete', { exact: true })).toBeVisible();
  await expect(page.getByLabel('curl line')).toContainText('sensor_2');
});

test('rows of an interval are listed', async ({ page }) => {
  await open(page, 'query?device=sensor_1&metric=temperature&op=avg&interval=15m&range=3600s');
  await expect(page.getByRole('table').getByRole('row').nth(2)).toBeVisible();
});

test('axe finds nothing, and it fits a phone', async ({ page }) => {
  await open(page, 'query?device=sensor_1&metric=temperature&op=avg&range=all');
  await expect(page.getByTestId('result')).toBeVisible();
  await expectAccessible(page);
  await expectFitsPhone(page);
});

test('exact times: local ones with UTC below; the wrong way round they are refused at the field', async ({ page }) => {
  await open(page, 'query?device=sensor_1&metric=temperature&range=all');
  await page.getByRole('button', { name: 'Exact …' }).click();
  await page.getByLabel('From').fill('2024-05-01T12:00:00');
  await page.getByLabel('To').fill('2024-05-01T11:00:00');
  await expect(page.getByText('From is later than To')).toBeVisible();
  await expect(page.getByRole('button', { name: 'Run query' })).toBeDisabled();
  await page.getByLabel('To').fill('2024-05-01T13:00:00');
  const utc = await page.evaluate(() => new Date('2024-05-01T13:00:00').toISOString().slice(0, 19).replace('T', ' '));
  await expect(page.getByText(`UTC ${utc}Z`)).toBeVisible();
  await page.getByRole('button', { name: 'Run query' }).click();
  await expect(page.getByText('The series have no points in this range.')).toBeVisible();
});

test('what the server does not know stands next to its field, and nothing else is lost', async ({ page, complaints }) => {
  await open(page, 'query?device=no+such+device&metric=temperature&range=all');
  await expect(page.getByRole('combobox', { name: 'Device' })).toHaveAccessibleDescription(/no such device/);
  await page.getByRole('button', { name: 'Remove no such device' }).click();
  await page.getByRole('button', { name: 'Run query' }).click();
  await expect(page.getByTestId('result')).toBeVisible();
  complaints.splice(0); // the browser itself writes down each answer that is an error
});

test('ten thousand devices: a page at a time is asked for, and what is seen is laid out', async ({ page }) => {
  await page.route('**/api/v1/devices', (route) => {
    const { device_id: pattern, cursor } = route.request().postDataJSON() as { device_id: string; cursor?: string };
    const ids = Array.from({ length: 10_000 }, (_, index) => `device_${String(index).padStart(5, '0')}`);
    const found = ids.filter((id) => id.includes(pattern.replaceAll('*', '')));
    const from = Number(cursor ?? 0);
    const rows = found.slice(from, from + 200).map((id) => ({ device_id: id, series: 1, count: 1, first_time: 0, last_time: 0, last: null }));
    return route.fulfill({ json: { rows, next_cursor: from + 200 < found.length ? String(from + 200) : null, coverage: {} } });
  });
  await open(page, 'query');
  const box = page.getByRole('combobox', { name: 'Device' });
  const options = page.getByRole('listbox', { name: 'Found: device' }).getByRole('option');
  await box.click();
  await expect(options.first()).toContainText('device_00000');
  expect(await options.count()).toBeLessThan(40);
  await box.fill('_09999');
  await expect(options.first()).toContainText('device_09999');
  await box.press('ArrowDown');
  await box.press('Enter');
  await expect(page.getByRole('button', { name: 'Remove device_09999' })).toBeVisible();
  await expect(page).toHaveURL(/device=device_09999/);
});
