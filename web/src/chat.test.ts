import { describe, expect, it } from "vitest";

import { chatReducer, conversation, emptyChat, isStreaming } from "./chat";
import type { Action, Answer, Chat } from "./chat";
import type { Frame, Usage } from "./stream";
import { usageParts } from "./usage";

const usage: Usage = {
  promptTokens: 1200,
  completionTokens: 12,
  cachedTokens: 0,
  reasoningTokens: 0,
  source: "counted",
  costUsd: null,
};

function after(...actions: Action[]): Chat {
  return actions.reduce(chatReducer, emptyChat);
}

function asked(id: number, text = "Why?"): Action {
  return { type: "asked", id, model: "m", text };
}

function received(id: number, ...frames: Frame[]): Action {
  return { type: "received", id, frames };
}

function lastAnswer(chat: Chat): Answer {
  const message = chat.messages.at(-1);
  if (message?.role !== "assistant") throw new Error("no answer");
  return message;
}

const text = (words: string): Frame => ({ kind: "text", text: words });
const end = (finishReason: string): Frame => ({ kind: "end", finishReason, usage });

describe("chatReducer", () => {
  it("asks: the draft becomes a question with an answer to come", () => {
    const chat = after({ type: "typed", draft: "Why?" }, asked(1));
    expect(chat.draft).toBe("");
    expect(chat.messages).toMatchObject([
      { role: "user", text: "Why?" },
      { role: "assistant", status: "streaming", text: "" },
    ]);
    expect(isStreaming(chat)).toBe(true);
  });

  it("puts the pieces together", () => {
    const chat = after(
      asked(1),
      received(
        1,
        { kind: "start", streamId: "s", model: "m-2" },
        { kind: "reasoning", text: "Hm" },
        { kind: "reasoning", text: "." },
        text("Be"),
      ),
      received(1, text("cause."), end("stop")),
    );
    expect(lastAnswer(chat)).toMatchObject({
      status: "done",
      model: "m-2",
      reasoning: "Hm.",
      text: "Because.",
      usage,
    });
    expect(isStreaming(chat)).toBe(false);
  });

  it("joins the pieces of each tool call", () => {
    const piece = (index: number, name: string, args: string): Frame => ({
      kind: "toolCall",
      piece: { index, name, arguments: args },
    });
    const chat = after(
      asked(1),
      received(1, piece(0, "look", ""), piece(1, "ask", ""), piece(0, "", '{"a"'), piece(0, "", ":1}")),
    );
    expect(lastAnswer(chat).toolCalls).toEqual([
      { index: 0, name: "look", arguments: '{"a":1}' },
      { index: 1, name: "ask", arguments: "" },
    ]);
  });

  it("shows a refusal as text and marks it", () => {
    const chat = after(asked(1), received(1, { kind: "refusal", text: "No." }));
    expect(lastAnswer(chat)).toMatchObject({ text: "No.", refused: true });
  });

  it("keeps the text of an answer that failed, broke off or was stopped", () => {
    const failure = { code: "upstream_error", message: "it broke", retryable: true };
    const endings: [Action, Partial<Answer>][] = [
      [received(1, { kind: "error", failure, usage }), { status: "failed", failure, usage }],
      [received(1, { kind: "interrupted" }), { status: "interrupted" }],
      [{ type: "stopped", id: 1 }, { status: "stopped" }],
      [{ type: "failed", id: 1, failure }, { status: "failed", failure }],
      [received(1, end("cancelled")), { status: "stopped", finishReason: "cancelled" }],
    ];
    for (const [ending, expected] of endings) {
      const chat = after(asked(1), received(1, text("Half")), ending);
      expect(lastAnswer(chat)).toMatchObject({ text: "Half", ...expected });
    }
  });

  it("lets nothing change an answer that is over", () => {
    const done = after(asked(1), received(1, text("All"), end("stop"), text("more")));
    expect(lastAnswer(done).text).toBe("All");
    const later: Action[] = [
      received(1, text("late")),
      received(1, { kind: "interrupted" }),
      { type: "stopped", id: 1 },
    ];
    expect(later.reduce(chatReducer, done)).toEqual(done);
  });

  it("leaves the other messages as they are, the very same objects", () => {
    const before = after(asked(1), received(1, text("One"), end("stop")), asked(2));
    const changed = chatReducer(before, received(2, text("Two")));
    expect(changed.messages.slice(0, 3).every((m, at) => m === before.messages[at])).toBe(true);
    expect(lastAnswer(changed).text).toBe("Two");
  });

  it("ignores what arrives for a conversation that was cleared", () => {
    expect(after(asked(1), { type: "cleared" }, received(1, text("late")))).toEqual(emptyChat);
  });

  it("gives a withdrawn question back, but not over something newer", () => {
    expect(after(asked(1), { type: "withdrawn", id: 1 })).toEqual({ messages: [], draft: "Why?" });
    const newer = after(asked(1), { type: "typed", draft: "How?" }, { type: "withdrawn", id: 1 });
    expect(newer.draft).toBe("How?");
  });
});

describe("conversation", () => {
  it("carries every message with words, in order", () => {
    const chat = after(
      asked(1, "One?"),
      { type: "failed", id: 1, failure: { code: "x", message: "x", retryable: false } },
      asked(2, "Two?"),
      received(2, text("Yes"), { kind: "interrupted" }),
    );
    expect(conversation(chat.messages)).toEqual([
      { role: "user", content: "One?" },
      { role: "user", content: "Two?" },
      { role: "assistant", content: "Yes" },
    ]);
  });
});

describe("usageParts", () => {
  it("says what was used, and what it means", () => {
    const parts = (frame: Frame) => usageParts(lastAnswer(after(asked(1), received(1, frame))));
    expect(parts(end("stop"))).toEqual([
      "m",
      "1,200 prompt + 12 completion tokens",
      "counted here",
    ]);
    const priced = { ...usage, cachedTokens: 5, source: "provider_final", costUsd: "0.000142" };
    expect(parts({ kind: "end", finishReason: "length", usage: priced })).toEqual([
      "m",
      "1,200 prompt (5 cached) + 12 completion tokens",
      "counted by the provider",
      "$0.000142",
      "cut off at the length limit",
    ]);
    expect(parts({ kind: "interrupted" })).toEqual([]);
  });
});
