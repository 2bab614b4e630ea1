/** Native frames (spec/protocol.md §4): the data of a Server-Sent Event -> what happened. */

import type { StreamError } from "./errors";
import { errorFromJson } from "./errors";
import { asNumber, asObject, asText, parseJson } from "./json";

/** Tokens of an answer, in OpenAI's meaning. `source` says where the numbers come from (docs/concepts.md). */
export interface Usage {
  promptTokens: number;
  completionTokens: number;
  cachedTokens: number;
  reasoningTokens: number;
  source: "provider_final" | "provider_partial" | "counted" | "checkpoint" | (string & {});
  /** A decimal string, or null where no price is known. */
  costUsd: string | null;
}

export interface ToolCallPiece {
  index: number;
  id?: string | undefined;
  name?: string | undefined;
  /** A piece of the arguments, which together are JSON. */
  arguments?: string | undefined;
  /** What the provider wants back with the call, such as Gemini's thought signature. */
  extraContent?: Readonly<Record<string, unknown>> | undefined;
}

/** A file that the model made, such as an image: whole, as a data URL or an address. */
export interface ModelFile {
  mediaType: string;
  url: string;
}

export type FinishReason =
  | "stop"
  | "length"
  | "tool_calls"
  | "content_filter"
  | "cancelled"
  | "budget_exceeded"
  | (string & {});

export type Frame =
  | { kind: "start"; streamId: string; model: string }
  | { kind: "text"; text: string }
  | { kind: "reasoning"; text: string }
  | { kind: "refusal"; text: string }
  | { kind: "tool-call"; call: ToolCallPiece }
  | { kind: "file"; file: ModelFile }
  /** The start or the end of a part: nothing to show. */
  | { kind: "boundary" }
  | { kind: "end"; finishReason: FinishReason; usage: Usage | undefined }
  | { kind: "error"; error: StreamError; usage: Usage | undefined };

/** Undefined where `data` is not a frame. */
export function parseFrame(data: string): Frame | undefined {
  const value = asObject(parseJson(data));
  if (value === undefined) return undefined;
  const usage = parseUsage(value["usage"]);
  const error = asObject(value["error"]);
  if (error !== undefined) return { kind: "error", error: errorFromJson(error), usage };
  const streamId = asText(value["stream_id"]);
  if (streamId !== undefined) return { kind: "start", streamId, model: asText(value["model"]) ?? "" };
  const finishReason = asText(value["finish_reason"]);
  if (finishReason !== undefined) return { kind: "end", finishReason, usage };
  const text = asText(value["delta"]);
  if (text) return { kind: "text", text };
  for (const kind of ["reasoning", "refusal"] as const) {
    const said = asText(value[kind]);
    if (said !== undefined) return { kind, text: said };
  }
  const call = asObject(value["tool_call"]);
  if (call !== undefined) {
    const piece = {
      index: asNumber(call["index"]) ?? 0,
      id: asText(call["id"]),
      name: asText(call["name"]),
      arguments: asText(call["arguments"]),
      extraContent: asObject(call["extra_content"]),
    };
    return { kind: "tool-call", call: piece };
  }
  const file = asObject(value["file"]);
  if (file !== undefined) {
    const made = { mediaType: asText(file["media_type"]) ?? "", url: asText(file["url"]) ?? "" };
    return { kind: "file", file: made };
  }
  return text === undefined ? undefined : { kind: "boundary" };
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

/** `<epoch>-<seq>` */
export type Position = `${number}-${number}`;

const POSITION = /^(\d{1,9})-(\d{1,15})$/;

/** Whether `next` is what follows `last`, was seen before, or leaves something out. */
export function follows(last: Position | undefined, next: string): "next" | "seen" | "gap" | "nonsense" {
  const [epoch, seq] = numbers(next);
  if (epoch === undefined || seq === undefined) return "nonsense";
  const [lastEpoch = 1, lastSeq = 0] = last === undefined ? [] : numbers(last);
  if (epoch === lastEpoch) return seq === lastSeq + 1 ? "next" : seq <= lastSeq ? "seen" : "gap";
  if (epoch < lastEpoch) return "seen";
  return epoch === lastEpoch + 1 && seq === 1 ? "next" : "gap";
}

function numbers(position: string): number[] {
  return (POSITION.exec(position) ?? []).slice(1).map(Number);
}
