/** The server's two endpoints that the page uses. */

import { asObject, asText, parseJson } from "./json";
import { parseFailure } from "./stream";
import type { Failure } from "./stream";

export interface Model {
  id: string;
  owner: string;
}

export interface Turn {
  role: "user" | "assistant";
  content: string;
}

/** The server said no, or could not be reached at all (then `status` is 0). */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly failure: Failure,
  ) {
    super(failure.message);
  }
}

export async function listModels(key: string, signal: AbortSignal): Promise<Model[]> {
  const response = await call("/v1/models", key, { signal });
  const list = asObject(parseJson(await response.text()))?.["data"];
  if (!Array.isArray(list)) throw unreadable(response.status);
  const models: Model[] = [];
  for (const item of list) {
    const model = asObject(item);
    const id = asText(model?.["id"]);
    if (id !== undefined) models.push({ id, owner: asText(model?.["owned_by"]) ?? "" });
  }
  return models;
}

export async function startAnswer(
  key: string,
  model: string,
  messages: Turn[],
  signal: AbortSignal,
): Promise<ReadableStream<Uint8Array>> {
  const response = await call("/v1/chat/stream", key, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ model, messages }),
    signal,
  });
  if (response.body === null) throw unreadable(response.status);
  return response.body;
}

interface Call {
  method?: string;
  headers?: Record<string, string>;
  body?: string;
  signal: AbortSignal;
}

async function call(path: string, key: string, options: Call): Promise<Response> {
  const headers = { ...options.headers, Authorization: `Bearer ${key}` };
  let response: Response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (options.signal.aborted) throw error;
    throw new ApiError(0, {
      code: "unreachable",
      message: "The server could not be reached.",
      retryable: true,
    });
  }
  if (response.status !== 200) throw await refusal(response);
  return response;
}

async function refusal(response: Response): Promise<ApiError> {
  const text = await response.text().catch(() => "");
  const error = asObject(asObject(parseJson(text))?.["error"]);
  // A proxy in between may answer with a page of its own.
  return error === undefined
    ? unreadable(response.status)
    : new ApiError(response.status, parseFailure(error));
}

function unreadable(status: number): ApiError {
  return new ApiError(status, {
    code: `http_${status}`,
    message: "The answer did not come from Millstream.",
    retryable: false,
  });
}
