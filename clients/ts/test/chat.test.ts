import { describe, expect, it, onTestFinished, vi } from "vitest";

import type { ChatOptions } from "../src/chat";
import { Chat } from "../src/chat";
import { StreamError } from "../src/errors";
import type { ToolCallPiece } from "../src/frames";
import type { AssistantMessage, Message, Part } from "../src/messages";
import { newAnswer, openCalls, reduce, textOf, toRequest } from "../src/messages";
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

/** The messages of each request. */
function sent(server: FakeServer): object[][] {
  return server.calls.flatMap(({ body }) => (body === undefined ? [] : [JSON.parse(body).messages]));
}

/** A `sessionStorage`, and what is in it. */
function storage(): Map<string, string> {
  const stored = new Map<string, string>();
  vi.stubGlobal("sessionStorage", {
    getItem: (name: string) => stored.get(name) ?? null,
    setItem: (name: string, value: string) => stored.set(name, value),
    removeItem: (name: string) => stored.delete(name),
  });
  onTestFinished(() => void vi.unstubAllGlobals());
  return stored;
}

/** The storage is full. */
function takeNothingMore(): void {
  vi.spyOn(sessionStorage, "setItem").mockImplementation(() => {
    throw new Error("full");
  });
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

  it("edits: what came after a question is forgotten, once the new one is taken", async () => {
    const server = new FakeServer(["Hello"]);
    const chat = chatWith(server, { maxRequestBytes: 1000 });
    await chat.send("One?");
    await chat.send("Two?");
    await chat.send("Three?");
    const before = chat.getSnapshot();
    const second = before.messages[2]?.id;
    await expect(chat.send("x".repeat(1000), second)).rejects.toMatchObject({ code: "too_large" });
    expect(chat.getSnapshot()).toBe(before);
    await chat.send("Four?", second);
    expect(chat.getSnapshot().messages.map(textOf)).toEqual(["One?", "Hello", "Four?", "Hello"]);
    expect(sent(server).at(-1)).toHaveLength(3);
  });

  it("forgets nothing where the question in its place is refused because another one waits", async () => {
    const chat = chatWith(new FakeServer(["Hel"], false));
    void chat.send("One?");
    await until(() => textOf(answer(chat)) === "Hel");
    void chat.send("Two?");
    const note: Message = { role: "user", id: "note", parts: [{ type: "text", text: "A note." }] };
    chat.setMessages([...chat.getSnapshot().messages, note]);
    const before = chat.getSnapshot();
    await expect(chat.send("Three?", "note")).rejects.toMatchObject({ code: "busy" });
    expect(chat.getSnapshot()).toBe(before);
  });

  it("edits while the answer is on its way: that one is left", async () => {
    const server = new FakeServer(["Hel"], false);
    const chat = chatWith(server);
    void chat.send("One?");
    await until(() => textOf(answer(chat)) === "Hel");
    void chat.send("Two?");
    const second = chat.send("Three?", chat.getSnapshot().messages[0]?.id);
    await until(() => textOf(answer(chat)) === "Hel");
    server.end("stop");
    expect((await second)?.status).toBe("done");
    expect(chat.getSnapshot().messages.map(textOf)).toEqual(["Three?", "Hel"]);
  });

  it("is resumed by the page that comes after a reload, under the same stream", async () => {
    storage();
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

  it("begins with its messages where nothing is stored, and only there", async () => {
    storage();
    const messages: Message[] = [{ role: "system", id: "s", parts: [{ type: "text", text: "Be brief." }] }];
    const server = new FakeServer(["Hel"], false);
    const before = chatWith(server, { storageKey: "chat", messages });
    const leave = before.attach();
    void before.send("Why?");
    await until(() => textOf(answer(before)) === "Hel");
    leave();
    const after = chatWith(server, { storageKey: "chat", messages });
    expect(after.getSnapshot().messages).toEqual(messages);
    onTestFinished(after.attach());
    await until(() => textOf(answer(after)) === "Hel");
    server.end("stop");
    await until(() => after.getSnapshot().status === "idle");
    expect(after.getSnapshot().messages.map(textOf)).toEqual(["Be brief.", "Why?", "Hel"]);
    expect(server.generations.size).toBe(1);
  });

  it("asks the question that waited before a reload when the answer has ended", async () => {
    storage();
    const server = new FakeServer(["Hel"], false);
    const before = chatWith(server, { storageKey: "chat" });
    const leave = before.attach();
    void before.send("One?");
    await until(() => before.getSnapshot().status === "streaming");
    void before.send("Two?");
    leave();
    const after = chatWith(server, { storageKey: "chat" });
    onTestFinished(after.attach());
    expect(after.getSnapshot().queued).toBe("Two?");
    server.end("stop");
    await until(() => after.getSnapshot().messages.length === 4 && answer(after).status === "done");
    expect(after.getSnapshot().messages.map(textOf)).toEqual(["One?", "Hel", "Two?", "Hel"]);
    expect(after.getSnapshot().queued).toBeUndefined();
    const third = chatWith(server, { storageKey: "chat" });
    onTestFinished(third.attach());
    expect(third.getSnapshot().queued).toBeUndefined();
    expect(server.generations.size).toBe(2);
  });

  it("goes on from what another one of its name has made of the conversation in the same moment", async () => {
    storage();
    vi.spyOn(Date, "now").mockReturnValue(1000);
    onTestFinished(() => void vi.restoreAllMocks());
    const server = new FakeServer(["Hello"]);
    const [a, b] = [chatWith(server, { storageKey: "chat" }), chatWith(server, { storageKey: "chat" })];
    const leave = a.attach();
    await a.send("One?");
    leave();
    const leaveAgain = b.attach();
    await b.send("Two?");
    leaveAgain();
    onTestFinished(a.attach());
    await a.send("Three?");
    const all = ["One?", "Hello", "Two?", "Hello", "Three?", "Hello"];
    expect(a.getSnapshot().messages.map(textOf)).toEqual(all);
  });

  it("keeps what it has where what is stored is older", async () => {
    storage();
    const server = new FakeServer(["Hello"]);
    const before = chatWith(server, { storageKey: "chat" });
    await before.send("One?");
    const after = chatWith(server, { storageKey: "chat" });
    const leave = after.attach();
    takeNothingMore();
    await after.send("Two?");
    leave();
    onTestFinished(after.attach());
    expect(after.getSnapshot().messages.map(textOf)).toEqual(["One?", "Hello", "Two?", "Hello"]);
  });

  it("goes on from what an earlier version has stored", async () => {
    const stored = storage();
    const server = new FakeServer(["Hello"]);
    const before = chatWith(server);
    await before.send("One?");
    stored.set("chat", JSON.stringify(before.getSnapshot().messages));
    const after = chatWith(server, { storageKey: "chat" });
    const leave = after.attach();
    takeNothingMore();
    await after.send("Two?");
    leave();
    onTestFinished(after.attach());
    expect(after.getSnapshot().messages.map(textOf)).toEqual(["One?", "Hello", "Two?", "Hello"]);
  });

  it("begins anew where what is stored is no conversation", () => {
    const stored = storage();
    for (const text of ["null", "1", '"messages"', "{}", '{"messages":{}}', "no JSON"]) {
      stored.set("chat", text);
      const chat = chatWith(new FakeServer(["Hello"]), { storageKey: "chat" });
      onTestFinished(chat.attach());
      expect(chat.getSnapshot().messages).toEqual([]);
    }
  });

  it("asks once the question that waits in a tab and its copy", async () => {
    storage();
    const server = new FakeServer(["Hel"], false);
    const before = chatWith(server, { storageKey: "chat" });
    const leave = before.attach();
    void before.send("One?");
    await until(() => before.getSnapshot().status === "streaming");
    void before.send("Two?");
    leave();
    const tabs = [chatWith(server, { storageKey: "chat" }), chatWith(server, { storageKey: "chat" })];
    for (const tab of tabs) onTestFinished(tab.attach());
    server.end("stop");
    for (const tab of tabs)
      await until(() => tab.getSnapshot().messages.length === 4 && answer(tab).status === "done");
    expect(server.generations.size).toBe(2);
  });

  it("asks both questions where a tab and its copy have one each", async () => {
    storage();
    const server = new FakeServer(["Hel"], false);
    const before = chatWith(server, { storageKey: "chat" });
    const leave = before.attach();
    void before.send("One?");
    await until(() => before.getSnapshot().status === "streaming");
    leave();
    const tabs = [chatWith(server, { storageKey: "chat" }), chatWith(server, { storageKey: "chat" })];
    for (const tab of tabs) onTestFinished(tab.attach());
    const asking = tabs.map((tab, number) => tab.send(`Question ${number}`));
    server.end("stop");
    await Promise.all(asking);
    expect(server.generations.size).toBe(3);
  });

  it("keeps the error of an answer over a reload, with all that it says", async () => {
    storage();
    const server = new FakeServer(["Hello"]);
    const error = { code: "invalid_request", message: "no", request_id: "r1" };
    server.cuts = [{ status: 400, body: JSON.stringify({ error }) }];
    const before = chatWith(server, { storageKey: "chat" });
    await before.send("Why?");
    const after = chatWith(server, { storageKey: "chat" });
    onTestFinished(after.attach());
    expect(answer(after).error).toBeInstanceOf(StreamError);
    expect(answer(after).error).toEqual(answer(before).error);
    expect(answer(after).error?.details.requestId).toBe("r1");
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
      if (down) throw new TypeError("fetch failed"); // as `fetch` does
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

describe("what a chat does not lose", () => {
  it("asks a question that came while it was busy when the answer has ended, and refuses the next one", async () => {
    const server = new FakeServer(["Hel"], false);
    const chat = chatWith(server);
    const first = chat.send("One?");
    await until(() => chat.getSnapshot().status === "streaming");
    const second = chat.send("Two?");
    expect(chat.getSnapshot().queued).toBe("Two?");
    await expect(chat.send("Three?")).rejects.toMatchObject({ code: "busy" });
    server.end("stop");
    expect((await first)?.status).toBe("done");
    expect((await second)?.status).toBe("done");
    expect(chat.getSnapshot().queued).toBeUndefined();
    expect(chat.getSnapshot().messages.map(textOf)).toEqual(["One?", "Hel", "Two?", "Hel"]);
  });

  it("asks a question that came while the answer before it was being stopped", async () => {
    const server = new FakeServer(["Hel"], false);
    const chat = chatWith(server);
    void chat.send("One?");
    await until(() => textOf(answer(chat)) === "Hel");
    void chat.stop();
    await chat.send("Two?");
    expect(chat.getSnapshot().messages.map(textOf)).toEqual(["One?", "Hel", "Two?", "Hel"]);
  });

  it("drops the question that waits together with its conversation", async () => {
    const server = new FakeServer(["Hel"], false);
    const chat = chatWith(server);
    void chat.send("One?");
    await until(() => chat.getSnapshot().status === "streaming");
    const second = chat.send("Two?");
    chat.setMessages([]);
    expect(await second).toBeUndefined();
    expect(chat.getSnapshot()).toMatchObject({ messages: [], queued: undefined, status: "idle" });
  });

  it("asks one question at a time, also where its end makes the application ask another", async () => {
    const server = new FakeServer(["Hel"], false);
    let ends = 0;
    const chat = chatWith(server, { onFinish: () => ++ends === 1 && void chat.send("Three?") });
    void chat.send("One?");
    await until(() => chat.getSnapshot().status === "streaming");
    const second = chat.send("Two?");
    server.end("stop");
    expect((await second)?.status).toBe("done");
    await until(() => ends === 3);
    expect(sent(server).map((messages) => messages.length)).toEqual([1, 3, 5]);
    expect(chat.getSnapshot().messages.map(textOf)).toEqual(["One?", "Hel", "Two?", "Hel", "Three?", "Hel"]);
  });

  it("keeps the question that waits where the end of an answer changes its conversation", async () => {
    const server = new FakeServer(["Hel"], false);
    const chat = chatWith(server, {
      onFinish: () => chat.setMessages(chat.getSnapshot().messages.slice(-1)),
    });
    void chat.send("One?");
    await until(() => chat.getSnapshot().status === "streaming");
    const second = chat.send("Two?");
    server.end("stop");
    expect((await second)?.status).toBe("done");
    expect(sent(server).at(-1)).toEqual([
      { role: "assistant", content: "Hel" },
      { role: "user", content: "Two?" },
    ]);
  });

  it("lets go of who waits for an answer when it is detached, and asks when it is attached again", async () => {
    const server = new FakeServer(["Hel"], false);
    const chat = chatWith(server);
    const leave = chat.attach();
    void chat.send("One?");
    await until(() => chat.getSnapshot().status === "streaming");
    const second = chat.send("Two?");
    leave();
    expect(await second).toBeUndefined();
    expect(chat.getSnapshot().queued).toBe("Two?");
    server.end("stop");
    onTestFinished(chat.attach());
    await until(() => chat.getSnapshot().messages.length === 4 && answer(chat).status === "done");
    expect(chat.getSnapshot().messages.map(textOf)).toEqual(["One?", "Hel", "Two?", "Hel"]);
  });

  it("does not store an empty conversation over another's of the same name", async () => {
    const stored = storage();
    const listeners: ((event: { persisted: boolean }) => void)[] = [];
    vi.stubGlobal("window", {
      addEventListener: (type: string, listen: (event: { persisted: boolean }) => void) =>
        type === "pagehide" && listeners.push(listen),
      removeEventListener: () => undefined,
    });
    vi.stubGlobal("document", { ...globalThis.document, addEventListener() {}, removeEventListener() {} });
    onTestFinished(() => void vi.unstubAllGlobals());
    const server = new FakeServer(["Hello"]);
    const [a, b] = [chatWith(server, { storageKey: "chat" }), chatWith(server, { storageKey: "chat" })];
    const leave = [a.attach(), b.attach()];
    await a.send("Why?");
    for (const listen of listeners) listen({ persisted: false });
    expect(JSON.parse(stored.get("chat") ?? "").messages).toHaveLength(2);
    for (const each of leave) each();
  });

  it("goes on where the application's own handlers throw", async () => {
    const reported: unknown[] = [];
    vi.stubGlobal("reportError", (error: unknown) => reported.push(error));
    onTestFinished(() => void vi.unstubAllGlobals());
    const server = new FakeServer(["Hello"]);
    const broken = (): never => {
      throw new Error("theirs");
    };
    const chat = chatWith(server, { onFinish: broken, onError: broken });
    expect((await chat.send("One?"))?.status).toBe("done");
    server.cuts = [{ status: 502, body: '{"error":{"code":"upstream_refused","message":"no"}}' }];
    expect((await chat.send("Two?"))?.status).toBe("failed");
    expect(reported).toHaveLength(2);
  });

  it("says at once why there is no token", async () => {
    const cause = new Error("login needed");
    const chat = chatWith(new FakeServer(["Hello"]), {
      getToken: () => {
        throw cause;
      },
    });
    const found = await chat.send("Why?");
    expect(found?.error).toMatchObject({ code: "token", message: "login needed", cause });
  });

  it("runs where there is a window and no page, as in React Native", async () => {
    vi.stubGlobal("window", globalThis);
    vi.stubGlobal("DOMException", undefined);
    onTestFinished(() => void vi.unstubAllGlobals());
    const chat = chatWith(new FakeServer(["Hello"]), { storageKey: "chat", getToken: async () => "t" });
    const leave = chat.attach();
    expect((await chat.send("Why?"))?.status).toBe("done");
    leave();
  });

  it("does not wait for a frame that a hidden page never draws", async () => {
    const page = { hidden: false };
    vi.stubGlobal("document", page);
    vi.stubGlobal("requestAnimationFrame", () => 1);
    vi.stubGlobal("cancelAnimationFrame", () => undefined);
    onTestFinished(() => void vi.unstubAllGlobals());
    const server = new FakeServer(["Hel"], false);
    const chat = new Chat({ fetch: server.fetch });
    void chat.send("Why?");
    await until(() => chat.getSnapshot().status === "streaming");
    page.hidden = true;
    server.say("lo");
    await until(() => textOf(answer(chat)) === "Hello");
    server.end("stop");
  });
});

describe("tool calls", () => {
  it("are answered, and the model goes on with their results", async () => {
    const server = new FakeServer([], false);
    server.call({ index: 0, id: "c1", name: "weather", arguments: '{"city":"Bern"}' });
    server.call({ index: 1, id: "c2", name: "time", arguments: "{}" });
    server.end("tool_calls");
    const chat = chatWith(server, { request: { model: "m", tools: [] } });
    await chat.send("Weather?");
    expect(openCalls(chat.getSnapshot().messages).map((call) => call.name)).toEqual(["weather", "time"]);
    expect(await chat.addToolResult("nobody's", "x")).toBeUndefined();
    expect(await chat.addToolResult("c1", "rain")).toBeUndefined();
    const next = await chat.addToolResult("c2", "noon");
    expect(next?.status).toBe("done");
    const calls = [
      { id: "c1", type: "function", function: { name: "weather", arguments: '{"city":"Bern"}' } },
      { id: "c2", type: "function", function: { name: "time", arguments: "{}" } },
    ];
    expect(JSON.parse(server.calls.at(-1)?.body ?? "").messages).toEqual([
      { role: "user", content: "Weather?" },
      { role: "assistant", content: null, tool_calls: calls },
      { role: "tool", tool_call_id: "c1", content: "rain" },
      { role: "tool", tool_call_id: "c2", content: "noon" },
    ]);
  });

  const takes = (milliseconds: number): Promise<void> =>
    new Promise((resolve) => setTimeout(resolve, milliseconds));

  it.each([
    ["before anything else happens", undefined],
    ["at once", async () => undefined],
    ["later", () => takes(50)],
  ])("are answered %s, and then comes the question that waits", async (_, work) => {
    const turns = [new FakeServer([], false), new FakeServer(["It rains."]), new FakeServer(["Good bye."])];
    const [calling] = turns;
    calling?.call({ index: 0, id: "c1", name: "weather", arguments: "{}" });
    const bodies: object[][] = [];
    const chat = new Chat({
      throttleMs: 0,
      fetch: async (input, init) => {
        bodies.push(JSON.parse(String(init?.body)).messages);
        return (turns.shift() ?? new FakeServer([])).fetch(input, init);
      },
      async onFinish() {
        for (const call of openCalls(chat.getSnapshot().messages)) {
          if (work !== undefined) await work();
          await chat.addToolResult(call.id, "rain");
        }
      },
    });
    void chat.send("Weather?");
    await until(() => chat.getSnapshot().status === "streaming");
    const second = chat.send("Thanks.");
    calling?.end("tool_calls");
    expect(await second).toMatchObject({ status: "done", parts: [{ text: "Good bye." }] });
    const call = { id: "c1", type: "function", function: { name: "weather", arguments: "{}" } };
    const conversation = [
      { role: "user", content: "Weather?" },
      { role: "assistant", content: null, tool_calls: [call] },
      { role: "tool", tool_call_id: "c1", content: "rain" },
      { role: "assistant", content: "It rains." },
      { role: "user", content: "Thanks." },
    ];
    expect(bodies).toEqual([1, 3, 5].map((length) => conversation.slice(0, length)));
    expect(chat.getSnapshot()).toMatchObject({ status: "idle", queued: undefined });
  });

  it("that nobody answers hold a question until the next one is sent", async () => {
    const server = new FakeServer([], false);
    server.call({ index: 0, id: "c1", name: "weather", arguments: "{}" });
    const chat = chatWith(server);
    const first = chat.send("Weather?");
    await until(() => chat.getSnapshot().status === "streaming");
    void chat.send("Never mind.");
    server.end("tool_calls");
    await first;
    expect(chat.getSnapshot()).toMatchObject({ status: "idle", queued: "Never mind." });
    void chat.send("Are you there?");
    await until(() => sent(server).length === 2);
    expect(sent(server).at(-1)).toEqual([
      { role: "user", content: "Weather?" },
      { role: "user", content: "Never mind." },
    ]);
    expect(chat.getSnapshot().queued).toBe("Are you there?");
  });

  it("with other results in a tab and its copy make the question that waits another one", async () => {
    storage();
    const server = new FakeServer([], false);
    server.call({ index: 0, id: "c1", name: "weather", arguments: "{}" });
    const before = chatWith(server, { storageKey: "chat" });
    const leave = before.attach();
    void before.send("Weather?");
    await until(() => before.getSnapshot().status === "streaming");
    void before.send("And then?");
    leave();
    const tabs = [chatWith(server, { storageKey: "chat" }), chatWith(server, { storageKey: "chat" })];
    for (const tab of tabs) onTestFinished(tab.attach());
    server.end("tool_calls");
    for (const tab of tabs) await until(() => openCalls(tab.getSnapshot().messages).length === 1);
    for (const tab of tabs) await until(() => tab.getSnapshot().status === "idle");
    server.frames = new FakeServer(["Hello"]).frames;
    for (const [number, tab] of tabs.entries()) await tab.addToolResult("c1", `${number}`);
    for (const tab of tabs)
      await until(() => tab.getSnapshot().messages.length === 6 && answer(tab).status === "done");
    expect(server.generations.size).toBe(5);
  });

  it("without results are left out of what is sent", async () => {
    const server = new FakeServer(["Let me see."], false);
    server.call({ index: 0, id: "c1", name: "weather", arguments: "{}" });
    server.end("tool_calls");
    const chat = chatWith(server);
    await chat.send("Weather?");
    await chat.send("Never mind.");
    expect(JSON.parse(server.calls.at(-1)?.body ?? "").messages).toEqual([
      { role: "user", content: "Weather?" },
      { role: "assistant", content: "Let me see." },
      { role: "user", content: "Never mind." },
    ]);
  });
});

describe("a call", () => {
  const asked: Message[] = [{ role: "user", id: "u", parts: [{ type: "text", text: "Weather?" }] }];
  const call: Part = { type: "tool-call", index: 0, id: "c1", name: "weather", arguments: '{"city":"Be' };
  const result: Message = { role: "tool", id: "r", callId: "c1", parts: [{ type: "text", text: "rain" }] };

  it.each(["length", "budget_exceeded", "content_filter"] as const)(
    "that %s has cut is none",
    (finishReason) => {
      const cut: Message = { ...newAnswer("a"), status: "done", finishReason, parts: [call] };
      expect(openCalls([...asked, cut])).toEqual([]);
      expect(toRequest([...asked, cut, result])).toEqual([{ role: "user", content: "Weather?" }]);
    },
  );

  it("goes back with what the model thought before it, and with what its provider wants back", () => {
    const thought: Part = { type: "reasoning", text: "Hm." };
    const pieces: ToolCallPiece[] = [
      { index: 0, id: "c1", name: "weather", arguments: "{}" },
      { index: 0, extraContent: { google: { thought_signature: "s" } } },
    ];
    const begun: AssistantMessage = { ...newAnswer("a"), status: "done", parts: [thought] };
    const whole = pieces.reduce((so, piece) => reduce(so, { kind: "tool-call", call: piece }), begun);
    expect(toRequest([...asked, whole, result]).at(1)).toEqual({
      role: "assistant",
      content: null,
      reasoning_content: "Hm.",
      tool_calls: [
        {
          id: "c1",
          type: "function",
          function: { name: "weather", arguments: "{}" },
          extra_content: { google: { thought_signature: "s" } },
        },
      ],
    });
  });
});

describe("what an answer says of how it came", () => {
  it("is whether it was stopped here or elsewhere", async () => {
    const server = new FakeServer(["Hel"], false);
    const chat = chatWith(server);
    const first = chat.send("One?");
    await until(() => textOf(answer(chat)) === "Hel");
    server.end("cancelled");
    expect(await first).toMatchObject({ status: "stopped" });
    expect((await first)?.stoppedHere).toBeUndefined();
    const other = new FakeServer(["Hel"], false);
    const stopped = chatWith(other);
    const second = stopped.send("Two?");
    await until(() => textOf(answer(stopped)) === "Hel");
    await stopped.stop();
    expect(await second).toMatchObject({ status: "stopped", stoppedHere: true });
  });

  it("is that it was held back, where it came late and all at once", async () => {
    const words = Array.from({ length: 200 }, (_, i) => `${i} `);
    const held = async (waits: number, server: FakeServer): Promise<boolean | undefined> => {
      let now = 1_000_000;
      vi.spyOn(Date, "now").mockImplementation(() => now);
      onTestFinished(() => void vi.restoreAllMocks());
      const late: typeof fetch = async (input, init) => {
        now += waits;
        return server.fetch(input, init);
      };
      return (await chatWith(server, { fetch: late }).send("Why?"))?.heldBack;
    };
    expect(await held(20_000, new FakeServer(words))).toBe(true);
    expect(await held(500, new FakeServer(words))).toBeUndefined();
    expect(await held(20_000, new FakeServer(["one word"]))).toBeUndefined();
  });

  it("is held back while it streams, where the server has said words that do not come", async () => {
    vi.useFakeTimers();
    onTestFinished(() => void vi.useRealTimers());
    const server = new FakeServer(["word"]);
    let said = 0;
    let release = (): void => undefined;
    const buffered = new Promise<void>((resolve) => (release = resolve));
    const proxy: typeof fetch = async (input, init) => {
      const path = String(input);
      if (path.endsWith("/v1/streams/str_1"))
        return Response.json({ status: "running", usage: { completion_tokens: said } });
      if (path.endsWith("/stream")) await buffered;
      return server.fetch(input, init);
    };
    const chat = chatWith(server, { fetch: proxy });
    const answered = chat.send("Why?");
    const heldBack = (): boolean | undefined => {
      const answer = chat.getSnapshot().messages.at(-1);
      return answer?.role === "assistant" ? answer.heldBack : undefined;
    };
    await vi.advanceTimersByTimeAsync(4000);
    expect(heldBack()).toBeUndefined();
    said = 3;
    await vi.advanceTimersByTimeAsync(6000);
    expect(heldBack()).toBe(true);
    release();
    expect(await answered).toMatchObject({ status: "done", heldBack: true });
    const asked = server.calls.length;
    await vi.advanceTimersByTimeAsync(60_000);
    expect(server.calls.length).toBe(asked);
  });

  it("is nothing where the server would not take the question", async () => {
    const server = new FakeServer(["Hello"]);
    const chat = chatWith(server, { maxRequestBytes: 1000 });
    await expect(chat.send("ä".repeat(600))).rejects.toMatchObject({ code: "too_large" });
    chat.options = { ...chat.options, request: { seed: 1n } };
    await expect(chat.send("Why?")).rejects.toMatchObject({ code: "invalid_request" });
    expect(chat.getSnapshot().messages).toEqual([]);
    expect(server.calls).toEqual([]);
  });
});
