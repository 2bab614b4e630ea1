/** Tabs that share a connection. Two readers in one page talk to each other as two tabs do. */

import { describe, expect, it, onTestFinished, vi } from "vitest";

import type { Frame, Positioned, StreamOptions } from "../src/index";
import { openShared, StreamError } from "../src/index";
import { FakeServer } from "./server";

/** Every test has a stream of its own: a tab that has read the end is there for others for a while. */
class Server extends FakeServer {
  constructor(words: string[], ended = true, retryMs = 1) {
    super(words, ended, retryMs, `str_${crypto.randomUUID()}`);
  }
}

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
    const server = new Server(["Hel"], false);
    const first = new Tab(server, { request: {} });
    await first.shows("Hel");
    const others = [1, 2, 3].map(() => new Tab(server, { streamId: server.streamId }));
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
    const server = new Server(["Hel"], false);
    const first = new Tab(server, { request: {} });
    await first.shows("Hel");
    const [second, third] = [
      new Tab(server, { streamId: server.streamId }),
      new Tab(server, { streamId: server.streamId }),
    ];
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
    const server = new Server(["Hel"], false);
    const first = new Tab(server, { request: {} });
    await first.shows("Hel");
    const second = new Tab(server, { streamId: server.streamId });
    await second.shows("Hel");
    server.fail("upstream_error");
    await second.done;
    const error = second.last?.kind === "error" ? second.last.error : undefined;
    expect(error).toBeInstanceOf(StreamError);
    expect(error).toMatchObject({ code: "upstream_error", message: "it broke", retryable: true });
  });

  it("read for themselves where nobody answers", async () => {
    const server = new Server(["Hello"]);
    let release = (): void => undefined;
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    onTestFinished(() => release());
    void navigator.locks.request(`millstream:${server.streamId}`, () => held); // a tab that stands still
    vi.useFakeTimers();
    onTestFinished(() => void vi.useRealTimers());
    const tab = new Tab(server, { streamId: server.streamId });
    await vi.advanceTimersByTimeAsync(5000);
    await tab.done;
    expect([tab.text, server.calls.length]).toEqual(["Hello", 1]);
  });

  it.each([false, true])("do not wait for a tab that has less of it (which goes on: %s)", async (goesOn) => {
    const server = new Server(["Hel", "lo"], false);
    const late = new Tab(server, { streamId: server.streamId, after: "1-3" });
    await vi.waitFor(() => expect(late.text).toBe("lo"), { timeout: 8000 }); // nobody answers it either
    const whole = new Tab(server, { streamId: server.streamId });
    const saying = goesOn ? setInterval(() => server.say("!"), 500) : undefined;
    await vi.waitFor(() => expect(whole.text).toMatch(/^Hello/), { timeout: 8000 });
    clearInterval(saying);
    expect(server.calls).toHaveLength(2);
    server.end("stop");
    await whole.done;
    expect(whole.text).toBe(`Hel${late.text}`);
  });

  it("are not told the end of what they have not heard", async () => {
    const server = new Server(["Hel", "lo"], false);
    const first = new Tab(server, { request: {} });
    await first.shows("Hello");
    const channel = new BroadcastChannel(`millstream:${server.streamId}`);
    onTestFinished(() => channel.close());
    const second = new Tab(server, { streamId: server.streamId });
    const error = { code: "interrupted", message: "gone", details: {} };
    channel.postMessage({ after: "1-4", frames: [{ kind: "error", error, position: "2-1" }], reply: false });
    await second.shows("Hello");
    server.end("stop");
    await second.done;
    expect(second.last?.kind).toBe("end");
  });

  it("hear what is said while they are busy with something else", async () => {
    const server = new Server(["a"], false);
    const first = new Tab(server, { request: {} });
    await first.shows("a");
    const seen: string[] = [];
    const closing = new AbortController();
    onTestFinished(() => closing.abort());
    const slow = (async () => {
      const frames = openShared({ fetch: server.fetch, streamId: server.streamId, signal: closing.signal });
      for await (const frame of frames) {
        if (frame.kind !== "text") continue;
        seen.push(frame.text);
        if (frame.text === "b") server.say("c");
        await new Promise((resolve) => setTimeout(resolve, 30));
      }
    })();
    await vi.waitFor(() => expect(seen).toEqual(["a"]));
    server.say("b");
    await vi.waitFor(() => expect(seen).toEqual(["a", "b", "c"]), { timeout: 2000 });
    server.end("stop");
    await slow;
    expect(server.calls).toHaveLength(1);
  });

  it("do not wait for one whose connection is gone", async () => {
    const server = new Server(["Hel"], false, 10_000);
    const gone = new AbortController();
    const once: typeof fetch = (input, init) =>
      server.calls.length === 0
        ? server.fetch(input, { ...init, signal: gone.signal })
        : Promise.reject(new TypeError());
    const first = new Tab(server, { request: {}, fetch: once });
    first.done.catch(() => undefined);
    await first.shows("Hel");
    vi.useFakeTimers();
    const second = new Tab(server, { streamId: server.streamId });
    await second.shows("Hel");
    vi.spyOn(Math, "random").mockReturnValue(1); // the longest waits there are
    onTestFinished(() => void vi.useRealTimers());
    onTestFinished(() => void vi.restoreAllMocks());
    gone.abort(); // and it looks for a new one in vain
    server.say("lo");
    await vi.advanceTimersByTimeAsync(10_500); // of silence, and of no answer
    expect([first.text, second.text]).toEqual(["Hel", "Hello"]);
    server.end("stop");
    await second.done;
  });

  it("read at once where locks are not allowed", async () => {
    const server = new Server(["Hello"]);
    vi.spyOn(navigator.locks, "request").mockRejectedValue(new DOMException("no", "SecurityError"));
    onTestFinished(() => void vi.restoreAllMocks());
    const tab = new Tab(server, { streamId: server.streamId });
    await tab.shows("Hello");
    await tab.done;
  });

  it("say their state once, however many events there are", async () => {
    const server = new Server(
      Array.from({ length: 500 }, (_, i) => `${i} `),
      false,
    );
    const first = new Tab(server, { request: {} });
    await vi.waitFor(() => expect(first.text).toContain("499"));
    const states: string[] = [];
    const second = new Tab(server, { streamId: server.streamId, onState: (state) => states.push(state) });
    await second.shows(first.text);
    expect(states).toEqual(["connecting", "streaming"]);
  });
});
