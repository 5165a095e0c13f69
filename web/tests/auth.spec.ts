/** A server that wants tokens: signing in, what a token does not allow, one that is taken away in the middle. */
import { execFileSync } from 'node:child_process';
import type { Page } from '@playwright/test';
import { expect, expectAccessible, forgiveNetwork, open, test } from './page';

/** tools/tokens as a person runs it; what it prints as JSON. */
function tokens(...words: string[]): any {
  const command = ['-m', 'tools.tokens_app', ...words, '--config', process.env.MINITRUE_CONFIG ?? '', '--json'];
  return JSON.parse(execFileSync(process.env.MINITRUE_PYTHON ?? 'python3', command, { encoding: 'utf8', cwd: '..' }));
}

function add(name: string, ...scopes: string[]): string {
  return tokens('add', name, ...scopes.flatMap((scope) => ['--scope', scope])).token;
}

function dialogOf(page: Page) {
  return page.getByRole('dialog', { name: 'Sign in' });
}

async function signIn(page: Page, token: string): Promise<void> {
  const dialog = dialogOf(page);
  await dialog.getByLabel('Token').fill(token);
  await dialog.getByRole('button', { name: 'Sign in' }).click();
}

const DEVICE = 'data?device=sensor_1';

test('signing in: a wrong token is said at its field, a right one is kept for the session and shows what it allows', async ({ page, browser, complaints }) => {
  const [reads, deletes] = [add('reader', 'read'), add('cleaner', 'read', 'delete')];
  await open(page, DEVICE);
  const dialog = dialogOf(page);
  await expect(dialog).toContainText('This server wants a token.');
  await expectAccessible(page);
  await signIn(page, 'mt_wrong');
  await expect(dialog.getByLabel('Token')).toHaveAccessibleDescription(/The server does not take it: the token is not known/);
  expect(await page.evaluate(() => sessionStorage.length), 'a wrong token is not kept').toBe(0);
  await signIn(page, 'mt_ß');
  await expect(dialog.getByLabel('Token')).toHaveAccessibleDescription(/letters, digits/);
  await expect(async () => { // the server looks at the file once a second
    await signIn(page, reads);
    await expect(dialog).toHaveCount(0, { timeout: 2_000 });
  }).toPass();
  await expect(page.getByRole('table', { name: 'Series of the device' })).toBeVisible();
  await expect(page.getByText('The token reader may not delete')).toBeVisible();
  await expect(page.getByRole('button', { name: /^Delete/ })).toHaveCount(0);
  expect(page.url()).not.toContain(reads);
  expect(await page.evaluate(() => JSON.stringify(localStorage))).not.toContain(reads);
  await page.reload();
  await expect(page.getByRole('table', { name: 'Series of the device' })).toBeVisible();
  await expect(dialog).toHaveCount(0);

  const other = await browser.newContext({ baseURL: process.env.MINITRUE_HTTP });
  const stranger = await other.newPage();
  await open(stranger, 'query');
  await expect(dialogOf(stranger), 'another session knows nothing of it').toBeVisible();
  await other.close();

  await page.getByRole('button', { name: 'Sign out' }).click();
  await expect(page.getByRole('table'), 'what was shown to one is not for the next').toHaveCount(0);
  await page.getByRole('banner').getByRole('button', { name: 'Sign in' }).click();
  await signIn(page, deletes);
  await expect(page.getByRole('button', { name: 'Delete …', exact: true }).first()).toBeVisible();
  forgiveNetwork(complaints);
});

test('a token that is taken away: the question waits for another one, and nothing is lost', async ({ page, complaints }) => {
  const [first, second] = [add('passing', 'read'), add('lasting', 'read')];
  await page.addInitScript((token) => {
    if (sessionStorage.length === 0) sessionStorage.setItem('minitrue.token', token);
  }, first);
  const asked: string[] = [];
  page.on('response', (answer) => {
    if (answer.url().endsWith('/query')) asked.push(`${answer.status()} ${answer.request().postData()}`);
  });
  await open(page, 'query?device=sensor_1&op=max&range=all');
  const button = dialogOf(page).getByRole('button', { name: 'Not now' });
  await expect(page.getByTestId('result').or(button).first()).toBeVisible(); // the file may not have been looked at yet
  if (await button.isVisible()) await signIn(page, first);
  const before = await page.getByTestId('result').textContent();
  tokens('remove', 'passing');
  await expect(dialogOf(page)).toContainText('You were signed out: the token is not known.', { timeout: 30_000 });
  await button.click();
  await expect(page.getByTestId('result')).toHaveText(before ?? '');
  await page.getByLabel('Operation').selectOption('count');
  await page.getByRole('button', { name: 'Run query' }).click();
  await expect(page.locator('.error-box')).toContainText('Not signed in.');
  await expect(page.getByTestId('result'), 'what was there stays').toHaveText(before ?? '');
  await expect(page.getByText('This is the answer to what was asked before, not to the question that failed.')).toBeVisible();
  await page.locator('.error-box').getByRole('button', { name: 'Sign in' }).click();
  await signIn(page, second);
  await expect(page.getByTestId('result')).not.toHaveText(before ?? '');
  await expect(page.getByLabel('Operation')).toHaveValue('count');
  expect(asked.filter((one) => one.startsWith('200')).at(-1)).toContain('"count"');
  await expect(page.getByRole('banner')).toContainText('lasting');
  forgiveNetwork(complaints);
});

test('nobody reads the page’s files without its policy, and nothing tells who asks', async ({ request }) => {
  const page = await request.get('/', { headers: { Accept: 'text/html' } });
  expect(page.headers()['content-security-policy']).toContain("default-src 'none'");
  expect(page.headers()['content-security-policy']).not.toContain('unsafe');
  expect((await request.get('/api/v1/series')).status()).toBe(401);
});
