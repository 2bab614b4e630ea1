// Sends each case of the fixtures through a chat of the AI SDK, and says what became of it.

import { readFileSync } from "node:fs";
import { Chat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";

const found = {};
for (const { name, frames } of JSON.parse(readFileSync(process.argv[2], "utf8"))) {
  const seen = { finish: null, error: null };
  const chat = new Chat({
    transport: new DefaultChatTransport({
      fetch: async () => new Response(frames, { headers: { "Content-Type": "text/event-stream" } }),
    }),
    onFinish({ finishReason }) {
      seen.finish = finishReason ?? null;
    },
    onError(error) {
      seen.error = `${error.name}: ${error.message}`;
    },
  });
  await chat.sendMessage({ text: "Hello" });
  found[name] = { ...seen, parts: chat.lastMessage.parts };
}
console.log(JSON.stringify(found));
