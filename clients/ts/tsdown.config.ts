import { defineConfig } from "tsdown";

const shared = { target: "es2022", minify: true, platform: "neutral" } as const;

export default defineConfig([
  { ...shared, entry: ["src/index.ts", "src/react.ts"], format: ["esm", "cjs"], dts: true },
  // One file with everything in it, for pages without a build.
  {
    ...shared,
    entry: { millstream: "src/index.ts" },
    format: "esm",
    dts: false,
    deps: { alwaysBundle: ["eventsource-parser"], onlyBundle: ["eventsource-parser"] },
  },
]);
