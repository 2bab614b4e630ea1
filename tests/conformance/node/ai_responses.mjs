// The AI SDK with its provider for OpenAI's Responses.

import { createOpenAI } from "@ai-sdk/openai";
import { URL } from "./driver.mjs";
import { serveModels } from "./stream_text.mjs";

await serveModels((request) =>
  createOpenAI({ baseURL: `${URL}/v1`, apiKey: request.key }).responses(request.model),
);
