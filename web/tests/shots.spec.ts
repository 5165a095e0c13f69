/** The pictures of the documents: the same ones are taken by every run, and only `npm run shots` puts them into docs/img. */
import { join } from 'node:path';
import type { Page } from '@playwright/test';
import { expect, open, test } from './page';

const FOLDER = process.env.MINITRUE_SHOTS ?? process.env.MINITRUE_RESULTS ?? 'test-results';
const SERIES = 'device=sensor_1&metric=temperature';

/** Pictures for the documents are of small charts that have something in them; other runs need not wait for that. */
async function filled(page: Page): Promise<void> {
  if (process.env.MINITRUE_SHOTS) await page.waitForTimeout(10_000);
}

async function shot(page: Page, name: string, theme: 'light' | 'dark' = 'light', fullPage = false): Promise<void> {
  await page.emulateMedia({ colorScheme: theme });
  await page.screenshot({ path: join(FOLDER, `page-${name}.png`), animations: 'disabled', fullPage });
}

test('query', async ({ page }) => {
  await open(page, `query?${SERIES}&op=avg&interval=15m&range=7200s`);
  await expect(page.getByRole('table').getByRole('row').nth(2)).toBeVisible();
  await expect(page.locator('canvas')).toBeVisible();
  await shot(page, 'query', 'light', true);
});

test('explore', async ({ page }) => {
  await open(page, 'explore?line=sensor_1~temperature&line=sensor_2~temperature&line=sensor_3~temperature&range=7200s');
  const row = page.getByRole('row').filter({ hasText: 'sensor_3 temperature' });
  await expect(row.getByRole('cell').nth(-3)).toHaveText(/^[\d,]{3,}$/);
  await filled(page);
  await shot(page, 'explore');
  await shot(page, 'explore-dark', 'dark');
});

test('live', async ({ page }) => {
  await open(page, 'live?find=sensor');
  await filled(page);
  await expect(page.locator('.live-rate strong')).toHaveText(/[1-9].*\/s/);
  await shot(page, 'live', 'dark');
});

test('the cluster', async ({ page }) => {
  await open(page, 'cluster');
  await expect(page.locator('.cluster .spark').first()).toBeVisible({ timeout: 30_000 });
  await filled(page);
  await shot(page, 'cluster', 'light', true);
});

test('data', async ({ page }) => {
  await open(page, 'data?search=sensor');
  await expect(page.getByRole('row').filter({ hasText: 'sensor_1' })).toBeVisible();
  await shot(page, 'data');
});
