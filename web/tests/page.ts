/** What the browser's tests share: a page that may not complain, the API, the cluster, and axe. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { expect, test as base, type APIRequestContext, type BrowserContext, type Page } from '@playwright/test';

export { expect };

/** What a page may never do, whatever is wrong with the server: break its policy, or ask another origin. */
async function watchPolicy(context: BrowserContext, breaches: string[]): Promise<void> {
  await context.exposeBinding('policyBroken', (_, text: string) => breaches.push(text));
  await context.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', (event) =>
      (window as any).policyBroken(`${event.violatedDirective}: ${event.blockedURI} ${event.sourceFile}:${event.lineNumber} ${event.sample}`));
  });
  const from = new Map<Page, string>();
  context.on('request', (request) => {
    const url = new URL(request.url());
    if (!/^https?:$/.test(url.protocol)) return;
    const page = request.frame().page();
    if (request.isNavigationRequest()) from.set(page, url.origin);
    if (url.origin !== from.get(page)) breaches.push(`asked ${url.href}`);
  });
}

function watchConsole(page: Page, complaints: string[]): void {
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(String(error)));
}

/** Of every test: what its pages wrote to the console as an error. There has to be nothing when the test is over. */
export const test = base.extend<{ complaints: string[] }>({
  complaints: [
    async ({ page, context }, use) => {
      const [complaints, breaches]: string[][] = [[], []];
      watchConsole(page, complaints);
      context.on('page', (other) => watchConsole(other, complaints));
      await watchPolicy(context, breaches);
      await use(complaints);
      expect(breaches, 'breaches of the policy').toEqual([]);
      expect(complaints, 'complaints in the console').toEqual([]);
    },
    { auto: true },
  ],
});

/** The browser itself writes down each request that failed, and each answer that is an error: that is no complaint. */
export function forgiveNetwork(complaints: string[]): void {
  const others = complaints.filter((text) => !/^Failed to load resource|net::ERR_/.test(text));
  complaints.splice(0, complaints.length, ...others);
}

function environment(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: tests/web/test_page.py starts these tests`);
  return value;
}

/** Opens a screen, by what stands behind the # of its URL. */
export async function open(page: Page, hash: string): Promise<void> {
  await page.goto(`/#/${hash}`);
  await expect(page.getByRole('navigation', { name: 'Screens' })).toBeVisible();
}

/** What the API answers to the same question. */
export async function told(request: APIRequestContext, path: string, body?: unknown): Promise<any> {
  const answer = body === undefined ? await request.get(path) : await request.post(path, { data: body });
  expect(answer.status(), `${path}: ${await answer.text()}`).toBe(200);
  return answer.json();
}

/** supervisorctl of the cluster: stop ing2, start ing2. */
export function supervise(...words: string[]): string {
  const command = ['-m', 'supervisor.supervisorctl', '-s', environment('MINITRUE_SUPERVISOR'), ...words];
  return execFileSync(environment('MINITRUE_PYTHON'), command, { encoding: 'utf8' });
}

/** tools/ringctl on the cluster, for a change of the ring; ends when all has moved. */
export function ringctl(...words: string[]): string {
  const conf = environment('MINITRUE_SUPERVISOR_CONF');
  const command = ['-m', 'tools.ringctl_app', ...words, '--supervisor', conf];
  return execFileSync(environment('MINITRUE_PYTHON'), command, { encoding: 'utf8', cwd: '..' });
}

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** What axe finds, as "rule: where". Put in by the debugger: the page's policy lets no foreign script in. */
export async function faults(page: Page): Promise<string[]> {
  await page.evaluate(AXE);
  return page.evaluate(async () => {
    const { violations } = await (window as any).axe.run(document, {
      runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'],
    });
    return violations.flatMap((rule: any) => rule.nodes.map((node: any) => `${rule.id}: ${node.target.join(' ')}: ${node.failureSummary}`));
  });
}

/** axe finds nothing, whichever theme. */
export async function expectAccessible(page: Page): Promise<void> {
  for (const theme of ['light', 'dark'] as const) {
    await page.emulateMedia({ colorScheme: theme, reducedMotion: 'reduce' });
    expect(await faults(page), `axe, ${theme}`).toEqual([]);
  }
  await page.emulateMedia({ colorScheme: 'light', reducedMotion: null });
}

/** On a phone nothing but frames made for it is to be moved sideways. */
export async function expectFitsPhone(page: Page): Promise<void> {
  await page.setViewportSize({ width: 390, height: 844 });
  const wide = () => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  await expect.poll(wide, 'pixels that the page is too wide').toBeLessThanOrEqual(0);
  await page.setViewportSize({ width: 1280, height: 800 });
}

/** The number in a text such as "12,345". */
export function numberIn(text: string | null): number {
  return Number((text ?? '').replace(/[^0-9.-]/g, ''));
}
