import { describe, expect, it } from "vitest";

import { parseFrame, readFrames } from "./stream";
import type { Frame } from "./stream";

const USAGE =
  '"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,"cached_tokens":4,' +
  '"source":"provider_final","cost_usd":"0.000142"}';
const USAGE_READ = {
  promptTokens: 9,
  completionTokens: 2,
  cachedTokens: 4,
  reasoningTokens: 0,
  source: "provider_final",
  costUsd: "0.000142",
};

const START =
  'retry: 1000\nid: 1-0\ndata: {"delta":"","finish_reason":null,"stream_id":"st_1","model":"m"}\n\n';
const TEXT = 'id: 1-1\ndata: {"delta":"Grüße, 水車 🌊\\n","finish_reason":null}\n\n';
const END = `id: 1-2\ndata: {"delta":"","finish_reason":"stop",${USAGE}}\n\n`;
const DONE = "data: [DONE]\n\n";
const ERROR =
  'id: 1-2\ndata: {"error":{"code":"upstream_error","message":"it broke","retryable":true},' +
  `${USAGE}}\n\n`;

const START_READ: Frame = { kind: "start", streamId: "st_1", model: "m" };
const TEXT_READ: Frame = { kind: "text", text: "Grüße, 水車 🌊\n" };
const END_READ: Frame = { kind: "end", finishReason: "stop", usage: USAGE_READ };

function bodyOf(chunks: Uint8Array[], breaks = false): ReadableStream<Uint8Array> {
  const left = [...chunks];
  return new ReadableStream({
    pull(controller) {
      const chunk = left.shift();
      if (chunk !== undefined) controller.enqueue(chunk);
      else if (breaks) controller.error(new TypeError("network error"));
      else controller.close();
    },
  });
}

async function read(body: ReadableStream<Uint8Array>): Promise<Frame[]> {
  const frames: Frame[] = [];
  for await (const frame of readFrames(body)) frames.push(frame);
  return frames;
}

function bytes(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

function readText(text: string, breaks = false): Promise<Frame[]> {
  return read(bodyOf([bytes(text)], breaks));
}

describe("readFrames", () => {
  const whole = bytes(START + ": ping\n\n" + TEXT + END + DONE);
  const expected = [START_READ, TEXT_READ, END_READ];

  it("reads the same frames wherever the body is cut", async () => {
    for (let cut = 0; cut <= whole.length; cut++) {
      const frames = await read(bodyOf([whole.subarray(0, cut), whole.subarray(cut)]));
      expect(frames, `cut at byte ${cut}`).toEqual(expected);
    }
  });

  it("reads the same frames byte by byte", async () => {
    expect(await read(bodyOf(Array.from(whole, (byte) => Uint8Array.of(byte))))).toEqual(expected);
  });

  it("calls every body that ends too early interrupted, and nothing else", async () => {
    const beforeEnd = bytes(START + ": ping\n\n" + TEXT).length;
    const endOfEnd = beforeEnd + bytes(END).length;
    for (let length = 0; length <= whole.length; length++) {
      for (const breaks of [false, true]) {
        const frames = await read(bodyOf([whole.subarray(0, length)], breaks));
        const last = frames.at(-1)?.kind;
        expect(last, `${length} bytes`).toBe(length < endOfEnd ? "interrupted" : "end");
        expect(frames.filter(({ kind }) => kind === "interrupted" || kind === "end")).toHaveLength(1);
      }
    }
  });

  it("keeps what came before an error and ends there", async () => {
    expect(await readText(START + TEXT + ERROR + TEXT)).toEqual([
      START_READ,
      TEXT_READ,
      {
        kind: "error",
        failure: { code: "upstream_error", message: "it broke", retryable: true },
        usage: USAGE_READ,
      },
    ]);
  });

  it("does not take [DONE] without an end for an end", async () => {
    expect(await readText(START + TEXT + DONE)).toEqual([
      START_READ,
      TEXT_READ,
      { kind: "interrupted" },
    ]);
  });

  it("stops at data that is not a frame", async () => {
    expect(await readText(START + "data: {oops\n\n" + END + DONE)).toEqual([
      START_READ,
      { kind: "interrupted" },
    ]);
  });

  it("lets go of the body when its reader leaves", async () => {
    let cancelled = false;
    const body = new ReadableStream<Uint8Array>({
      pull: (controller) => controller.enqueue(bytes(TEXT)),
      cancel: () => {
        cancelled = true;
      },
    });
    for await (const frame of readFrames(body)) {
      expect(frame).toEqual(TEXT_READ);
      break;
    }
    expect(cancelled).toBe(true);
  });
});

describe("parseFrame", () => {
  it("reads reasoning, refusals and pieces of tool calls", () => {
    expect(parseFrame('{"delta":"","finish_reason":null,"reasoning":"hm"}')).toEqual([
      { kind: "reasoning", text: "hm" },
    ]);
    expect(parseFrame('{"delta":"","finish_reason":null,"refusal":"no"}')).toEqual([
      { kind: "refusal", text: "no" },
    ]);
    expect(parseFrame('{"delta":"","tool_call":{"index":1,"id":"c","name":"look"}}')).toEqual([
      { kind: "toolCall", piece: { index: 1, name: "look", arguments: "" } },
    ]);
    expect(parseFrame('{"delta":"","tool_call":{"index":1,"arguments":"{\\"a\\""}}')).toEqual([
      { kind: "toolCall", piece: { index: 1, name: "", arguments: '{"a"' } },
    ]);
  });

  it("takes text that comes with the end first", () => {
    expect(parseFrame(`{"delta":"bye","finish_reason":"length",${USAGE}}`)).toEqual([
      { kind: "text", text: "bye" },
      { kind: "end", finishReason: "length", usage: USAGE_READ },
    ]);
  });

  it("finds nothing in a frame that only marks a position or is of a later version", () => {
    expect(parseFrame('{"delta":"","finish_reason":null}')).toEqual([]);
    expect(parseFrame('{"novelty":{"x":1}}')).toEqual([]);
  });

  it("does not read what is not an object", () => {
    for (const data of ["", "null", "[]", '"text"', "1", "{"]) {
      expect(parseFrame(data)).toBeUndefined();
    }
  });
});
