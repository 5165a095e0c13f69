/** The browser's tests. tests/web/test_page.py starts them, beside the cluster that they look at. */
import { defineConfig } from '@playwright/test';

const asRoot = process.getuid?.() === 0;

export default defineConfig({
  testDir: 'tests',
  testMatch: '*.spec.ts',
  // One cluster for all of them, and some take nodes away: one after the other, in order of their names.
  workers: 1,
  timeout: 90_000,
  expect: { timeout: 15_000 },
  reporter: 'line',
  outputDir: process.env.MINITRUE_RESULTS ?? 'test-results',
  forbidOnly: true,
  use: {
    baseURL: process.env.MINITRUE_HTTP,
    viewport: { width: 1280, height: 800 },
    actionTimeout: 15_000,
    screenshot: 'only-on-failure',
    // Chromium's own sandbox does not work for root, as whom containers often run.
    launchOptions: { executablePath: process.env.MINITRUE_CHROMIUM, args: asRoot ? ['--no-sandbox'] : [] },
  },
});
