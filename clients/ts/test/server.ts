/** A Millstream as far as a client can see: one answer, any number of connections, each cut where the test says. */

export interface Cut {
  /** Bytes that get through; all of them without. */
  after?: number;
  /** Breaks the connection, instead of ending it. */
  breaks?: boolean;
  /** No connection at all. */
  refuses?: boolean;
  /** Answers with an error. */
  status?: number;
  headers?: Record<string, string>;
  body?: string;
}

export interface Call {
  method: string;
  path: string;
  headers: Record<string, string>;
  body: string | undefined;
}

const encoder = new TextEncoder();

export class FakeServer {
  calls: Call[] = [];
  generations = new Set<string>();
  cancelled = 0;
  /** What happens to the next connections, in order; then nothing. */
  cuts: Cut[] = [];
  /** Frames there are, without their blank line. */
  frames: string[];
  #grown: (() => void)[] = [];

  constructor(
    words: string[],
    public ended = true,
    readonly retryMs = 1,
    readonly streamId = "str_1",
  ) {
    const start = { delta: "", finish_reason: null, stream_id: streamId, model: "m" };
    const said = words.map((delta) => ({ delta, finish_reason: null }));
    this.frames = [];
    for (const data of [start, { delta: "", finish_reason: null }, ...said]) this.#add(data);
    if (ended) this.end("stop");
  }

  say(word: string): void {
    this.#add({ delta: word, finish_reason: null });
  }

  call(piece: object): void {
    this.#add({ tool_call: piece });
  }

  end(reason: string): void {
    const usage = { prompt_tokens: 9, completion_tokens: 2, source: "provider_final", cost_usd: "0.1" };
    this.ended = true;
    this.#add({ delta: "", finish_reason: reason, usage });
  }

  fail(code: string): void {
    this.ended = true;
    this.#add({ error: { code, message: "it broke", retryable: true } });
  }

  #add(data: object): void {
    const retry = this.frames.length === 0 ? `retry: ${this.retryMs}\n` : "";
    this.frames.push(`${retry}id: 1-${this.frames.length + 1}\ndata: ${JSON.stringify(data)}`);
    const grown = this.#grown;
    this.#grown = [];
    for (const wake of grown) wake();
  }

  readonly fetch = async (input: unknown, init: RequestInit = {}): Promise<Response> => {
    const path = String(input);
    const headers = new Headers(init.headers);
    const method = init.method ?? "GET";
    const body = typeof init.body === "string" ? init.body : undefined;
    this.calls.push({ method, path, headers: Object.fromEntries(headers), body });
    init.signal?.throwIfAborted();
    if (path.endsWith("/cancel")) {
      this.cancelled += 1;
      if (!this.ended) this.end("cancelled");
      return Response.json({ status: "cancelled" });
    }
    if (path.endsWith("/v1/streams")) return Response.json({ stream_id: this.streamId }, { status: 201 });
    const cut = this.cuts.shift() ?? {};
    if (cut.refuses) throw new TypeError("fetch failed");
    if (cut.status !== undefined) {
      return new Response(cut.body ?? "", { status: cut.status, headers: cut.headers ?? {} });
    }
    if (method === "POST") this.generations.add(headers.get("Idempotency-Key") ?? crypto.randomUUID());
    const seen = Number(headers.get("Last-Event-ID")?.split("-")[1] ?? 0);
    if (this.ended && seen >= this.frames.length) return new Response(null, { status: 204 });
    return new Response(this.#body(seen, cut, init.signal ?? undefined), {
      headers: { "Content-Type": "text/event-stream", "X-Stream-Id": this.streamId },
    });
  };

  #body(seen: number, cut: Cut, signal: AbortSignal | undefined): ReadableStream<Uint8Array> {
    let next = seen;
    let left = cut.after ?? Infinity;
    return new ReadableStream<Uint8Array>({
      start: (controller) => {
        signal?.addEventListener("abort", () => {
          try {
            controller.error(new DOMException("aborted", "AbortError"));
          } catch {
            return; // it was closed before
          }
        });
      },
      pull: async (controller) => {
        while (next >= this.frames.length && !this.ended) {
          await new Promise<void>((resolve) => {
            this.#grown.push(resolve);
            signal?.addEventListener("abort", () => resolve());
          });
          if (signal?.aborted) return;
        }
        const frame = this.frames[next++];
        if (frame === undefined) {
          controller.enqueue(encoder.encode("data: [DONE]\n\n"));
          controller.close();
          return;
        }
        const bytes = encoder.encode(`${frame}\n\n`).subarray(0, Math.max(0, left));
        left -= bytes.length;
        if (bytes.length > 0) controller.enqueue(bytes);
        if (left > 0) return;
        if (cut.breaks) controller.error(new TypeError("terminated"));
        else controller.close();
      },
    });
  }
}
