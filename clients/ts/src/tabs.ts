/** One connection for all tabs of an origin that show the same answer. */

import { revived } from "./errors";
import type { Position } from "./frames";
import { follows } from "./frames";
import type { ConnectionState, Positioned, StreamOptions } from "./stream";
import { openStream } from "./stream";

/** How long a tab waits to be told something before it asks, and for an answer before it reads for itself. */
const PATIENCE_MS = 5000;

/** How long a tab that has read the end is there for others: the last frames may come after the lock. */
const LINGER_MS = 1000;

type Place = Position | undefined;

/** Said by the tab that reads: frames, and what comes right before them. `reply` where that was asked for. */
interface Told {
  after: Place;
  frames: readonly Positioned[];
  reply: boolean;
}

interface Asked {
  asked?: Place;
}

type Message = Told | Asked;

/**
 * `openStream`, where the first tab that reads a stream tells the others what it reads: a lock (Web Locks) says which one
 * that is, a `BroadcastChannel` carries the frames. When it goes, the next one reads on from where it is. A browser
 * without either has a connection for each tab. To the server the tabs are one reader: with `on_disconnect: "cancel"`
 * closing the one that reads stops the answer for all.
 */
export async function* openShared(options: StreamOptions): AsyncGenerator<Positioned, void> {
  if (typeof BroadcastChannel === "undefined" || typeof navigator === "undefined" || !navigator.locks) {
    yield* openStream(options);
    return;
  }
  const { signal } = options;
  const room = new Room(options.after);
  const leave = (): void => room.leave();
  signal?.addEventListener("abort", leave);
  const onState = (state: ConnectionState): void => {
    room.reads = state === "streaming";
    options.onState?.(state);
  };
  let ended = false;
  try {
    if (options.streamId !== undefined && !signal?.aborted) {
      options.onState?.("connecting");
      room.enter(options.streamId);
      let heard = false;
      for await (const frame of room.listen()) {
        if (!heard) options.onState?.("streaming");
        heard = true;
        yield frame;
        if (frame.kind === "end" || frame.kind === "error") return;
      }
    }
    if (signal?.aborted) return;
    for await (const frame of openStream({ ...options, onState, after: room.last })) {
      if (frame.kind === "start") room.enter(frame.streamId);
      room.say(frame);
      ended = frame.kind === "end" || frame.kind === "error";
      room.reads = false; // while nobody takes what comes, there is nothing to be had here
      yield frame;
      room.reads = true;
    }
  } finally {
    signal?.removeEventListener("abort", leave);
    if (ended) setTimeout(leave, LINGER_MS);
    else leave();
  }
}

/** The tabs that read one stream, as one of them sees it. */
class Room {
  /** The last frame that was read here. */
  last: Place;
  /** Whether this tab has a connection that brings frames. */
  reads = false;
  readonly #first: Place;
  readonly #kept: Positioned[] = [];
  readonly #left = new AbortController();
  #channel: BroadcastChannel | undefined;
  #leads = false;
  #listens = false;
  #told: Told[] = [];
  /** The last question that came before this tab was the one to answer. */
  #unanswered: Asked | undefined;
  #wake: () => void = () => undefined;

  constructor(after: Place) {
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
      if (this.#unanswered !== undefined) this.#hear(this.#unanswered);
      this.#wake();
      return new Promise((resolve) => signal.addEventListener("abort", () => resolve()));
    };
    // Refused where it has left before its turn came, or where locks are not allowed: then it reads for itself.
    navigator.locks.request(name, { signal }, lead).catch(() => signal.aborted || void lead());
  }

  leave(): void {
    this.#left.abort();
    this.#channel?.close();
    this.#wake();
  }

  say(frame: Positioned): void {
    const after = this.last;
    this.last = frame.position;
    this.#kept.push(frame);
    if (this.#leads) this.#post({ after, frames: [frame], reply: false });
  }

  /** What another tab reads; ends where that one is gone, or does not answer. */
  async *listen(): AsyncGenerator<Positioned, void> {
    this.#listens = true;
    let asks = true;
    let question: { asked: Place; at: number } | undefined; // one at a time: a reply goes to all tabs, and may be long
    try {
      while (!this.#left.signal.aborted) {
        const told = this.#told;
        this.#told = [];
        for (const { after, frames, reply } of told) {
          if (reply && after === question?.asked) question = undefined;
          let before = after;
          for (const frame of frames) {
            // Only what follows what is here: a tab hears others' answers, and may come in the middle.
            const next = before === this.last;
            before = frame.position;
            if (!next) continue;
            question = undefined;
            this.say(frame);
            yield frame;
          }
          if (before !== undefined && follows(this.last, before) !== "seen") asks = true;
        }
        if (this.#told.length > 0) continue;
        if (this.#leads) return;
        if (asks && question === undefined) {
          question = { asked: this.last, at: Date.now() };
          this.#post({ asked: this.last });
        }
        asks = false;
        const left = question === undefined ? PATIENCE_MS : question.at + PATIENCE_MS - Date.now();
        if (left <= 0) return;
        const silent = await new Promise<boolean>((resolve) => {
          const timer = setTimeout(() => resolve(true), left);
          this.#wake = () => {
            clearTimeout(timer);
            resolve(false);
          };
        });
        asks = silent;
      }
    } finally {
      this.#listens = false;
      this.#told = [];
    }
  }

  #hear(message: Message): void {
    if (!("frames" in message)) {
      if (!this.#leads) this.#unanswered = message;
      if (!this.#leads || !this.reads) return;
      const at = this.#kept.findIndex((frame) => frame.position === message.asked);
      // Where it came in the middle itself, it does not have it all; whoever asks then reads for itself.
      if (at < 0 && message.asked !== this.#first) return;
      this.#post({ after: message.asked, frames: this.#kept.slice(at + 1), reply: true });
    } else if (this.#listens) {
      this.#told.push({ ...message, frames: message.frames.map(revived) });
      this.#wake();
    }
  }

  /** As JSON has it: a copy of an error has lost its code. */
  #post(message: Message): void {
    if (!this.#left.signal.aborted) this.#channel?.postMessage(JSON.parse(JSON.stringify(message)));
  }
}
