/** What a tab keeps, in a real browser. A module that is loaded again is another page. */

import { describe, expect, it, onTestFinished, vi } from "vitest";

type Page = typeof import("../src/kept");

let pages = 0;

function open(): Promise<Page> {
  return import(/* @vite-ignore */ `../src/kept.ts?page=${pages++}`) as Promise<Page>;
}

const LONG = "x".repeat(6_000_000);

async function keepLong(page: Page): Promise<string> {
  sessionStorage.clear();
  page.keep("chat", LONG);
  expect(await page.kept("chat")).toBe(LONG);
  return sessionStorage.getItem("chat") ?? "";
}

/** What another tab has under a name that stands for a text in the database. */
async function textAt(place: string): Promise<string | undefined> {
  sessionStorage.setItem("other", place);
  return (await open()).kept("other");
}

describe("a text that is too long for the tab's storage", () => {
  it("is the tab's own after a reload, and goes with what takes its place", async () => {
    const place = await keepLong(await open());
    dispatchEvent(new PageTransitionEvent("pagehide"));
    const after = await open();
    expect(await after.kept("chat")).toBe(LONG);
    expect(sessionStorage.getItem("chat")).toBe(place);
    after.keep("chat", "short");
    expect(after.kept("chat")).toBe("short");
    await vi.waitFor(async () => expect(await textAt(place)).toBeUndefined());
  });

  it("is there twice where the tab is duplicated", async () => {
    const original = await open();
    const place = await keepLong(original);
    const copy = await open();
    expect(await copy.kept("chat")).toBe(LONG);
    const copied = sessionStorage.getItem("chat") ?? "";
    expect(copied).not.toBe(place);
    copy.keep("chat", "short");
    await vi.waitFor(async () => expect(await textAt(copied)).toBeUndefined());
    sessionStorage.setItem("chat", place);
    expect(await original.kept("chat")).toBe(LONG);
  });

  it("is there twice where the tab is duplicated after the browser has brought its page back", async () => {
    const place = await keepLong(await open());
    dispatchEvent(new PageTransitionEvent("pagehide", { persisted: true }));
    dispatchEvent(new PageTransitionEvent("pageshow", { persisted: true }));
    await (await open()).kept("chat");
    expect(sessionStorage.getItem("chat")).not.toBe(place);
    sessionStorage.clear();
  });

  it("is there twice where the tab is duplicated after a reload, before it has kept anything", async () => {
    sessionStorage.clear();
    (await open()).keep("chat", "short");
    dispatchEvent(new PageTransitionEvent("pagehide"));
    const original = await open();
    expect(original.kept("chat")).toBe("short");
    const copied = { ...sessionStorage };
    original.keep("chat", LONG);
    const place = sessionStorage.getItem("chat");
    Object.assign(sessionStorage, copied);
    (await open()).keep("chat", LONG);
    expect(sessionStorage.getItem("chat")).not.toBe(place);
    sessionStorage.clear();
  });

  it("stays what was kept last, though an earlier one is read meanwhile", async () => {
    const page = await open();
    await keepLong(page);
    const reading = page.kept("chat");
    page.keep("chat", `${LONG}, newer`);
    expect(await reading).toBe(LONG);
    expect(await page.kept("chat")).toBe(`${LONG}, newer`);
    sessionStorage.clear();
  });
});

it("lets the page go where the tab's storage is full", async () => {
  const uncaught: string[] = [];
  const catchIt = (event: ErrorEvent): void => {
    event.preventDefault();
    event.stopImmediatePropagation();
    uncaught.push(event.message);
  };
  addEventListener("error", catchIt, { capture: true });
  onTestFinished(() => removeEventListener("error", catchIt, { capture: true }));
  (await open()).keep("chat", "short");
  vi.spyOn(Storage.prototype, "setItem").mockImplementation(() => {
    throw new DOMException("full", "QuotaExceededError");
  });
  onTestFinished(() => void vi.restoreAllMocks());
  dispatchEvent(new PageTransitionEvent("pagehide"));
  expect(uncaught).toEqual([]);
});
