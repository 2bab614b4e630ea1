// The AI SDK with its provider for servers that speak as OpenAI's does.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { URL } from "./driver.mjs";
import { serveModels } from "./stream_text.mjs";

await serveModels((request) => {
  const settings = { name: "millstream", baseURL: `${URL}/v1`, apiKey: request.key, includeUsage: true };
  return createOpenAICompatible(settings).chatModel(request.model);
});
