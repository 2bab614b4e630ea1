/** The body of a streamed answer, read into typed frames. */

import { createParser } from "eventsource-parser";

import { asNumber, asObject, asText, parseJson } from "./json";
import type { JsonObject } from "./json";

export interface Usage {
  promptTokens: number;
  completionTokens: number;
  cachedTokens: number;
  reasoningTokens: number;
  source: string;
  costUsd: string | null;
}

export interface Failure {
  code: string;
  message: string;
  retryable: boolean;
  requestId?: string | undefined;
}

export interface ToolCallPiece {
  index: number;
  name: string;
  arguments: string;
}

export type Frame =
  | { kind: "start"; streamId: string; model: string }
  | { kind: "text"; text: string }
  | { kind: "reasoning"; text: string }
  | { kind: "refusal"; text: string }
  | { kind: "toolCall"; piece: ToolCallPiece }
  | { kind: "end"; finishReason: string; usage: Usage | undefined }
  | { kind: "error"; failure: Failure; usage: Usage | undefined }
  /** Made here: the body ended, broke off or stopped making sense before the answer's end. */
  | { kind: "interrupted" };

const DONE = "[DONE]";

/**
 * The frames of a body. The last one is always `end`, `error` or `interrupted`; it never throws.
 */
export async function* readFrames(body: ReadableStream<Uint8Array>): AsyncGenerator<Frame, void> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let events: string[] = [];
  const parser = createParser({ onEvent: (event) => events.push(event.data) });
  let ended = false;

  try {
    // After `end` only [DONE] follows. Waiting for it lets the server close the connection itself.
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      parser.feed(decoder.decode(value, { stream: true }));
      const arrived = events;
      events = [];
      for (const data of arrived) {
        if (data === DONE) {
          if (!ended) yield { kind: "interrupted" };
          return;
        }
        const frames = ended ? [] : parseFrame(data);
        if (frames === undefined) {
          yield { kind: "interrupted" };
          return;
        }
        for (const frame of frames) {
          if (frame.kind === "end") ended = true;
          yield frame;
          if (frame.kind === "error") return;
        }
      }
    }
  } catch {
    // The connection broke; whether that matters depends on what came before.
  } finally {
    await reader.cancel().catch(() => undefined);
  }
  if (!ended) yield { kind: "interrupted" };
}

/** What one event's data says, in the order to show it; undefined when it is not a frame. */
export function parseFrame(data: string): Frame[] | undefined {
  const value = asObject(parseJson(data));
  if (value === undefined) return undefined;

  const error = asObject(value["error"]);
  if (error !== undefined) {
    return [{ kind: "error", failure: parseFailure(error), usage: parseUsage(value["usage"]) }];
  }

  const frames: Frame[] = [];
  const streamId = asText(value["stream_id"]);
  if (streamId !== undefined) {
    frames.push({ kind: "start", streamId, model: asText(value["model"]) ?? "" });
  }
  const reasoning = asText(value["reasoning"]);
  if (reasoning) frames.push({ kind: "reasoning", text: reasoning });
  const text = asText(value["delta"]);
  if (text) frames.push({ kind: "text", text });
  const refusal = asText(value["refusal"]);
  if (refusal) frames.push({ kind: "refusal", text: refusal });
  const call = asObject(value["tool_call"]);
  if (call !== undefined) {
    const piece = {
      index: asNumber(call["index"]) ?? 0,
      name: asText(call["name"]) ?? "",
      arguments: asText(call["arguments"]) ?? "",
    };
    frames.push({ kind: "toolCall", piece });
  }
  const finishReason = asText(value["finish_reason"]);
  if (finishReason !== undefined) {
    frames.push({ kind: "end", finishReason, usage: parseUsage(value["usage"]) });
  }
  return frames;
}

export function parseFailure(error: JsonObject): Failure {
  return {
    code: asText(error["code"]) ?? "unknown",
    message: asText(error["message"]) ?? "The server gave no reason.",
    retryable: error["retryable"] === true,
    requestId: asText(error["request_id"]),
  };
}

function parseUsage(value: unknown): Usage | undefined {
  const usage = asObject(value);
  if (usage === undefined) return undefined;
  return {
    promptTokens: asNumber(usage["prompt_tokens"]) ?? 0,
    completionTokens: asNumber(usage["completion_tokens"]) ?? 0,
    cachedTokens: asNumber(usage["cached_tokens"]) ?? 0,
    reasoningTokens: asNumber(usage["reasoning_tokens"]) ?? 0,
    source: asText(usage["source"]) ?? "",
    costUsd: asText(usage["cost_usd"]) ?? null,
  };
}
