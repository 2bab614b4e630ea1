// A chat of the AI SDK as a page has it: what `ai.mjs` drives in Node and `use_chat.mjs` in a browser.

import { Chat } from "@ai-sdk/react";
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithToolCalls } from "ai";
import { look, PICTURE, QUESTION, SCHEMA } from "./said.mjs";

export function chatOf(url, request, said, id) {
  const chat = new Chat({
    id,
    transport: new DefaultChatTransport({
      api: `${url}/api/chat`,
      headers: { Authorization: `Bearer ${request.key}` },
      body: {
        model: request.model,
        ...(request.tools ? { tools: { look: { description: "Looks.", parameters: SCHEMA } } } : {}),
      },
    }),
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
    onToolCall({ toolCall }) {
      if (request.op === "turns") {
        const { toolCallId, toolName } = toolCall;
        chat.addToolOutput({ tool: toolName, toolCallId, output: look(toolCall.input) });
      }
    },
    onFinish({ finishReason }) {
      said.finish = finishReason ?? null;
    },
    onError(error) {
      said.fail(error);
    },
  });
  return chat;
}

/** Sends the question and waits until all is answered; `text` is what has come of it. */
export async function converse(chat, request, said) {
  let seen = "";
  chat["~registerMessagesCallback"](() => {
    const text = textOf(chat);
    if (text !== seen) said.pieces += 1;
    seen = text;
    if (said.enough(request)) chat.stop();
  });
  const files = [{ type: "file", mediaType: "image/png", url: PICTURE }];
  await chat.sendMessage({ text: QUESTION, ...(request.image ? { files } : {}) });
  const answer = chat.lastMessage;
  if (answer?.role !== "assistant") return;
  const parts = answer.parts;
  said.text = textOf(chat);
  said.reasoning = parts.map((part) => (part.type === "reasoning" ? part.text : "")).join("");
  for (const part of parts) if (part.type === "tool-look") said.call("look", part.input);
  const usage = answer.metadata?.usage;
  if (usage) said.usage = [usage.inputTokens, usage.outputTokens];
}

export function textOf(chat) {
  const last = chat.messages.at(-1);
  if (last?.role !== "assistant") return "";
  return last.parts.map((part) => (part.type === "text" ? part.text : "")).join("");
}
