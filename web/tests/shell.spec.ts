/** What is around the screens: every one loads by itself, themes, and a server that refuses or is away. */
import { expect, open, test, told } from './page';

const SCREENS = ['Query', 'Explore', 'Live', 'Cluster', 'Data'];

test('every screen opens by its link and comes back by the browser, without a complaint', async ({ page }) => {
  await open(page, '');
  for (const name of SCREENS) {
    await page.getByRole('navigation', { name: 'Screens' }).getByRole('link', { name }).click();
    await expect(page.getByRole('heading', { level: 1, name })).toBeAttached();
    await expect(page.getByRole('banner').getByText('connected', { exact: true })).toBeVisible();
    await expect(page).toHaveTitle(`${name} · minitrue`);
  }
  await page.goBack();
  await expect(page).toHaveTitle('Cluster · minitrue');
});

test('it is used without a mouse', async ({ page }) => {
  await open(page, 'query');
  await page.keyboard.press('Tab');
  await expect(page.getByText('Skip to the content')).toBeFocused();
  await page.keyboard.press('Enter');
  await expect(page.locator('main')).toBeFocused();
});

test('a theme is chosen and kept', async ({ page }) => {
  await open(page, 'query');
  await page.getByLabel('Theme').selectOption('dark');
  await expect(page.locator('html')).toHaveAttribute('data-theme', 'dark');
  await page.reload();
  await expect(page.locator('html')).toHaveAttribute('data-theme', 'dark');
});

test('a server that is busy is said to be, and asked again', async ({ page, complaints, request }) => {
  await told(request, '/api/v1/me');
  let refused = 0;
  await page.route('**/query', (route) => {
    refused += 1;
    if (refused > 2) return route.continue();
    const body = JSON.stringify({ error: 'busy', message: 'too many requests are here', setting: 'query.queue', limit: 64, value: 65 });
    return route.fulfill({ status: 429, headers: { 'Retry-After': '1' }, contentType: 'application/json', body });
  });
  await open(page, 'query?device=sensor_1&metric=temperature&op=avg&range=all');
  await expect(page.getByText('too many requests are here')).toBeVisible();
  await expect(page.getByTestId('result')).toBeVisible({ timeout: 30_000 });
  complaints.splice(0); // the browser itself writes down each answer that is an error
});

test('who has to sign in is asked, and the question is asked again', async ({ page, complaints }) => {
  await page.route('**/api/v1/status', (route) =>
    route.request().headers().authorization === 'Bearer right'
      ? route.continue()
      : route.fulfill({ status: 401, contentType: 'application/json', body: JSON.stringify({ error: 'unauthorized', message: 'a token is needed' }) }),
  );
  await open(page, 'cluster');
  const dialog = page.getByRole('dialog');
  await expect(dialog).toBeVisible();
  await dialog.getByLabel(/token/i).fill('right');
  await page.keyboard.press('Enter');
  await expect(page.getByRole('row').filter({ hasText: 'ing1' }).first()).toBeVisible();
  await expect(dialog).toHaveCount(0);
  complaints.splice(0); // the browser itself writes down each answer that is an error
});
