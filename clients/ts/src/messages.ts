/** A conversation, and what a frame does to it. Pure: the same frames make the same messages. */

import type { StreamError } from "./errors";
import type { FinishReason, Frame, ToolCallPiece, Usage } from "./frames";

export type Part =
  | { type: "text"; text: string }
  | { type: "reasoning"; text: string }
  | { type: "refusal"; text: string }
  | { type: "file"; mediaType: string; url: string }
  | {
      type: "tool-call";
      index: number;
      id: string;
      name: string;
      arguments: string;
      extraContent?: ToolCallPiece["extraContent"];
    };

export interface UserMessage {
  role: "user" | "system";
  id: string;
  parts: readonly Part[];
}

export interface AssistantMessage {
  role: "assistant";
  id: string;
  parts: readonly Part[];
  /** `stopped` by whoever asked; `failed` with an error. */
  status: "streaming" | "done" | "stopped" | "failed";
  model?: string | undefined;
  streamId?: string | undefined;
  /** What was asked, for as long as the stream's id is not known; with `id` for its key it can be asked again. */
  request?: Record<string, unknown> | undefined;
  finishReason?: FinishReason | undefined;
  usage?: Usage | undefined;
  error?: StreamError | undefined;
}

export type Message = UserMessage | AssistantMessage;

export function userMessage(id: string, text: string): UserMessage {
  return { role: "user", id, parts: [{ type: "text", text }] };
}

export function newAnswer(id: string): AssistantMessage {
  return { role: "assistant", id, parts: [], status: "streaming" };
}

/** The text of a message, without reasoning and tool calls. */
export function textOf(message: Message): string {
  return message.parts
    .map((part) => (part.type === "text" || part.type === "refusal" ? part.text : ""))
    .join("");
}

/** The answer after a frame. */
export function reduce(answer: AssistantMessage, frame: Frame): AssistantMessage {
  switch (frame.kind) {
    case "start":
      return { ...answer, streamId: frame.streamId, model: frame.model, request: undefined };
    case "text":
    case "reasoning":
    case "refusal":
      return { ...answer, parts: addText(answer.parts, frame.kind, frame.text) };
    case "tool-call":
      return { ...answer, parts: addToolCall(answer.parts, frame.call) };
    case "file":
      return { ...answer, parts: [...answer.parts, { type: "file", ...frame.file }] };
    case "boundary":
      return answer;
    case "end":
      return {
        ...answer,
        status: frame.finishReason === "cancelled" ? "stopped" : "done",
        finishReason: frame.finishReason,
        usage: frame.usage,
      };
    case "error":
      return { ...answer, status: "failed", error: frame.error, usage: frame.usage };
  }
}

function addText(
  parts: readonly Part[],
  type: "text" | "reasoning" | "refusal",
  text: string,
): readonly Part[] {
  const last = parts.at(-1);
  if (last?.type !== type) return [...parts, { type, text }];
  return [...parts.slice(0, -1), { type, text: last.text + text }];
}

function addToolCall(parts: readonly Part[], piece: ToolCallPiece): readonly Part[] {
  const at = parts.findIndex((part) => part.type === "tool-call" && part.index === piece.index);
  const known = parts[at];
  if (known?.type !== "tool-call") {
    const { index, id = "", name = "", extraContent } = piece;
    return [...parts, { type: "tool-call", index, id, name, arguments: piece.arguments ?? "", extraContent }];
  }
  const grown = { ...known, arguments: known.arguments + (piece.arguments ?? "") };
  return parts.map((part, i) => (i === at ? grown : part));
}

/** The conversation as a request carries it. An answer without words has nothing to carry. */
export function toRequest(messages: readonly Message[]): { role: string; content: string }[] {
  return messages
    .map((message) => ({ role: message.role, content: textOf(message) }))
    .filter((message) => message.content !== "");
}
