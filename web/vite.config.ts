import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { brotliCompressSync, gzipSync } from "node:zlib";

import react from "@vitejs/plugin-react";
import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

// Swagger UI is copied, not bundled, so its notices are not among those that `build.license` collects. Its
// script says that they are in a file of this name.
const swaggerNotices: Plugin = {
  name: "swagger-notices",
  apply: "build",
  generateBundle() {
    const files = ["NOTICE", "LICENSE", "swagger-ui-bundle.js.LICENSE.txt"];
    const source = files
      .map((file) => readFileSync(`node_modules/swagger-ui-dist/${file}`, "utf8"))
      .join("\n\n");
    this.emitFile({ type: "asset", fileName: "assets/swagger-ui-bundle.js.LICENSE.txt", source });
  },
};

// Each script and style lies beside itself compressed: the server sends what a browser takes, and compresses nothing.
const compressed: Plugin = {
  name: "compressed",
  apply: "build",
  writeBundle({ dir = "." }) {
    const assets = join(dir, "assets");
    for (const name of readdirSync(assets).filter((file) => /\.(js|css|svg)$/.test(file))) {
      const content = readFileSync(join(assets, name));
      writeFileSync(join(assets, `${name}.gz`), gzipSync(content, { level: 9 }));
      writeFileSync(join(assets, `${name}.br`), brotliCompressSync(content));
    }
  },
};

// A part of the page that is loaded later is one file, with nothing beside it to be loaded before: what Vite puts around
// such an import is as long as the page's own code for a third of what it does.
const plainImports: Plugin = {
  name: "plain-imports",
  enforce: "pre",
  apply: "build",
  load: (id) => (id === "\0vite/preload-helper.js" ? "export const __vitePreload = (load) => load();" : null),
};

export default defineConfig({
  base: "./", // a proxy may serve the page below a path of its own
  plugins: [plainImports, react(), swaggerNotices, compressed],
  resolve: {
    // The client from its source, with the packages of this page.
    // Preact does for React: a page with either does the same, and this one is there in a third of the time.
    alias: {
      "millstream/react": fileURLToPath(new URL("../clients/ts/src/react.ts", import.meta.url)),
      "react/jsx-runtime": "preact/jsx-runtime",
      "react-dom/server": "preact-render-to-string",
      "react-dom/client": "preact/compat/client",
      "react-dom": "preact/compat",
      react: "preact/compat",
    },
    dedupe: ["preact", "eventsource-parser"],
  },
  build: {
    outDir: "../src/millstream/server/pages",
    emptyOutDir: true,
    rolldownOptions: { input: ["index.html", "docs.html"] },
    // Every file stands on its own: the page's policy lets nothing inline run.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    // The notices of what the script contains travel with it.
    license: { fileName: "assets/licenses.md" },
  },
  server: {
    proxy: { "/v1": "http://127.0.0.1:8000", "/openapi.json": "http://127.0.0.1:8000" },
  },
  test: {
    environment: "node",
    testTimeout: 600_000, // for every prefix of every example, on a machine with others at work
    include: ["src/**/*.test.{ts,tsx}"],
    // What the tests compare with is rendered by the same library.
    server: { deps: { inline: ["react-markdown"] } },
  },
});
