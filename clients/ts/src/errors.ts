/** Everything that can go wrong, each with a stable code. */

import type { JsonObject } from "./json";
import { asObject, asText, parseJson } from "./json";

/**
 * A code of the server's closed list (spec/protocol.md §8), which `invalid_request` is also here where a request cannot
 * be sent, or one of the client's own: `unreachable` (no answer after all attempts; `cause` is the last one's error),
 * `interrupted` (the stream ended without its end), `bad_response` (not a Millstream's answer), `token` (`getToken`
 * failed; `cause` is its error), `busy` (a question waits already).
 */
export type ErrorCode = "unreachable" | "interrupted" | "bad_response" | "token" | "busy" | (string & {});

export class StreamError extends Error {
  override readonly name = "StreamError";

  constructor(
    readonly code: ErrorCode,
    message: string,
    readonly details: {
      /** The HTTP status, where the error came as one. */
      status?: number | undefined;
      /** Whether the same request may succeed later. */
      retryable?: boolean | undefined;
      requestId?: string | undefined;
      retryAfterMs?: number | undefined;
    } = {},
    options?: { cause?: unknown },
  ) {
    super(message, options);
  }

  get retryable(): boolean {
    return this.details.retryable === true;
  }

  /** With its message, which the JSON of an `Error` lacks. */
  toJSON(): object {
    return { ...this, message: this.message };
  }
}

export function errorFromJson(error: JsonObject, details: StreamError["details"] = {}): StreamError {
  const code = asText(error["code"]) ?? "unknown";
  return new StreamError(code, asText(error["message"]) ?? "The server gave no reason.", {
    ...details,
    retryable: error["retryable"] === true || ["overloaded", "draining"].includes(code),
    requestId: asText(error["request_id"]),
  });
}

/** What has come as JSON, with the error in it as it was before. */
export function revived<T extends object>(it: T & { error?: StreamError | undefined }): T {
  if (it.error === undefined) return it;
  const { code, message, details } = it.error;
  return { ...it, error: new StreamError(code, message, details) };
}

const TRY_AGAIN = new Set([408, 425, 429, 500, 502, 503, 504]);

/** The error that a response is which is no stream. */
export async function errorFromResponse(response: Response): Promise<StreamError> {
  const text = await response.text().catch(() => "");
  const error = asObject(asObject(parseJson(text))?.["error"]);
  const seconds = Number(response.headers.get("Retry-After"));
  const details = { status: response.status, retryAfterMs: seconds > 0 ? seconds * 1000 : undefined };
  if (error !== undefined) return errorFromJson(error, details);
  // A proxy in between answers with a page of its own.
  if (response.status === 413) {
    const message = "A proxy before Millstream takes no request of this length.";
    return new StreamError("too_large", message, details);
  }
  const retryable = TRY_AGAIN.has(response.status);
  const message = `The answer (HTTP ${response.status}) did not come from Millstream.`;
  return new StreamError("bad_response", message, { ...details, retryable });
}
