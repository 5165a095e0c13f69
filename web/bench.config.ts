/** What tools/bench/page.py measures in the browser; the same browser as that of the tests. */
import { defineConfig } from '@playwright/test';
import tests from './playwright.config';

export default defineConfig(tests, { testDir: 'bench', testMatch: '*.bench.ts', timeout: 300_000 });
