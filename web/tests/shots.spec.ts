/** The pictures of the documents: the same ones are taken by every run, and only `npm run shots` puts them into docs/img. */
import { join } from 'node:path';
import type { Page } from '@playwright/test';
import { expect, open, test } from './page';

const FOLDER = process.env.MINITRUE_SHOTS ?? process.env.MINITRUE_RESULTS ?? 'test-results';

async function shot(page: Page, name: string): Promise<void> {
  await page.screenshot({ path: join(FOLDER, `${name}.png`), animations: 'disabled' });
}

test('the cluster', async ({ page }) => {
  await open(page, 'cluster');
  await expect(page.locator('.cluster .spark').first()).toBeVisible({ timeout: 30_000 });
  await page.waitForTimeout(10_000); // until there is something in the small charts
  await shot(page, 'page-cluster');
  await page.emulateMedia({ colorScheme: 'dark' });
  await shot(page, 'page-cluster-dark');
});
