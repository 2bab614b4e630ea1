// The AI SDK with its provider for Anthropic's Messages.

import { createAnthropic } from "@ai-sdk/anthropic";
import { URL } from "./driver.mjs";
import { serveModels } from "./stream_text.mjs";

await serveModels((request) =>
  createAnthropic({ baseURL: `${URL}/v1`, apiKey: request.key })(request.model),
);
