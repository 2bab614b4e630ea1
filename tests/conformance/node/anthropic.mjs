// Anthropic's SDK for Node: its stream helper, and its tool runner.

import Anthropic from "@anthropic-ai/sdk";
import { betaTool } from "@anthropic-ai/sdk/helpers/beta/json-schema";
import { look, PIXEL, QUESTION, SCHEMA, serve, URL } from "./driver.mjs";

const MOST = { max_tokens: 500 };

const client = (request) => new Anthropic({ baseURL: URL, apiKey: request.key, maxRetries: 0 });

function question(request) {
  const source = { type: "base64", media_type: "image/png", data: PIXEL };
  const content = request.image ? [{ type: "text", text: QUESTION }, { type: "image", source }] : QUESTION;
  return { role: "user", content };
}

function hear(message, said) {
  for (const block of message.content) if (block.type === "tool_use") said.call(block.name, block.input);
  said.finish = message.stop_reason;
  said.usage = [message.usage.input_tokens, message.usage.output_tokens];
}

async function ask(request, said) {
  const stream = client(request).messages.stream({
    ...MOST,
    model: request.model,
    messages: [question(request)],
    ...(request.tools ? { tools: [{ name: "look", description: "Looks.", input_schema: SCHEMA }] } : {}),
  });
  for await (const event of stream) {
    if (event.type !== "content_block_delta") continue;
    if (event.delta.type === "text_delta") said.piece(event.delta.text);
    if (event.delta.type === "thinking_delta") said.reasoning += event.delta.thinking;
    if (said.enough(request)) return; // which ends the loop, and so the request
  }
  hear(await stream.finalMessage(), said);
}

async function turns(request, said) {
  const run = (q) => {
    said.call("look", q);
    return look(q);
  };
  const message = await client(request).beta.messages.toolRunner({
    ...MOST,
    model: request.model,
    messages: [question(request)],
    tools: [betaTool({ name: "look", description: "Looks.", inputSchema: SCHEMA, run })],
  });
  for (const block of message.content) if (block.type === "text") said.piece(block.text);
}

await serve({ ask, turns });
