import { defineConfig } from 'vitest/config';

// a zone with summer time, the same on every machine; child processes read it when they start
process.env.TZ = 'Europe/Berlin';

// Tests share the modules that they load: to load React and the rest anew for each file took three times as long.
export default defineConfig({
  esbuild: { jsx: 'automatic' },
  test: { include: ['src/**/*.test.{ts,tsx}'], environment: 'node', pool: 'forks', isolate: false, restoreMocks: true },
});
