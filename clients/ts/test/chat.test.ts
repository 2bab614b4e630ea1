import { describe, expect, it, vi } from "vitest";

import type { ChatOptions } from "../src/chat";
import { Chat } from "../src/chat";
import type { AssistantMessage } from "../src/messages";
import { newAnswer, reduce, textOf } from "../src/messages";
import { keepToken } from "../src/stream";
import { FakeServer } from "./server";

function chatWith(server: FakeServer, options: ChatOptions = {}): Chat {
  return new Chat({ fetch: server.fetch, throttleMs: 0, request: { model: "m" }, ...options });
}

function answer(chat: Chat): AssistantMessage {
  const last = chat.getSnapshot().messages.at(-1);
  if (last?.role !== "assistant") throw new Error("no answer");
  return last;
}

async function until(condition: () => boolean): Promise<void> {
  await vi.waitFor(() => expect(condition()).toBe(true), { timeout: 3000, interval: 5 });
}

describe("reduce", () => {
  it("puts parts together in their order", () => {
    const frames = [
      { kind: "start", streamId: "s", model: "m" },
      { kind: "reasoning", text: "h" },
      { kind: "reasoning", text: "m" },
      { kind: "text", text: "a" },
      { kind: "boundary" },
      { kind: "text", text: "b" },
      { kind: "tool-call", call: { index: 0, id: "c", name: "f" } },
      { kind: "tool-call", call: { index: 1, id: "d", name: "g" } },
      { kind: "tool-call", call: { index: 0, arguments: "{}" } },
    ] as const;
    expect(frames.reduce(reduce, newAnswer("1")).parts).toEqual([
      { type: "reasoning", text: "hm" },
      { type: "text", text: "ab" },
      { type: "tool-call", index: 0, id: "c", name: "f", arguments: "{}" },
      { type: "tool-call", index: 1, id: "d", name: "g", arguments: "" },
    ]);
  });
});

describe("Chat", () => {
  it("asks, shows and finishes", async () => {
    const server = new FakeServer(["Hel", "lo"]);
    const finished: AssistantMessage[] = [];
    const chat = chatWith(server, { onFinish: (message) => finished.push(message) });
    const statuses = new Set<string>();
    chat.subscribe(() => statuses.add(chat.getSnapshot().status));
    await chat.send("Why?");
    expect([...statuses]).toEqual(["connecting", "streaming", "idle"]);
    expect(answer(chat)).toMatchObject({ status: "done", model: "m", usage: { costUsd: "0.1" } });
    expect(textOf(answer(chat))).toBe("Hello");
    expect(finished).toEqual([answer(chat)]);
    expect(JSON.parse(server.calls[0]?.body ?? "")).toEqual({
      model: "m",
      messages: [{ role: "user", content: "Why?" }],
      on_disconnect: { grace_seconds: 15 },
    });
    await chat.send("And?");
    expect(JSON.parse(server.calls[1]?.body ?? "").messages).toHaveLength(3);
  });

  it("stops at the provider and keeps what the answer has used", async () => {
    const server = new FakeServer(["Hel"], false);
    const chat = chatWith(server);
    const asking = chat.send("Why?");
    await until(() => textOf(answer(chat)) === "Hel");
    await chat.stop();
    await asking;
    expect(server.cancelled).toBe(1);
    expect(answer(chat)).toMatchObject({ status: "stopped", finishReason: "cancelled", usage: {} });
    expect(chat.getSnapshot().status).toBe("idle");
  });

  it("stops before the first word, when it does not know the stream yet", async () => {
    const server = new FakeServer([], false);
    const silent: typeof fetch = async (input, init) => {
      if (!String(input).endsWith("/v1/chat/stream")) return server.fetch(input, init);
      server.calls.push({ method: "POST", path: String(input), headers: {}, body: String(init?.body) });
      return new Promise((_, reject) =>
        init?.signal?.addEventListener("abort", () => reject(new DOMException("", "AbortError"))),
      );
    };
    const chat = chatWith(server, { fetch: silent });
    const asking = chat.send("Why?");
    await until(() => server.calls.length === 1);
    vi.useFakeTimers();
    await chat.stop();
    expect(server.cancelled).toBe(1);
    expect(server.calls[1]).toMatchObject({ path: "/v1/streams", body: server.calls[0]?.body });
    await vi.advanceTimersByTimeAsync(5000);
    vi.useRealTimers();
    await asking;
    expect(answer(chat).status).toBe("stopped");
  });

  it("fails with an error that says why, and asks again", async () => {
    const server = new FakeServer(["Hello"]);
    server.cuts = [{ status: 502, body: '{"error":{"code":"upstream_refused","message":"no"}}' }];
    const errors: string[] = [];
    const chat = chatWith(server, { onError: (error) => errors.push(error.code) });
    await chat.send("Why?");
    expect(chat.getSnapshot()).toMatchObject({ status: "failed", error: { code: "upstream_refused" } });
    expect(errors).toEqual(["upstream_refused"]);
    await chat.regenerate();
    expect(chat.getSnapshot().messages).toHaveLength(2);
    expect(textOf(answer(chat))).toBe("Hello");
    expect(chat.getSnapshot().error).toBeUndefined();
  });

  it("edits: what came after a question is forgotten", async () => {
    const server = new FakeServer(["Hello"]);
    const chat = chatWith(server);
    await chat.send("One?");
    await chat.send("Two?");
    chat.setMessages(chat.getSnapshot().messages.slice(0, 0));
    await chat.send("Three?");
    expect(chat.getSnapshot().messages.map(textOf)).toEqual(["Three?", "Hello"]);
  });

  it("is resumed by the page that comes after a reload, under the same stream", async () => {
    const stored = new Map<string, string>();
    vi.stubGlobal("sessionStorage", {
      getItem: (name: string) => stored.get(name) ?? null,
      setItem: (name: string, value: string) => stored.set(name, value),
    });
    const server = new FakeServer(["Hel"], false);
    const before = chatWith(server, { storageKey: "chat" });
    const leave = before.attach();
    void before.send("Why?");
    await until(() => textOf(answer(before)) === "Hel");
    leave();
    const after = chatWith(server, { storageKey: "chat" });
    const leaveAgain = after.attach();
    await until(() => textOf(answer(after)) === "Hel");
    expect(after.getSnapshot().status).toBe("streaming");
    server.say("lo");
    server.end("stop");
    await until(() => after.getSnapshot().status === "idle");
    expect(textOf(answer(after))).toBe("Hello");
    expect(server.generations.size).toBe(1);
    expect(server.cancelled).toBe(0);
    leaveAgain();
    vi.unstubAllGlobals();
  });

  it("survives being attached, detached and attached again, as StrictMode does", async () => {
    const server = new FakeServer(["Hel"], false);
    const chat = chatWith(server);
    chat.attach()();
    const leave = chat.attach();
    void chat.send("Why?");
    await until(() => textOf(answer(chat)) === "Hel");
    leave();
    chat.attach();
    server.say("lo");
    server.end("stop");
    await until(() => answer(chat).status === "done");
    expect(textOf(answer(chat))).toBe("Hello");
    expect(server.generations.size).toBe(1);
  });

  it("asks once, though it was detached before the first frame", async () => {
    const server = new FakeServer(["Hel", "lo"]);
    let hold = true;
    const keys: (string | null)[] = [];
    const slow: typeof fetch = async (input, init) => {
      keys.push(new Headers(init?.headers).get("Idempotency-Key"));
      if (!hold) return server.fetch(input, init);
      hold = false;
      return new Promise((_, reject) =>
        init?.signal?.addEventListener("abort", () => reject(new DOMException("", "AbortError"))),
      );
    };
    const chat = chatWith(server, { fetch: slow });
    const leave = chat.attach();
    void chat.send("Why?");
    await until(() => keys.length === 1);
    leave();
    chat.attach();
    await until(() => answer(chat).status === "done");
    expect(chat.getSnapshot().messages.map(textOf)).toEqual(["Why?", "Hello"]);
    expect(new Set(keys).size).toBe(1);
    expect(answer(chat).request).toBeUndefined();
  });

  it("keeps what it shows when it cannot be resumed", async () => {
    const server = new FakeServer(["Hel"], false);
    const chat = chatWith(server);
    const leave = chat.attach();
    void chat.send("Why?");
    await until(() => textOf(answer(chat)) === "Hel");
    leave();
    server.cuts = [{ status: 410, body: '{"error":{"code":"stream_gone","message":"gone"}}' }];
    chat.attach();
    await until(() => chat.getSnapshot().status === "failed");
    expect(textOf(answer(chat))).toBe("Hel");
    expect(answer(chat).error?.code).toBe("stream_gone");
  });

  it("reads on, instead of asking twice, where the server could only not be reached", async () => {
    const server = new FakeServer(["Hel", "lo"]);
    const chat = chatWith(server, {
      fetch: async (input, init) => {
        const response = await server.fetch(input, init);
        if (server.calls.length === 1) await response.body?.cancel();
        throw new TypeError("fetch failed");
      },
    });
    vi.useFakeTimers();
    const asking = chat.send("Why?");
    await vi.advanceTimersByTimeAsync(120_000);
    await asking;
    vi.useRealTimers();
    expect(chat.getSnapshot()).toMatchObject({ status: "failed", error: { code: "unreachable" } });
    chat.options = { ...chat.options, fetch: server.fetch };
    await chat.regenerate();
    expect(textOf(answer(chat))).toBe("Hello");
    expect(server.generations.size).toBe(1);
  });

  it("stops with a token that has just run out", async () => {
    const server = new FakeServer(["Hel"], false);
    let refused = 0;
    const chat = chatWith(server, {
      getToken: ({ refresh }) => (refresh ? "new" : "old"),
      fetch: async (input, init) => {
        const old = new Headers(init?.headers).get("Authorization") === "Bearer old";
        if (!String(input).endsWith("/cancel") || !old) return server.fetch(input, init);
        refused += 1;
        return new Response("{}", { status: 401 });
      },
    });
    const asking = chat.send("Why?");
    await until(() => textOf(answer(chat)) === "Hel");
    await chat.stop();
    await asking;
    expect([refused, server.cancelled, answer(chat).status]).toEqual([1, 1, "stopped"]);
  });

  it("uses a token until it is refused, and asks again where there was none", async () => {
    const server = new FakeServer(["Hello"]);
    let minted = 0;
    let down = true;
    const getToken = keepToken(async () => {
      if (down) throw new Error("no token");
      return `token ${++minted}`;
    });
    const used: (string | null)[] = [];
    const chat = chatWith(server, {
      getToken,
      fetch: async (input, init) => {
        const token = new Headers(init?.headers).get("Authorization");
        used.push(token);
        return used.length === 3 ? new Response("{}", { status: 401 }) : server.fetch(input, init);
      },
    });
    const asking = chat.send("One?");
    await until(() => chat.getSnapshot().status === "reconnecting");
    down = false;
    await asking;
    await chat.send("Two?");
    await chat.send("Three?");
    expect(used.map((token) => token?.slice(-1))).toEqual(["1", "1", "1", "2"]);
  });

  it("can be stopped while its token does not come", async () => {
    const server = new FakeServer(["Hel"]);
    const chat = chatWith(server, { getToken: () => new Promise(() => undefined) });
    vi.useFakeTimers();
    const asking = chat.send("Why?");
    void chat.stop();
    await vi.advanceTimersByTimeAsync(4000);
    await asking;
    vi.useRealTimers();
    expect(chat.getSnapshot().status).toBe("idle");
    expect(answer(chat).status).toBe("stopped");
  });

  it("goes on writing an answer that setMessages keeps, wherever it stands", async () => {
    const server = new FakeServer(["Hel"], false);
    const chat = chatWith(server);
    const asking = chat.send("Why?");
    await until(() => textOf(answer(chat)) === "Hel");
    const stale = chat.getSnapshot().messages.map((message) => ({ ...message }));
    const note = { role: "system", id: "note", parts: [{ type: "text", text: "note" }] } as const;
    chat.setMessages([...stale, note]);
    server.say("lo");
    server.end("stop");
    await asking;
    expect(chat.getSnapshot().messages.map(textOf)).toEqual(["Why?", "Hello", "note"]);
  });
});
