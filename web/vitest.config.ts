import { defineConfig } from 'vitest/config';

// a zone with summer time, the same on every machine; child processes read it when they start
process.env.TZ = 'Europe/Berlin';

export default defineConfig({
  esbuild: { jsx: 'automatic' },
  test: { include: ['src/**/*.test.{ts,tsx}'], environment: 'node', pool: 'forks', restoreMocks: true },
});
