// The AI SDK's streamText, with whatever provider of models.

import { jsonSchema, stepCountIs, streamText, tool } from "ai";
import { look, PICTURE, QUESTION, SCHEMA, serve } from "./driver.mjs";

async function run(model, request, said, execute) {
  const stop = new AbortController();
  const text = { type: "text", text: QUESTION };
  const content = request.image ? [text, { type: "image", image: PICTURE }] : [text];
  const looks = tool({ description: "Looks.", inputSchema: jsonSchema(SCHEMA), execute });
  const result = streamText({
    model,
    messages: [{ role: "user", content }],
    ...(request.tools ? { tools: { look: looks } } : {}),
    stopWhen: stepCountIs(3),
    maxRetries: 0,
    abortSignal: stop.signal,
    onError() {},
  });
  for await (const part of result.fullStream) {
    if (part.type === "text-delta") said.piece(part.text);
    else if (part.type === "reasoning-delta") said.reasoning += part.text;
    else if (part.type === "tool-call") said.call(part.toolName, part.input);
    else if (part.type === "error") throw part.error;
    else if (part.type === "finish") {
      said.finish = part.finishReason;
      said.usage = [part.totalUsage.inputTokens, part.totalUsage.outputTokens];
    }
    if (said.enough(request)) {
      stop.abort();
      return;
    }
  }
}

/** Answers requests with the model that `modelOf` makes for each. */
export const serveModels = (modelOf) =>
  serve({
    ask: (request, said) => run(modelOf(request), request, said),
    turns: (request, said) => run(modelOf(request), request, said, look),
  });
