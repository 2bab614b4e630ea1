import { fileURLToPath } from "node:url";

import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";

export default defineConfig({
  plugins: [react()],
  resolve: {
    // The client from its source, with the packages of this page.
    alias: { "millstream/react": fileURLToPath(new URL("../clients/ts/src/react.ts", import.meta.url)) },
    dedupe: ["react", "eventsource-parser"],
  },
  build: {
    outDir: "../src/millstream/server/pages",
    emptyOutDir: true,
    // Every file stands on its own: the page's policy lets nothing inline run.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    // The notices of what the script contains travel with it.
    license: { fileName: "assets/licenses.md" },
  },
  server: {
    proxy: { "/v1": "http://127.0.0.1:8000" },
  },
  test: {
    environment: "node",
    include: ["src/**/*.test.ts"],
  },
});
