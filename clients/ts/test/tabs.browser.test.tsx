/** Tabs that share a connection. Two readers in one page talk to each other as two tabs do. */

import { describe, expect, it, onTestFinished, vi } from "vitest";

import { StreamError, openShared } from "../src/index";
import type { Frame, Positioned, StreamOptions } from "../src/index";
import { FakeServer } from "./server";

class Tab {
  readonly frames: Positioned[] = [];
  readonly closing = new AbortController();
  readonly done: Promise<void>;

  constructor(server: FakeServer, options: StreamOptions = {}) {
    onTestFinished(() => this.closing.abort());
    this.done = this.#read({ fetch: server.fetch, signal: this.closing.signal, ...options });
  }

  async #read(options: StreamOptions): Promise<void> {
    for await (const frame of openShared(options)) this.frames.push(frame);
  }

  get text(): string {
    return this.frames.map((frame) => (frame.kind === "text" ? frame.text : "")).join("");
  }

  get last(): Frame | undefined {
    return this.frames.at(-1);
  }

  async shows(text: string): Promise<void> {
    await vi.waitFor(() => expect(this.text).toBe(text), { timeout: 3000, interval: 5 });
  }
}

describe("tabs that share a connection", () => {
  it("all get everything, over one", async () => {
    const server = new FakeServer(["Hel"], false);
    const first = new Tab(server, { request: {} });
    await first.shows("Hel");
    const others = [1, 2, 3].map(() => new Tab(server, { streamId: "str_1" }));
    for (const tab of others) await tab.shows("Hel");
    server.say("lo");
    server.end("stop");
    for (const tab of [first, ...others]) {
      await tab.done;
      expect(tab.frames.map((frame) => frame.position)).toEqual(["1-1", "1-2", "1-3", "1-4", "1-5"]);
      expect([tab.text, tab.last?.kind]).toEqual(["Hello", "end"]);
    }
    expect(server.calls).toHaveLength(1);
  });

  it("read on when the one that read for all is closed", async () => {
    const server = new FakeServer(["Hel"], false);
    const first = new Tab(server, { request: {} });
    await first.shows("Hel");
    const [second, third] = [new Tab(server, { streamId: "str_1" }), new Tab(server, { streamId: "str_1" })];
    await second.shows("Hel");
    await third.shows("Hel");
    first.closing.abort();
    await vi.waitFor(() => expect(server.calls).toHaveLength(2), { timeout: 3000 });
    server.say("lo");
    server.end("stop");
    await Promise.all([second.done, third.done]);
    expect([second.text, third.text]).toEqual(["Hello", "Hello"]);
    expect(server.calls).toHaveLength(2);
    expect(server.calls[1]?.headers["last-event-id"]).toBe("1-3");
  });

  it("are all told why it broke", async () => {
    const server = new FakeServer(["Hel"], false);
    const first = new Tab(server, { request: {} });
    await first.shows("Hel");
    const second = new Tab(server, { streamId: "str_1" });
    await second.shows("Hel");
    server.fail("upstream_error");
    await second.done;
    const error = second.last?.kind === "error" ? second.last.error : undefined;
    expect(error).toBeInstanceOf(StreamError);
    expect(error).toMatchObject({ code: "upstream_error", message: "it broke", retryable: true });
  });

  it("read for themselves where nobody answers", async () => {
    const server = new FakeServer(["Hello"]);
    let release = (): void => undefined;
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    onTestFinished(() => release());
    void navigator.locks.request("millstream:str_1", () => held); // a tab that stands still
    vi.useFakeTimers();
    onTestFinished(() => void vi.useRealTimers());
    const tab = new Tab(server, { streamId: "str_1" });
    await vi.advanceTimersByTimeAsync(5000);
    await tab.done;
    expect([tab.text, server.calls.length]).toEqual(["Hello", 1]);
  });

  it("do not wait for a tab that has less of it", async () => {
    const server = new FakeServer(["Hel", "lo"], false);
    const late = new Tab(server, { streamId: "str_1", after: "1-3" });
    await late.shows("lo");
    vi.useFakeTimers();
    onTestFinished(() => void vi.useRealTimers());
    const whole = new Tab(server, { streamId: "str_1" });
    await vi.advanceTimersByTimeAsync(5000);
    server.end("stop");
    await whole.done;
    expect(whole.text).toBe("Hello");
  });
});
