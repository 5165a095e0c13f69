/** Asking a question as a person does; the figure is the API's. */
import { execFileSync } from 'node:child_process';
import type { Page } from '@playwright/test';
import { expect, expectAccessible, expectFitsPhone, open, test, told } from './page';

/** What the curl line of the page prints when a shell runs it. */
async function curled(page: Page): Promise<any> {
  const line = (await page.getByLabel('curl line').textContent()) ?? '';
  return JSON.parse(execFileSync('sh', ['-c', line], { encoding: 'utf8' }));
}

/** A time that is over: the simulator writes on, its past stays. */
function past(): { hash: string; start: string; end: string } {
  const endMs = Math.floor(Date.now() / 1000 - 1800) * 1000;
  const startMs = endMs - 3_600_000;
  return { hash: `range=${startMs}..${endMs}`, start: new Date(startMs).toISOString(), end: new Date(endMs).toISOString() };
}

test('a device and a metric are found by keys alone, whatever the capitals; the answer is that of the API', async ({ page, request }) => {
  await open(page, 'query');
  const [device, metric] = [page.getByRole('combobox', { name: 'Device' }), page.getByRole('combobox', { name: 'Metric' })];
  await device.focus();
  await page.keyboard.type('SENSOR_2');
  await expect(page.getByRole('option', { name: /^sensor_2\b/ })).toBeVisible();
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Enter');
  await expect(page.getByRole('button', { name: 'Remove sensor_2' })).toBeVisible();
  await metric.focus();
  await page.keyboard.type('Temperature');
  await expect(page.getByRole('option', { name: /^temperature\b/ })).toBeVisible();
  await page.keyboard.press('Enter');
  await expect(page.getByRole('button', { name: 'Remove temperature' })).toBeVisible();
  await page.keyboard.press('Escape');
  await page.getByLabel('Operation').selectOption('first');
  await page.getByRole('button', { name: 'All', exact: true }).click();
  await page.getByRole('button', { name: 'Run query' }).click();
  const answer = await told(request, '/query', { device_id: 'sensor_2', metric_name: 'temperature', operation: 'first' });
  await expect(page.getByTestId('result')).toHaveAttribute('title', String(answer.result));
  await expect(page.getByTestId('count')).toHaveText(/^[\d,]+$/);
  await expect(page.getByText('complete', { exact: true })).toBeVisible();
});

test('what was typed is asked for though no key chose it; one Enter chooses, the next one asks', async ({ page, request }) => {
  await open(page, 'query?op=first&range=all');
  const [device, metric] = [page.getByRole('combobox', { name: 'Device' }), page.getByRole('combobox', { name: 'Metric' })];
  const { result } = await told(request, '/query', { device_id: 'sensor_3', metric_name: 'temperature', operation: 'first' });
  await device.fill('sensor_3');
  await expect(page.getByRole('option', { name: /^sensor_3\b/ })).toBeVisible();
  await metric.fill('temp');
  await expect(page.locator('.picker-option')).toHaveCount(1);
  await page.getByRole('button', { name: 'Run query' }).click();
  await expect(page.getByTestId('result')).toHaveAttribute('title', String(result));
  await page.getByRole('button', { name: 'Remove sensor_3' }).click();
  await device.fill('sensor_2');
  await expect(page.getByRole('option', { name: /^sensor_2\b/ })).toBeVisible();
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Enter');
  await page.keyboard.press('Enter');
  const other = await told(request, '/query', { device_id: 'sensor_2', metric_name: 'temperature', operation: 'first' });
  await expect(page.getByTestId('result')).toHaveAttribute('title', String(other.result));
});

test('a figure to read with the exact one beside it; the curl line answers the same, whatever the id', async ({ page, request }) => {
  const { hash, start, end } = past();
  await open(page, `query?device=sensor_1&metric=temperature&op=avg&${hash}`);
  const asked = { device_id: 'sensor_1', metric_name: 'temperature', operation: 'avg', start_time: start, end_time: end };
  const { result } = await told(request, '/query', asked);
  const figure = page.getByTestId('result');
  await expect(figure).toHaveAttribute('title', String(result));
  await expect(figure).toHaveText(String(Number(result.toPrecision(6))));
  expect((await curled(page)).result).toBe(result);
  const hostile = 'hostile "\'&<b>~!,=';
  await open(page, `query?device=${encodeURIComponent(hostile)}&op=max&range=all`);
  await expect(figure).toHaveText('1.5');
  expect(await curled(page)).toMatchObject({ device_id: hostile, result: 1.5, count: 1 });
});

test('rows of an interval: listed, drawn, zoomed by dragging, opened in Explore', async ({ page, request }) => {
  const { hash, start, end } = past();
  await open(page, `query?device=sensor_1&metric=temperature&op=avg&interval=5m&${hash}`);
  const asked = { device_id: 'sensor_1', metric_name: 'temperature', operation: 'avg', interval: '5m', start_time: start, end_time: end };
  const { rows } = await told(request, '/query', asked);
  const cells = page.getByRole('table').locator('tbody tr');
  await expect(cells).toHaveCount(rows.length);
  await expect(cells.nth(3).getByRole('cell').nth(1).locator('span')).toHaveAttribute('title', String(rows[3].avg));
  const plot = page.getByTestId('course').locator('.u-over');
  const { x, y, width } = (await plot.boundingBox())!;
  await page.mouse.move(x + width * 0.4, y + 50);
  await page.mouse.down();
  await page.mouse.move(x + width * 0.6, y + 60, { steps: 4 });
  await page.mouse.up();
  await expect(page.getByLabel('Interval')).toHaveValue('auto');
  await expect(page.getByTestId('interval')).toHaveText(/^\d+s$/);
  await page.getByTestId('course').getByRole('application').press('Backspace');
  await expect(page.getByTestId('interval')).toHaveText('5m');
  await expect(page.getByLabel('Interval')).toHaveValue('5m');
  await page.getByRole('link', { name: 'Open in Explore' }).click();
  await expect(page).toHaveURL(new RegExp(`#/explore\\?line=sensor_1%7Etemperature.*${hash}`));
  await expect(page.getByText('sensor_1 temperature').first()).toBeVisible();
});

test('days are those of the zone that is shown', async ({ page }) => {
  await open(page, 'query?device=sensor_1&metric=temperature&op=count&interval=1d&range=172800s');
  await expect(page.getByLabel('Interval')).toHaveAccessibleDescription(/begin at midnight in/);
  await expect(page.getByRole('table').locator('tbody tr').first().locator('time')).toHaveText(/ 00:00:00$/);
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
  await page.getByLabel('From').fill('2024-05-01T12:00:01');
  await page.getByLabel('To').fill('2024-05-01T11:00:01');
  await expect(page.getByText('From is later than To')).toBeVisible();
  await expect(page.getByRole('button', { name: 'Run query' })).toBeDisabled();
  await page.getByLabel('To').fill('2024-05-01T13:00:01');
  const utc = await page.evaluate(() => new Date('2024-05-01T13:00:01').toISOString().slice(0, 19).replace('T', ' '));
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
  await open(page, 'query?metric=temperature&op=percentile&p=150&range=all');
  await expect(page.getByLabel('Percentile')).toHaveAccessibleDescription(/from 0 to 100/);
  await expect(page.getByLabel('Operation')).not.toHaveAccessibleDescription(/./);
  complaints.splice(0); // the browser itself writes down each answer that is an error
});

test('ten thousand devices: a page at a time is asked for, and what is seen is laid out', async ({ page }) => {
  await page.route('**/api/v1/devices', (route) => {
    const { device_id: pattern, cursor } = route.request().postDataJSON() as { device_id: string; cursor?: string };
    const ids = Array.from({ length: 10_000 }, (_, index) => `device_${String(index).padStart(5, '0')}`);
    const wanted = pattern.replaceAll('*', ''); // a text without letters comes as a glob, one with letters as ~(?is).*text.*
    const found = ids.filter((id) => (pattern.startsWith('~') ? new RegExp(`^${pattern.slice(6)}$`, 'is').test(id) : id.includes(wanted)));
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
  await box.fill('ICE_09999');
  await expect(options.first()).toContainText('device_09999');
  await box.press('ArrowDown');
  await box.press('Enter');
  await expect(page.getByRole('button', { name: 'Remove device_09999' })).toBeVisible();
  await expect(page).toHaveURL(/device=device_09999/);
});
