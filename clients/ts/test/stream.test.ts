import { getEventListeners } from "node:events";
import { readFileSync } from "node:fs";

import { describe, expect, it } from "vitest";

import { StreamError } from "../src/errors";
import { follows, parseFrame } from "../src/frames";
import type { Positioned, StreamOptions } from "../src/stream";
import { call, openStream } from "../src/stream";
import type { Cut } from "./server";
import { FakeServer } from "./server";

/** What readers of lines cut at, but for the line feed. */
const LINE_ENDS = "\v\f\r\x1c\x1d\x1e\x85\u2028\u2029";

const WORDS = Array.from({ length: 30 }, (_, i) => `wörd${i} 🌊 `);

async function read(server: FakeServer, options: StreamOptions = {}): Promise<Positioned[]> {
  const frames: Positioned[] = [];
  const request = options.streamId === undefined ? { messages: [] } : undefined;
  for await (const frame of openStream({ request, fetch: server.fetch, ...options })) frames.push(frame);
  return frames;
}

function text(frames: Positioned[]): string {
  return frames.map((frame) => (frame.kind === "text" ? frame.text : "")).join("");
}

describe("frames", () => {
  const cases = JSON.parse(
    readFileSync(new URL("../../../spec/fixtures/native.json", import.meta.url), "utf-8"),
  ) as {
    seq: number;
    event: Record<string, unknown> & { type: string; content?: Record<string, unknown> & { type: string } };
    frame: string;
  }[];
  // A part by what it is: "part-start tool-call".
  const named = cases.map((one) => {
    const { type, content } = one.event;
    return [content === undefined ? type : `${type} ${content.type}`, one] as const;
  });

  it.each(named)("reads %s of the specification", (name, one) => {
    const data =
      one.frame
        .split("\n")
        .find((line) => line.startsWith("data: "))
        ?.slice(6) ?? "";
    const frame = parseFrame(data);
    const kinds: Record<string, string> = {
      "stream-start": "start",
      "text-delta": one.event["text"] === "" ? "boundary" : "text",
      "reasoning-delta": "reasoning",
      "refusal-delta": "refusal",
      "part-start tool-call": "tool-call",
      "tool-call-delta": "tool-call",
      "part file": "file",
      "stream-end": "end",
      "stream-failed": "error",
    };
    const said = one.event.content ?? one.event;
    expect(frame?.kind).toBe(kinds[name] ?? "boundary");
    if (frame?.kind === "text") expect(frame.text).toBe(one.event["text"]);
    const before = one.event["apart"] === true ? "\n\n" : "";
    if (frame?.kind === "reasoning") expect(frame.text).toBe(`${before}${one.event["text"]}`);
    if (frame?.kind === "refusal") expect(frame.text).toBe(one.event["text"]);
    if (frame?.kind === "tool-call") expect(frame.call.arguments).toBe(said["arguments"]);
    if (frame?.kind === "tool-call") expect(frame.call.extraContent).toEqual(said["extra_content"]);
    for (const end of LINE_ENDS) expect(one.frame).not.toContain(end);
    if (frame?.kind === "error") expect(frame.error.code).toBe(one.event["code"]);
    if (frame?.kind === "end") expect(frame.usage?.source).toBeTruthy();
    if (frame?.kind === "file") expect(frame.file.url).toBe(said["url"]);
  });

  it("refuses what is none", () => {
    for (const data of ["", "x", "[]", "1", "null", "{}", '{"a":1}', "[DONE]"]) {
      expect(parseFrame(data), data).toBeUndefined();
    }
  });

  it("knows what follows a position", () => {
    expect(follows(undefined, "1-1")).toBe("next");
    expect(follows("1-4", "1-5")).toBe("next");
    expect(follows("1-4", "1-4")).toBe("seen");
    expect(follows("1-4", "1-6")).toBe("gap");
    expect(follows("1-4", "2-1")).toBe("next");
    expect(follows("1-4", "2-2")).toBe("gap");
    expect(follows("2-1", "1-9")).toBe("seen");
    expect(follows("1-4", "abc")).toBe("nonsense");
  });
});

describe("openStream", () => {
  it("reads an answer from its start to its end", async () => {
    const server = new FakeServer(WORDS);
    const frames = await read(server);
    expect(text(frames)).toBe(WORDS.join(""));
    expect(frames[0]).toMatchObject({ kind: "start", streamId: "str_1", position: "1-1" });
    expect(frames.at(-1)).toMatchObject({ kind: "end", finishReason: "stop" });
    expect(server.calls).toHaveLength(1);
  });

  it("is whole wherever the connection is cut, however often", async () => {
    const size = new FakeServer(WORDS).frames.join("\n\n").length + WORDS.length * 3;
    for (let after = 0; after < size; after += 7) {
      const server = new FakeServer(WORDS);
      const again = (after * 31) % 500;
      server.cuts = [{ after, breaks: after % 2 === 0 }, { after: again }, { refuses: true }];
      const frames = await read(server);
      expect(text(frames), `cut after ${after} and ${again} bytes`).toBe(WORDS.join(""));
      expect(new Set(frames.map((frame) => frame.position)).size).toBe(frames.length);
      expect(server.generations.size).toBe(1);
    }
  }, 60_000);

  it("starts once: a start whose answer was lost is repeated with the same key", async () => {
    const server = new FakeServer(WORDS);
    server.cuts = [{ refuses: true }, { after: 0, breaks: true }, { status: 503 }];
    expect(text(await read(server))).toBe(WORDS.join(""));
    expect(server.generations.size).toBe(1);
    expect(new Set(server.calls.map((one) => one.headers["idempotency-key"])).size).toBeLessThanOrEqual(2);
  });

  it("follows a stream after a position", async () => {
    const server = new FakeServer(WORDS);
    const frames = await read(server, { streamId: "str_1", after: "1-30" });
    expect(frames[0]?.position).toBe("1-31");
    expect(server.calls[0]).toMatchObject({ method: "GET", headers: { "last-event-id": "1-30" } });
  });

  it("asks again where something is left out, and ignores what it has seen", async () => {
    const server = new FakeServer(WORDS);
    const whole = [...server.frames];
    server.frames = [...whole.slice(0, 5), ...whole.slice(3, 5), ...whole.slice(9)];
    const reading = read(server, { attempts: 3 });
    server.frames = whole;
    const frames = await reading;
    expect(text(frames)).toBe(WORDS.join(""));
  });

  it("waits at least as long as the server asks", async () => {
    const server = new FakeServer(WORDS);
    server.cuts = [{ status: 503, headers: { "Retry-After": "1" }, body: error("draining") }];
    const states: string[] = [];
    const began = Date.now();
    await read(server, { onState: (state) => states.push(state) });
    expect(Date.now() - began).toBeGreaterThanOrEqual(990);
    expect(states).toEqual(["connecting", "reconnecting", "streaming"]);
  });

  it.each([
    [400, "bad_position"],
    [402, "budget_exceeded"],
    [404, "not_found"],
    [410, "stream_gone"],
    [422, "invalid_request"],
    [502, "upstream_refused"],
  ])("gives up at once on %i %s", async (status, code) => {
    const server = new FakeServer(WORDS);
    server.cuts = [{ status, body: error(code) }];
    await expect(read(server)).rejects.toMatchObject({ name: "StreamError", code, details: { status } });
    expect(server.calls).toHaveLength(1);
  });

  it("gives up after its attempts", async () => {
    const server = new FakeServer(WORDS);
    server.cuts = Array<Cut>(9).fill({ refuses: true });
    const cause = new TypeError("fetch failed");
    await expect(read(server, { attempts: 3 })).rejects.toMatchObject({ code: "unreachable", cause });
    expect(server.calls).toHaveLength(3);
  });

  it("refreshes a credential once", async () => {
    const server = new FakeServer(WORDS);
    server.cuts = [{ status: 401, body: error("unauthorized") }];
    const asked: boolean[] = [];
    const getToken = ({ refresh }: { refresh: boolean }): string => {
      asked.push(refresh);
      return refresh ? "new" : "old";
    };
    await read(server, { getToken });
    expect(asked).toEqual([false, true]);
    expect(server.calls[1]?.headers["authorization"]).toBe("Bearer new");
    server.cuts = Array<Cut>(2).fill({ status: 401, body: error("unauthorized") });
    await expect(read(server, { getToken })).rejects.toMatchObject({ code: "unauthorized" });
  });

  it("leaves nothing at a signal that outlives a call", async () => {
    const { fetch } = new FakeServer(WORDS);
    const { signal } = new AbortController();
    await call({ fetch, getToken: () => "token" }, "/v1/streams", { signal });
    const failing = call({ fetch, getToken: () => Promise.reject(new Error("no")) }, "/v1/streams", {
      signal,
    });
    await expect(failing).rejects.toMatchObject({ code: "token" });
    expect(getEventListeners(signal, "abort")).toEqual([]);
  });

  it("refuses what is not Millstream's", async () => {
    const server = new FakeServer(WORDS);
    server.frames[2] = "id: x\ndata: <html>";
    await expect(read(server)).rejects.toMatchObject({ code: "bad_response" });
    server.cuts = [{ status: 404, body: "<html>nothing</html>" }];
    await expect(read(server)).rejects.toBeInstanceOf(StreamError);
  });

  it.each(["text/html", "application/json", ""])("refuses at once a page that is %s", async (type) => {
    const server = new FakeServer(WORDS);
    server.cuts = Array<Cut>(9).fill({ status: 200, headers: { "Content-Type": type }, body: "{}" });
    await expect(read(server)).rejects.toMatchObject({ code: "bad_response", details: { status: 200 } });
    expect(server.calls).toHaveLength(1);
  });

  it.each([
    ["an address without a host", { request: {} }],
    ["half an address", { request: {}, url: "127.0.0.1:8000" }],
    ["a token of other letters", { request: {}, url: "http://127.0.0.1", getToken: () => "“token”" }],
    ["a request that is no JSON", { request: { seed: 1n }, url: "http://127.0.0.1" }],
  ])("refuses at once %s", async (_, options: StreamOptions) => {
    const failing = openStream(options).next();
    await expect(failing).rejects.toMatchObject({ code: "invalid_request", cause: expect.any(TypeError) });
  });

  it("says what a proxy's refusal of a long request means", async () => {
    const server = new FakeServer(WORDS);
    server.cuts = [{ status: 413, body: "<html><h1>413 Request Entity Too Large</h1></html>" }];
    await expect(read(server)).rejects.toMatchObject({
      code: "too_large",
      retryable: false,
      message: "A proxy before Millstream takes no request of this length.",
    });
    expect(server.calls).toHaveLength(1);
  });

  it("ends when it is aborted, in the middle or while it waits", async () => {
    const server = new FakeServer(["a"], false);
    const controller = new AbortController();
    const frames: Positioned[] = [];
    for await (const frame of openStream({ request: {}, fetch: server.fetch, signal: controller.signal })) {
      frames.push(frame);
      if (frame.kind === "text") controller.abort();
    }
    expect(text(frames)).toBe("a");
    const waiting = new AbortController();
    server.cuts = [{ status: 503, headers: { "Retry-After": "60" } }];
    const reading = read(server, { signal: waiting.signal });
    setTimeout(() => waiting.abort(), 20);
    expect(await reading).toEqual([]);
  });
});

function error(code: string): string {
  return JSON.stringify({ error: { code, message: "no", request_id: "req_1" } });
}
