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
  /** Whether `stopped` was asked for here, with `stop()`; else the server, or someone elsewhere, has ended it. */
  stoppedHere?: boolean | undefined;
  /**
   * Something in between, such as a proxy that buffers, holds the answer back: while it streams, the server has said words
   * that have not come; afterwards, it came all at once.
   */
  heldBack?: boolean | undefined;
  finishReason?: FinishReason | undefined;
  usage?: Usage | undefined;
  error?: StreamError | undefined;
}

/** What a tool has answered to a call. */
export interface ToolMessage {
  role: "tool";
  id: string;
  /** The `id` of the call. */
  callId: string;
  parts: readonly Part[];
}

export type Message = UserMessage | AssistantMessage | ToolMessage;

export type ToolCall = Extract<Part, { type: "tool-call" }>;

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
  const known = parts.find((part) => part.type === "tool-call" && part.index === piece.index);
  if (known?.type !== "tool-call") {
    const { index, id = "", name = "", extraContent } = piece;
    return [...parts, { type: "tool-call", index, id, name, arguments: piece.arguments ?? "", extraContent }];
  }
  const grown = {
    ...known,
    arguments: known.arguments + (piece.arguments ?? ""),
    extraContent: piece.extraContent ?? known.extraContent,
  };
  return parts.map((part) => (part === known ? grown : part));
}

/** The calls of the last answer that have no result yet. */
export function openCalls(messages: readonly Message[]): ToolCall[] {
  const at = messages.findLastIndex((message) => message.role === "assistant");
  const answer = messages[at];
  if (answer?.role !== "assistant" || answer.status !== "done") return [];
  return callsOf(answer).filter((call) => !resultsAfter(messages, at).has(call.id));
}

/** The calls of an answer that was not cut: half of one may be JSON, and mean something else. */
function callsOf(answer: AssistantMessage): ToolCall[] {
  if (!/^(stop|tool)/.test(answer.finishReason ?? "stop")) return [];
  return answer.parts.filter((part) => part.type === "tool-call");
}

/** The ids of the calls that the messages right after an answer are results of. */
function resultsAfter(messages: readonly Message[], at: number): Set<string> {
  const found = new Set<string>();
  for (const message of messages.slice(at + 1)) {
    if (message.role !== "tool") break;
    found.add(message.callId);
  }
  return found;
}

/**
 * The conversation as a request carries it. An answer without words has nothing to carry but its calls, and those only
 * where each has a result: a model takes no others.
 */
export function toRequest(messages: readonly Message[]): object[] {
  return messages.flatMap((message, at): object[] => {
    const content = textOf(message);
    if (message.role === "tool") {
      const answer = messages.slice(0, at).findLastIndex((other) => other.role !== "tool");
      const carried = carriedCalls(messages, answer).some((call) => call.id === message.callId);
      return carried ? [{ role: "tool", tool_call_id: message.callId, content }] : [];
    }
    const calls = carriedCalls(messages, at);
    if (calls.length > 0) {
      return [
        {
          role: "assistant",
          content: content || null,
          // Some models want back what they thought before they asked for a tool.
          reasoning_content:
            message.parts.map((part) => (part.type === "reasoning" ? part.text : "")).join("") || undefined,
          tool_calls: calls.map(callInRequest),
        },
      ];
    }
    return content === "" ? [] : [{ role: message.role, content }];
  });
}

/** The calls of an answer, if each has a result. */
function carriedCalls(messages: readonly Message[], at: number): ToolCall[] {
  const answer = messages[at];
  if (answer?.role !== "assistant") return [];
  const calls = callsOf(answer);
  const results = resultsAfter(messages, at);
  return calls.every((call) => results.has(call.id)) ? calls : [];
}

function callInRequest({ id, name, arguments: text, extraContent }: ToolCall): object {
  return { id, type: "function", function: { name, arguments: text }, extra_content: extraContent };
}
