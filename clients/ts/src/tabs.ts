/** One connection for all tabs of an origin that show the same answer. */

import { StreamError } from "./errors";
import { follows } from "./frames";
import type { Position } from "./frames";
import { openStream } from "./stream";
import type { Positioned, StreamOptions } from "./stream";

/** A tab whose question is not answered for so long reads for itself. */
const PATIENCE_MS = 5000;

type Message = { after: Position | undefined } | { frames: readonly Positioned[] };

/**
 * `openStream`, where the first tab that reads a stream tells the others what it reads: a lock (Web Locks) says which one
 * that is, a `BroadcastChannel` carries the frames. When it goes, the next one reads on from where it is. A browser
 * without either has a connection for each tab.
 */
export async function* openShared(options: StreamOptions): AsyncGenerator<Positioned, void> {
  if (typeof BroadcastChannel === "undefined" || typeof navigator === "undefined" || !navigator.locks) {
    yield* openStream(options);
    return;
  }
  const room = new Room(options.after);
  try {
    if (options.streamId !== undefined) {
      options.onState?.("connecting");
      room.enter(options.streamId);
      for await (const frame of room.listen(options.signal)) {
        options.onState?.("streaming");
        yield frame;
        if (frame.kind === "end" || frame.kind === "error") return;
      }
    }
    for await (const frame of openStream({ ...options, after: room.last })) {
      if (frame.kind === "start") room.enter(frame.streamId);
      room.say(frame);
      yield frame;
    }
  } finally {
    room.leave();
  }
}

/** The tabs that read one stream, as one of them sees it. */
class Room {
  last: Position | undefined;
  readonly #first: Position | undefined;
  readonly #kept: Positioned[] = [];
  readonly #left = new AbortController();
  #channel: BroadcastChannel | undefined;
  #leads = false;
  #heard: Positioned[] = [];
  #answered = false;
  #wake: () => void = () => undefined;

  constructor(after: Position | undefined) {
    this.#first = this.last = after;
  }

  enter(streamId: string): void {
    if (this.#channel !== undefined) return;
    const name = `millstream:${streamId}`;
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }: MessageEvent<Message>) => this.#hear(data);
    const { signal } = this.#left;
    const lead = (): Promise<void> => {
      this.#leads = true;
      this.#wake();
      return new Promise((resolve) => signal.addEventListener("abort", () => resolve()));
    };
    navigator.locks.request(name, { signal }, lead).catch(() => undefined); // it has left before its turn came
  }

  leave(): void {
    this.#left.abort();
    this.#channel?.close();
    this.#wake();
  }

  say(frame: Positioned): void {
    this.last = frame.position;
    this.#kept.push(frame);
    if (this.#leads) this.#post([frame]);
  }

  /** What another tab reads; ends where that one is gone, or does not answer. */
  async *listen(signal: AbortSignal | undefined): AsyncGenerator<Positioned, void> {
    const stop = (): void => this.#wake();
    signal?.addEventListener("abort", stop);
    try {
      for (;;) {
        const heard = this.#heard;
        this.#heard = [];
        let asks = heard.length === 0;
        for (const frame of heard) {
          const place = follows(this.last, frame.position);
          if (place === "gap") asks = true;
          if (place !== "next") continue;
          this.say(frame);
          yield frame;
        }
        if (this.#leads || signal?.aborted) return;
        this.#answered = false;
        if (asks) this.#channel?.postMessage({ after: this.last } satisfies Message);
        await new Promise<void>((resolve) => {
          const timer = setTimeout(resolve, PATIENCE_MS);
          this.#wake = () => {
            clearTimeout(timer);
            resolve();
          };
        });
        if (asks && !this.#answered && !this.#leads) return;
      }
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }

  #hear(message: Message): void {
    if ("frames" in message) {
      this.#heard.push(...message.frames.map(revived));
      this.#answered = true;
      if (message.frames.length > 0) this.#wake();
    } else if (this.#leads) {
      // A tab that came in the middle does not have it all: whoever asks for more hears nothing, and reads for itself.
      const at = this.#kept.findIndex((frame) => frame.position === message.after);
      if (at >= 0 || message.after === this.#first) this.#post(this.#kept.slice(at + 1));
    }
  }

  #post(frames: readonly Positioned[]): void {
    this.#channel?.postMessage({ frames: frames.map(plain) } satisfies Message);
  }
}

/** A copy of an error that is sent to another tab has lost its code. */
function plain(frame: Positioned): Positioned {
  if (frame.kind !== "error") return frame;
  const { code, message, details } = frame.error;
  return { ...frame, error: { code, message, details } as StreamError };
}

function revived(frame: Positioned): Positioned {
  if (frame.kind !== "error") return frame;
  const { code, message, details } = frame.error;
  return { ...frame, error: new StreamError(code, message, details) };
}
