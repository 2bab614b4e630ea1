// openai-node, in the version that the client's name says.

import { look, PICTURE, QUESTION, SCHEMA, serve, URL } from "./driver.mjs";

const { default: OpenAI } = await import(process.env.MILLSTREAM_TEST_CLIENT);
const TOOL = { type: "function", function: { name: "look", description: "Looks.", parameters: SCHEMA } };

const client = (request) => new OpenAI({ baseURL: `${URL}/v1`, apiKey: request.key, maxRetries: 0 });

async function ask(request, said) {
  const image = { type: "image_url", image_url: { url: PICTURE } };
  const content = request.image ? [{ type: "text", text: QUESTION }, image] : QUESTION;
  const stream = await client(request).chat.completions.create({
    model: request.model,
    messages: [{ role: "user", content }],
    stream: true,
    stream_options: { include_usage: true },
    ...(request.tools ? { tools: [TOOL] } : {}),
  });
  const calls = [];
  for await (const chunk of stream) {
    if (chunk.usage) said.usage = [chunk.usage.prompt_tokens, chunk.usage.completion_tokens];
    for (const { delta, finish_reason } of chunk.choices) {
      said.piece(delta.content);
      said.reasoning += delta.reasoning_content ?? "";
      for (const { index, function: piece } of delta.tool_calls ?? []) {
        calls[index] ??= { name: "", arguments: "" };
        calls[index].name += piece.name ?? "";
        calls[index].arguments += piece.arguments ?? "";
      }
      said.finish = finish_reason ?? said.finish;
    }
    if (said.enough(request)) return; // which ends the loop, and so the request
  }
  for (const call of calls) said.call(call.name, call.arguments);
}

async function turns(request, said) {
  const run = (q) => {
    said.call("look", q);
    return look(q);
  };
  const tool = { ...TOOL.function, function: run, parse: JSON.parse };
  const runner = client(request).chat.completions.runTools({
    model: request.model,
    messages: [{ role: "user", content: QUESTION }],
    stream: true,
    tools: [{ type: "function", function: tool }],
  });
  said.piece(await runner.finalContent());
}

await serve({ ask, turns });
