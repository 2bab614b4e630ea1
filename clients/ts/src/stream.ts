/** One answer over as many connections as it takes. */

import { createParser } from "eventsource-parser";

import { onWake, pause } from "./connection";
import { errorFromResponse, StreamError } from "./errors";
import type { Frame, Position } from "./frames";
import { follows, parseFrame } from "./frames";

/** A frame with its place in the stream. */
export type Positioned = Frame & { position: Position };

export type ConnectionState = "connecting" | "streaming" | "reconnecting";

export interface Server {
  /** Where Millstream is; the page's own origin by default. */
  url?: string | undefined;
  /**
   * A credential: a browser token that your backend gets from `POST /v1/tokens`, never an API key in a page. Asked
   * for before every request, and with `refresh` when the server refuses one: see `keepToken`.
   */
  getToken?: ((options: { refresh: boolean }) => string | Promise<string>) | undefined;
  fetch?: typeof fetch | undefined;
}

export interface StreamOptions extends Server {
  /** The body of `POST /v1/chat/stream`, to start a stream … */
  request?: Record<string, unknown> | undefined;
  /** … with a key that makes starting safe to repeat (one is made up) … */
  idempotencyKey?: string | undefined;
  /** … or the id of a stream to follow, after a position or from its start. */
  streamId?: string | undefined;
  after?: Position | undefined;
  signal?: AbortSignal | undefined;
  onState?: ((state: ConnectionState) => void) | undefined;
  /** Attempts in a row without a single frame before it gives up; 10 by default, for about a minute. */
  attempts?: number | undefined;
}

const BACKOFF_MS = { first: 400, most: 10_000 };
/** The server says something at least every 15 s. After twice that, and some, nobody is there. */
const SILENCE_MS = 35_000;
/** A page that wakes up does not wait for so long. */
const DOUBT_MS = 16_000;
const MAX_BUFFER = 8 << 20;

/**
 * The frames of an answer, each once and in order, whatever happens to the connections. The last one is `end` or
 * `error`; aborting `signal` ends it early, without one. Throws `StreamError` where the stream cannot be had.
 */
export async function* openStream(options: StreamOptions): AsyncGenerator<Positioned, void> {
  const signal = options.signal ?? new AbortController().signal;
  const idempotencyKey = options.idempotencyKey ?? randomKey();
  let streamId = options.streamId;
  let last = options.after;
  let failures = 0;
  let retryMs = BACKOFF_MS.first;
  options.onState?.("connecting");

  while (!signal.aborted) {
    const connection = new Connection(signal);
    let failure: StreamError;
    try {
      const response = await connection.open(options, streamId, last, idempotencyKey);
      if (response.status === 204)
        throw new StreamError("interrupted", "The connection ended before the answer did.");
      const isStream = response.headers.get("Content-Type")?.startsWith("text/event-stream");
      if (response.status !== 200 || !isStream) throw await errorFromResponse(response);
      streamId ??= response.headers.get("X-Stream-Id") ?? undefined;
      options.onState?.("streaming");
      for await (const event of connection.events(response)) {
        if (event.retry !== undefined) retryMs = Math.min(event.retry, BACKOFF_MS.most);
        if (event.id === undefined) continue;
        const place = follows(last, event.id);
        if (place === "seen") continue;
        if (place === "gap") break; // asked for again, from where we are
        const frame = place === "nonsense" ? undefined : parseFrame(event.data);
        if (frame === undefined)
          throw new StreamError("bad_response", "The stream did not come from Millstream.");
        failures = 0;
        last = event.id as Position;
        if (frame.kind === "start") streamId = frame.streamId;
        yield { ...frame, position: last };
        if (frame.kind === "end" || frame.kind === "error") return;
      }
      failure = new StreamError("interrupted", "The connection ended before the answer did.");
    } catch (cause) {
      if (signal.aborted) return;
      if (cause instanceof StreamError && !cause.retryable) throw cause;
      const text = "The server could not be reached.";
      failure = cause instanceof StreamError ? cause : new StreamError("unreachable", text, {}, { cause });
    } finally {
      connection.close();
    }
    failures += 1;
    if (signal.aborted) return;
    if (failures >= (options.attempts ?? 10)) throw failure;
    options.onState?.("reconnecting");
    // Full jitter, so that clients that were cut together do not come back together.
    const most = Math.min(BACKOFF_MS.most, retryMs * 2 ** (failures - 1));
    await pause(Math.max(failure.details.retryAfterMs ?? 0, Math.random() * most), signal);
  }
}

interface ServerSentEvent {
  id?: string | undefined;
  data: string;
  retry?: number | undefined;
}

/** One HTTP response, given up when it is silent for too long. */
class Connection {
  readonly #controller = new AbortController();
  readonly #abort = (): void => this.#controller.abort();
  readonly #stopListening: () => void;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #heardAt = Date.now();

  constructor(signal: AbortSignal) {
    signal.addEventListener("abort", this.#abort, { signal: this.#controller.signal });
    if (signal.aborted) this.#abort();
    // A phone that was asleep may hold a connection that is none any more.
    this.#stopListening = onWake((reason) => {
      if (reason === "restored" || Date.now() - this.#heardAt > DOUBT_MS) this.#abort();
    });
    this.#heard();
  }

  async open(
    options: StreamOptions,
    streamId: string | undefined,
    after: Position | undefined,
    idempotencyKey: string,
  ): Promise<Response> {
    const headers: Record<string, string> = { Accept: "text/event-stream" };
    let path = "/v1/chat/stream";
    let body: string | null = null;
    if (streamId !== undefined) {
      path = `/v1/streams/${encodeURIComponent(streamId)}/events`;
      if (after !== undefined) headers["Last-Event-ID"] = after;
    } else {
      body = sendable(() => JSON.stringify(options.request ?? {}));
      headers["Content-Type"] = "application/json";
      headers["Idempotency-Key"] = idempotencyKey;
    }
    const method = body === null ? "GET" : "POST";
    const response = await call(options, path, { method, headers, body, signal: this.#controller.signal });
    this.#heard();
    return response;
  }

  async *events(response: Response): AsyncGenerator<ServerSentEvent, void> {
    if (!response.body) throw new StreamError("bad_response", "The answer has no body.");
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let arrived: ServerSentEvent[] = [];
    const parser = createParser({
      onEvent: (event) => arrived.push({ id: event.id, data: event.data }),
      onRetry: (retry) => arrived.push({ data: "", retry }),
    });
    let pending = 0;
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        this.#heard();
        parser.feed(decoder.decode(value, { stream: true }));
        pending = arrived.length > 0 ? 0 : pending + value.byteLength;
        if (pending > MAX_BUFFER) throw new StreamError("bad_response", "An event is too long.");
        const events = arrived;
        arrived = [];
        yield* events;
      }
    } finally {
      await reader.cancel().catch(() => undefined);
    }
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#stopListening();
    this.#abort();
  }

  #heard(): void {
    this.#heardAt = Date.now();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(this.#abort, SILENCE_MS);
  }
}

/**
 * A `getToken` that asks `mint` once, and again when the server refuses what it gave: a token's limits hold only for those
 * who use it again.
 */
export function keepToken(mint: () => Promise<string>): NonNullable<Server["getToken"]> {
  let kept: Promise<string> | undefined;
  return ({ refresh }) => {
    if (refresh || kept === undefined) {
      const asked = mint();
      kept = asked;
      asked.catch(() => {
        if (kept === asked) kept = undefined;
      });
    }
    return kept;
  };
}

/** One request with the server's credential, which is asked for anew if it is refused. */
export async function call(
  server: Server,
  path: string,
  init: RequestInit & { headers?: Record<string, string> },
): Promise<Response> {
  const send = server.fetch ?? fetch;
  const url = `${(server.url ?? "").replace(/\/+$/, "")}${path}`;
  const attempt = async (refresh: boolean): Promise<Response> => {
    const token = await unlessAborted(tokenFrom(server, refresh), init.signal);
    const headers = { ...init.headers, ...(token === undefined ? {} : { Authorization: `Bearer ${token}` }) };
    try {
      return await send(url, { ...init, headers, cache: "no-store", credentials: "omit" });
    } catch (error) {
      // A `fetch` of the application's may take other addresses.
      if (server.fetch === undefined) sendable(() => new Request(url, { headers }));
      throw error;
    }
  };
  const response = await attempt(false);
  return response.status === 401 && server.getToken !== undefined ? attempt(true) : response;
}

/** What `make` gives. Where it fails, nothing can be sent: other attempts would not mend it. */
export function sendable<T>(make: () => T): T {
  try {
    return make();
  } catch (cause) {
    throw new StreamError("invalid_request", String(cause), {}, { cause });
  }
}

/**
 * What `getToken` gives. Where it fails nothing else is tried, unless it could not reach its backend (`fetch` throws a
 * `TypeError`): the network that takes the one away takes the other.
 */
async function tokenFrom(server: Server, refresh: boolean): Promise<string | undefined> {
  try {
    return await server.getToken?.({ refresh });
  } catch (cause) {
    if (cause instanceof StreamError) throw cause;
    const message = cause instanceof Error ? cause.message : String(cause);
    throw new StreamError("token", message, { retryable: cause instanceof TypeError }, { cause });
  }
}

/** `work`, or an `AbortError` as soon as `signal` aborts, whether or not `work` knows of it. */
function unlessAborted<T>(work: Promise<T>, signal: AbortSignal | null | undefined): Promise<T> {
  return new Promise((resolve, reject) => {
    // Neither DOMException nor throwIfAborted: React Native has none.
    const abort = (): void => reject(Object.assign(new Error("aborted"), { name: "AbortError" }));
    signal?.addEventListener("abort", abort);
    if (signal?.aborted) abort();
    void work.then(resolve, reject).then(() => signal?.removeEventListener("abort", abort));
  });
}

/** Stops a stream, wherever it runs. With `leaving` the request outlives the page. */
export async function cancelStream(
  server: Server,
  streamId: string,
  { leaving = false }: { leaving?: boolean } = {},
): Promise<void> {
  await ask(server, `/${encodeURIComponent(streamId)}/cancel`, { method: "POST", keepalive: leaving });
}

/** Whether a stream has said something already, whether or not it has come here. */
export async function hasBegun(server: Server, streamId: string): Promise<boolean> {
  const response = await ask(server, `/${encodeURIComponent(streamId)}`, {});
  const { status, usage } = (await response.json()) as { status: unknown; usage?: Record<string, unknown> };
  return status === "completed" || Number(usage?.["completion_tokens"]) > 0;
}

/** The id of the stream that a request has started whose answer never came: the same start finds it again. */
export async function findStream(
  server: Server,
  request: Record<string, unknown>,
  idempotencyKey: string,
): Promise<string> {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": idempotencyKey };
  const response = await ask(server, "", { method: "POST", headers, body: JSON.stringify(request) });
  return ((await response.json()) as { stream_id: string }).stream_id;
}

/** What the server says of streams, where it does not refuse. */
async function ask(
  server: Server,
  path: string,
  init: RequestInit & { headers?: Record<string, string> },
): Promise<Response> {
  const response = await call(server, `/v1/streams${path}`, init);
  if (!response.ok) throw await errorFromResponse(response);
  return response;
}

export function randomKey(): string {
  // Not crypto.randomUUID: pages that come over plain HTTP do not have it.
  const bytes = crypto.getRandomValues(new Uint8Array(18));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
