/** How the page is built: into dist/, names with a hash of the content, each file with a .gz and a .br beside it. */
import { readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';
import { defineConfig, type Plugin } from 'vite';

const COMPRESSIBLE = /\.(html|js|css|svg|json)$/;

function filesBelow(folder: string): string[] {
  return readdirSync(folder).flatMap((name) => {
    const path = join(folder, name);
    return statSync(path).isDirectory() ? filesBelow(path) : [path];
  });
}

/** The query worker compresses nothing itself: it sends what lies here. */
function compressed(): Plugin {
  let folder = 'dist';
  return {
    name: 'compressed',
    apply: 'build',
    configResolved(config) {
      folder = resolve(config.root, config.build.outDir);
    },
    closeBundle() {
      for (const path of filesBelow(folder).filter((one) => COMPRESSIBLE.test(one))) {
        const bytes = readFileSync(path);
        writeFileSync(`${path}.gz`, gzipSync(bytes, { level: 9 }));
        writeFileSync(`${path}.br`, brotliCompressSync(bytes, {
          params: { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length },
        }));
      }
    },
  };
}

/** Every page needs the shell: it is fetched with the entry, which only asks for it. */
function shellPreloaded(): Plugin {
  return {
    name: 'shell-preloaded',
    apply: 'build',
    transformIndexHtml: {
      order: 'post',
      handler(_, { bundle = {} }) {
        const shell = Object.values(bundle).find((one) => one.type === 'chunk' && one.facadeModuleId?.endsWith('/src/shell.tsx') === true);
        if (shell?.type !== 'chunk') throw new Error('the build has no chunk of src/shell.tsx');
        return [shell.fileName, ...shell.imports].filter((name) => bundle[name]?.type === 'chunk' && !bundle[name].isEntry).map((name) => (
          { tag: 'link', attrs: { rel: 'modulepreload', crossorigin: true, href: `/${name}` }, injectTo: 'head' as const }));
      },
    },
  };
}

const WORKER = process.env.MINITRUE_URL ?? 'http://127.0.0.1:8080';

export default defineConfig({
  base: '/',
  esbuild: { jsx: 'automatic' },
  plugins: [shellPreloaded(), compressed()],
  build: {
    outDir: 'dist',
    target: 'es2022',
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
  },
  server: { proxy: { '/api': WORKER, '/query': WORKER, '/live': WORKER, '/readyz': WORKER, '/metrics': WORKER } },
});
