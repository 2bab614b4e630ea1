// Sends each case of the fixtures through a chat of the AI SDK, and says what became of it. The second argument is the
// package of the version that reads.

import { readFileSync } from "node:fs";

const { AbstractChat, DefaultChatTransport } = await import(process.argv[3]);

class Chat extends AbstractChat {
  constructor(options) {
    const state = {
      status: "ready",
      error: undefined,
      messages: [],
      pushMessage: (message) => {
        state.messages = [...state.messages, message];
      },
      popMessage: () => {
        state.messages = state.messages.slice(0, -1);
      },
      replaceMessage: (index, message) => {
        state.messages = state.messages.with(index, message);
      },
      snapshot: structuredClone,
    };
    super({ ...options, state });
  }
}

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
