// ChatClient of TanStack AI, over Server-Sent Events.

import { toolDefinition } from "@tanstack/ai/client";
import { ChatClient, fetchServerSentEvents } from "@tanstack/ai-client";
import { look, PIXEL, QUESTION, SCHEMA, serve, URL } from "./driver.mjs";

async function run(request, said, execute) {
  const definition = toolDefinition({ name: "look", description: "Looks.", inputSchema: SCHEMA });
  const client = new ChatClient({
    connection: fetchServerSentEvents(`${URL}/ag-ui`, {
      headers: { Authorization: `Bearer ${request.key}` },
    }),
    forwardedProps: { model: request.model },
    tools: request.tools ? [definition.client(execute)] : [],
    onChunk(chunk) {
      if (chunk.type === "TEXT_MESSAGE_CONTENT") said.pieces += 1;
      if (chunk.type === "RUN_FINISHED") {
        const [usage] = [chunk.usage].flat();
        said.usage = [usage.inputTokens ?? usage.promptTokens, usage.outputTokens ?? usage.completionTokens];
        said.finish = chunk.metadata.millstream.finishReason;
      }
      if (said.enough(request)) client.stop();
    },
    onError(error) {
      const [, status] = /status: (\d+)/.exec(error.message) ?? []; // it stands in the message alone
      said.fail(Object.assign(error, status && { status: Number(status) }));
    },
  });
  const source = { type: "data", value: PIXEL, mimeType: "image/png" };
  const text = { type: "text", content: QUESTION };
  await client.sendMessage(request.image ? { content: [text, { type: "image", source }] } : QUESTION);
  for (const message of client.getMessages()) {
    if (message.role !== "assistant") continue;
    for (const part of message.parts) {
      if (part.type === "text") said.text += part.content;
      if (part.type === "thinking") said.reasoning += part.content;
      if (part.type === "tool-call") said.call(part.name, part.arguments);
    }
  }
}

await serve({
  ask: (request, said) => run(request, said),
  turns: (request, said) => run(request, said, look),
});
