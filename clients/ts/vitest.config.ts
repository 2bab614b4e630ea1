import { playwright } from "@vitest/browser-playwright";
import { defineConfig } from "vitest/config";

// Debian's Chromium, as in all other tests; nothing is downloaded.
const chromium = playwright({
  launchOptions: {
    executablePath: "/usr/bin/chromium",
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--disable-background-networking",
      "--disable-sync",
    ],
  },
});

export default defineConfig({
  test: {
    testTimeout: 20_000,
    projects: [
      {
        extends: true,
        test: { name: "node", include: ["test/*.test.{ts,tsx}"], exclude: ["test/*.browser.test.{ts,tsx}"] },
      },
      {
        extends: true,
        test: {
          name: "browser",
          include: ["test/*.browser.test.{ts,tsx}"],
          browser: {
            enabled: true,
            headless: true,
            provider: chromium,
            instances: [{ browser: "chromium" }],
            screenshotFailures: false,
            api: { host: "127.0.0.1" },
          },
        },
      },
    ],
  },
});
