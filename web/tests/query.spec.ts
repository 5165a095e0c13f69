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
