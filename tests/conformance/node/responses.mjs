// The Responses API of openai-node: its stream helper.

import OpenAI from "openai";
import { look, PICTURE, QUESTION, SCHEMA, serve, URL } from "./driver.mjs";

const TOOL = { type: "function", name: "look", description: "Looks.", parameters: SCHEMA, strict: true };

const client = (request) => new OpenAI({ baseURL: `${URL}/v1`, apiKey: request.key, maxRetries: 0 });

function question(request) {
  const image = { type: "input_image", image_url: PICTURE, detail: "auto" };
  const content = request.image ? [{ type: "input_text", text: QUESTION }, image] : QUESTION;
  return { role: "user", content };
}

/** One answer; null where the user has had enough. */
async function respond(request, said, input) {
  const stream = client(request).responses.stream({
    model: request.model,
    input,
    ...(request.tools ? { tools: [TOOL] } : {}),
  });
  for await (const event of stream) {
    if (event.type === "response.output_text.delta") said.piece(event.delta);
    if (event.type === "response.reasoning_summary_text.delta") said.reasoning += event.delta;
    if (event.type === "response.failed") throw new OpenAI.APIError(undefined, event.response.error);
    if (said.enough(request)) return null; // which ends the loop, and so the request
  }
  const response = await stream.finalResponse();
  for (const item of response.output) if (item.type === "function_call") said.call(item.name, item.arguments);
  const called = response.output.some((item) => item.type === "function_call");
  const done = called ? "tool_calls" : "stop"; // which a status does not tell apart
  said.finish = response.status === "completed" ? done : response.incomplete_details.reason;
  said.usage = [response.usage.input_tokens, response.usage.output_tokens];
  return response;
}

async function turns(request, said) {
  const input = [question(request)];
  while (true) {
    const { output } = await respond(request, said, input);
    const calls = output.filter((item) => item.type === "function_call");
    if (calls.length === 0) return;
    input.push(...output);
    for (const { call_id, arguments: given } of calls) {
      input.push({ type: "function_call_output", call_id, output: look(JSON.parse(given)) });
    }
  }
}

await serve({ ask: (request, said) => respond(request, said, [question(request)]), turns });
