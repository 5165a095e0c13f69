/**
 * Measures the page in the browser and writes what it found, as JSON, to MINITRUE_BENCH_OUT: first paint and first answer with
 * an empty cache, and the frames while a hand drags a full chart to and fro. Judges nothing: tools/bench/page.py knows the bars.
 */
import { writeFileSync } from 'node:fs';
import { expect, test, type Browser, type Page } from '@playwright/test';

interface Job {
  /** Behind the # of the URL: one line, and all of them. */
  first: string;
  full: string;
  rounds: number;
  dragS: number;
}

interface Load {
  paintMs: number;
  answerMs: number;
  transferredBytes: number;
}

function environment(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: python -m tools.bench page starts this`);
  return value;
}

const JOB = JSON.parse(environment('MINITRUE_BENCH_JOB')) as Job;
const OUT = environment('MINITRUE_BENCH_OUT');

/** In the page, before anything of it runs: notes when the first answer stands on the chart. */
function noteAnswer(): void {
  new MutationObserver((_, observer) => {
    if (document.querySelector('.explore-facts') === null) return;
    observer.disconnect();
    requestAnimationFrame(() => setTimeout(() => ((window as any).answeredMs = performance.now())));
  }).observe(document, { childList: true, subtree: true });
}

/** A context of its own has a cache of its own, which is empty. */
async function load(browser: Browser, baseURL: string | undefined): Promise<Load> {
  const context = await browser.newContext({ baseURL, viewport: { width: 1280, height: 800 } });
  const page = await context.newPage();
  await page.addInitScript(noteAnswer);
  await page.goto(`/#/${JOB.first}`);
  await page.waitForFunction(() => (window as any).answeredMs !== undefined);
  const found = await page.evaluate(() => ({
    paintMs: performance.getEntriesByName('first-contentful-paint')[0]!.startTime,
    answerMs: (window as any).answeredMs as number,
    transferredBytes: [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]
      .filter(({ name }) => !/\/(api|query)/.test(name))
      .reduce((sum, entry) => sum + (entry as PerformanceResourceTiming).transferSize, 0),
  }));
  await context.close();
  return found;
}

/** Milliseconds between frames while the mouse goes to and fro over the chart with its button down. */
async function framesOfDrag(page: Page): Promise<number[]> {
  const box = (await page.locator('.u-over').boundingBox())!;
  const [middle, reach, y] = [box.x + box.width / 2, box.width / 6, box.y + box.height / 2];
  await page.mouse.move(middle, y);
  await page.mouse.down();
  await page.mouse.move(middle + 5, y); // what a drag costs once, at its begin, belongs to it
  await page.evaluate(() => {
    const frames: number[] = ((window as any).frames = []);
    let before = performance.now();
    const next = (now: number): void => {
      frames.push(now - before);
      before = now;
      (window as any).nextFrame = requestAnimationFrame(next);
    };
    requestAnimationFrame((now) => ((before = now), requestAnimationFrame(next)));
  });
  const endMs = Date.now() + JOB.dragS * 1000;
  for (let step = 0; Date.now() < endMs; step++) await page.mouse.move(middle + reach * Math.sin(step / 40), y);
  const frames = await page.evaluate(() => (cancelAnimationFrame((window as any).nextFrame), (window as any).frames as number[]));
  await page.mouse.up();
  return frames;
}

test('measures', async ({ browser, baseURL }) => {
  const loads: Load[] = [];
  for (let round = 0; round < JOB.rounds; round++) loads.push(await load(browser, baseURL));
  // as wide as it takes for each point to have a pixel of its own
  const page = await browser.newPage({ baseURL, viewport: { width: 2560, height: 1080 } });
  await page.goto(`/#/${JOB.full}`);
  await expect(page.locator('.explore-facts')).toBeVisible();
  await expect(page.locator('.chart-box')).toHaveAttribute('data-loading', 'false');
  const shown = await page.locator('.explore-facts').textContent();
  const frames = await framesOfDrag(page);
  writeFileSync(OUT, JSON.stringify({ loads, frames, shown, chromium: browser.version() }));
});
