/** The cluster: what it shows is what the API says, and it follows what happens. */
import type { Locator, Page } from '@playwright/test';
import { expect, expectAccessible, expectFitsPhone, numberIn, open, ringctl, supervise, test, told } from './page';

function part(page: Page, title: string): Locator {
  return page.getByRole('region', { name: title, exact: true }).filter({ has: page.getByRole('heading', { name: title, exact: true }) });
}

function rowOf(page: Page, node: string): Locator {
  return part(page, 'Nodes').getByRole('row').filter({ hasText: node });
}

test('nodes are shown as the status tells them', async ({ page, request }) => {
  await open(page, 'cluster');
  const status = await told(request, '/api/v1/status');
  for (const [id, node] of Object.entries<any>(status.nodes)) {
    const cells = rowOf(page, id).getByRole('cell');
    await expect(cells.nth(1)).toContainText('up');
    expect(numberIn(await cells.nth(2).textContent())).toBe(node.series);
    await expect.poll(async () => numberIn(await cells.nth(3).textContent())).toBeGreaterThanOrEqual(node.points);
  }
  await expect(rowOf(page, 'ing1').getByRole('cell').nth(5)).toContainText(/\d.*\/s/, { timeout: 20_000 });
});

test('the ring is drawn with its partitions, and each can be looked at', async ({ page, request }) => {
  await open(page, 'cluster');
  const ring = await told(request, '/api/v1/ring?owners=true');
  const picture = part(page, 'Ring').getByRole('img');
  await expect(picture).toContainText(`epoch ${ring.epoch}`);
  const table = part(page, 'Ring').getByRole('table');
  for (const node of ring.nodes) {
    await expect(table.getByRole('row').filter({ hasText: node.id }).getByRole('cell').nth(1)).toHaveText(node.partitions.toLocaleString('en-US'));
  }
  await table.getByRole('button', { name: 'ing2' }).focus();
  await expect(picture).toContainText(`first owner of ${ring.nodes[1].first_owner_of}`);
  await expect(picture.locator('.ring-band.ring-aside')).not.toHaveCount(0);
  await page.keyboard.press('Tab');
  await expect(picture.locator('.ring-band.ring-aside.node-tone-3')).toHaveCount(0);
  await page.getByRole('slider', { name: 'Partition' }).fill('7');
  for (const owner of ring.owners[7]) await expect(part(page, 'Ring').locator('.ring-told')).toContainText(ring.nodes[owner].id);
});

test('dead letters are shown by reason, with samples as text', async ({ page, request }) => {
  await open(page, 'cluster');
  const { rows } = await told(request, '/api/v1/dead-letters');
  expect(rows.length).toBeGreaterThan(0);
  for (const { reason, count } of rows) {
    const summary = part(page, 'Dead letters').locator('summary').filter({ hasText: reason });
    await expect(summary).toContainText(String(count));
    await summary.click();
  }
  await expect(part(page, 'Dead letters').locator('pre').filter({ hasText: 'onerror' })).toHaveText('<img src=x onerror=alert(1)>');
  await expect(part(page, 'Dead letters').locator('img')).toHaveCount(0);
});

test('the history of the ring is shown', async ({ page, request }) => {
  await open(page, 'cluster');
  const { rows } = await told(request, '/api/v1/history');
  await expect(part(page, 'History').getByRole('row').nth(1)).toContainText(rows[0].summary);
});

test('axe finds nothing, and it fits a phone', async ({ page }) => {
  await open(page, 'cluster');
  await expect(rowOf(page, 'ing1')).toBeVisible();
  await expectAccessible(page);
  await expectFitsPhone(page);
});

test('a node that is killed turns red with the reason and since when, and is back by itself', async ({ page }) => {
  test.setTimeout(240_000);
  await open(page, 'cluster');
  await expect(rowOf(page, 'ing2')).toContainText('up');
  supervise('signal', 'KILL', 'ing2');
  await expect(() => expect(supervise('stop', 'ing2')).toContain('stopped')).toPass({ timeout: 30_000 }); // supervisord starts it again
  try {
    const row = rowOf(page, 'ing2');
    await expect(row).toHaveClass(/is-bad/, { timeout: 30_000 });
    await expect(row).toContainText('no answer');
    await expect(row.locator('time')).toBeVisible();
    await expect(part(page, 'Ring').getByRole('status').first()).toContainText('fewer than 2 owners');
    await expect(part(page, 'Ring').locator('.ring-reduced')).toHaveAttribute('d', /M/);
    await expect(part(page, 'Ring').locator('.ring-away').first()).toHaveAttribute('d', /M/);
    await expect(part(page, 'Ring').locator('.ring-label-away')).toHaveText('✕ ing2');
    await expectAccessible(page);
  } finally {
    supervise('start', 'ing2');
  }
  await expect(rowOf(page, 'ing2')).not.toHaveClass(/is-bad/, { timeout: 90_000 });
  await expect(part(page, 'Ring').getByRole('status').first()).toContainText('Every partition has its 2 owners', { timeout: 90_000 });
});

test('a server that goes away: what was shown stays and is called stale, and comes back by itself', async ({ page, complaints }) => {
  await open(page, 'cluster');
  await expect(rowOf(page, 'ing1')).toContainText('up');
  await page.route('**/api/v1/**', (route) => route.abort());
  await expect(page.getByText('stale').first()).toBeVisible({ timeout: 20_000 });
  await expect(rowOf(page, 'ing1')).toBeVisible();
  await page.unroute('**/api/v1/**');
  await expect(page.getByText('stale')).toHaveCount(0, { timeout: 40_000 });
  complaints.splice(0); // the browser itself writes down each request that failed
});

test('a node that is added is seen to join', async ({ page, request }) => {
  test.setTimeout(300_000);
  await open(page, 'cluster');
  await expect(rowOf(page, 'ing1')).toBeVisible();
  const { epoch } = await told(request, '/api/v1/ring');
  // What the picture showed of moving partitions, however short each was.
  await page.evaluate(() => {
    const seen = ((window as any).seen = new Set<string>());
    new MutationObserver(() => {
      for (const name of ['ring-moving', 'ring-way', 'ring-changed']) if (document.querySelector(`.${name}`)) seen.add(name);
    }).observe(document.body, { subtree: true, childList: true });
  });
  // in waves so small that the page asks several times while they move
  try {
    ringctl('add', 'ing4', '--wave', '24', '--yes');
  } catch {
    ringctl('resume', '--wave', '24'); // a busy machine may take a minute to start a node
  }
  await expect(rowOf(page, 'ing4')).toContainText('up', { timeout: 60_000 });
  const picture = part(page, 'Ring').getByRole('img');
  await expect(picture).toContainText('nothing moves');
  let ring: any; // the last change may have been saved and not be told yet
  await expect(async () => {
    ring = await told(request, '/api/v1/ring?owners=true');
    expect(await picture.textContent()).toContain(`epoch ${ring.epoch}${ring.partitions.toLocaleString('en')} partitions`);
  }).toPass({ timeout: 20_000 });
  expect(ring.epoch).toBeGreaterThan(epoch);
  expect(ring.nodes.find((node: any) => node.id === 'ing4').partitions).toBeGreaterThan(0);
  const seen = await page.evaluate(() => [...(window as any).seen]);
  expect(seen).toEqual(expect.arrayContaining(['ring-changed', 'ring-moving', 'ring-way']));
  await expect(part(page, 'History').getByRole('row').nth(1)).toContainText(String(ring.epoch), { timeout: 20_000 });
});
