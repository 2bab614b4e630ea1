/** The state of the conversation and everything that can happen to it. */

import type { Turn } from "./api";
import type { Failure, Frame, ToolCallPiece, Usage } from "./stream";

export type Status = "streaming" | "done" | "stopped" | "failed" | "interrupted";

export interface ToolCall {
  index: number;
  name: string;
  arguments: string;
}

export interface Question {
  role: "user";
  id: number;
  text: string;
}

export interface Answer {
  role: "assistant";
  id: number;
  status: Status;
  model: string;
  text: string;
  reasoning: string;
  refused: boolean;
  toolCalls: ToolCall[];
  finishReason: string | undefined;
  usage: Usage | undefined;
  failure: Failure | undefined;
}

export type Message = Question | Answer;

export interface Chat {
  messages: Message[];
  draft: string;
}

export type Action =
  | { type: "typed"; draft: string }
  /** A question is on its way; its answer has the same id. */
  | { type: "asked"; id: number; model: string; text: string }
  | { type: "received"; id: number; frames: Frame[] }
  | { type: "failed"; id: number; failure: Failure }
  | { type: "stopped"; id: number }
  /** The question never reached a model: it goes back to where it was written. */
  | { type: "withdrawn"; id: number }
  | { type: "cleared" };

export const emptyChat: Chat = { messages: [], draft: "" };

export function chatReducer(chat: Chat, action: Action): Chat {
  switch (action.type) {
    case "typed":
      return { ...chat, draft: action.draft };
    case "asked":
      return {
        draft: "",
        messages: [
          ...chat.messages,
          { role: "user", id: action.id, text: action.text },
          newAnswer(action.id, action.model),
        ],
      };
    case "received":
      return change(chat, action.id, (answer) => action.frames.reduce(receive, answer));
    case "failed":
      return change(chat, action.id, (answer) => ({
        ...answer,
        status: "failed",
        failure: action.failure,
      }));
    case "stopped":
      return change(chat, action.id, (answer) => ({ ...answer, status: "stopped" }));
    case "withdrawn": {
      const question = chat.messages.find((message) => message.id === action.id);
      if (question === undefined) return chat;
      return {
        draft: chat.draft === "" ? question.text : chat.draft,
        messages: chat.messages.filter((message) => message.id !== action.id),
      };
    }
    case "cleared":
      return emptyChat;
  }
}

export function isStreaming(chat: Chat): boolean {
  const last = chat.messages.at(-1);
  return last?.role === "assistant" && last.status === "streaming";
}

/** The conversation as a request carries it. An answer without words has nothing to carry. */
export function conversation(messages: Message[]): Turn[] {
  return messages
    .filter((message) => message.text !== "")
    .map((message) => ({ role: message.role, content: message.text }));
}

function newAnswer(id: number, model: string): Answer {
  return {
    role: "assistant",
    id,
    status: "streaming",
    model,
    text: "",
    reasoning: "",
    refused: false,
    toolCalls: [],
    finishReason: undefined,
    usage: undefined,
    failure: undefined,
  };
}

/** Changes an answer that is still being written; one that is over stays as it ended. */
function change(chat: Chat, id: number, update: (answer: Answer) => Answer): Chat {
  return {
    ...chat,
    messages: chat.messages.map((message) =>
      message.role === "assistant" && message.id === id && message.status === "streaming"
        ? update(message)
        : message,
    ),
  };
}

function receive(answer: Answer, frame: Frame): Answer {
  if (answer.status !== "streaming") return answer;
  switch (frame.kind) {
    case "start":
      return { ...answer, model: frame.model || answer.model };
    case "text":
      return { ...answer, text: answer.text + frame.text };
    case "reasoning":
      return { ...answer, reasoning: answer.reasoning + frame.text };
    case "refusal":
      return { ...answer, text: answer.text + frame.text, refused: true };
    case "toolCall":
      return { ...answer, toolCalls: addPiece(answer.toolCalls, frame.piece) };
    case "end":
      return {
        ...answer,
        // Someone else ended it, with another client: it is no more finished than one stopped here.
        status: frame.finishReason === "cancelled" ? "stopped" : "done",
        finishReason: frame.finishReason,
        usage: frame.usage,
      };
    case "error":
      return { ...answer, status: "failed", failure: frame.failure, usage: frame.usage };
    case "interrupted":
      return { ...answer, status: "interrupted" };
  }
}

function addPiece(calls: ToolCall[], piece: ToolCallPiece): ToolCall[] {
  if (!calls.some((call) => call.index === piece.index)) return [...calls, { ...piece }];
  return calls.map((call) =>
    call.index === piece.index
      ? {
          index: call.index,
          name: call.name || piece.name,
          arguments: call.arguments + piece.arguments,
        }
      : call,
  );
}
