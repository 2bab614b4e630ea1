/** A conversation that anything can show: a store with `subscribe` and `getSnapshot`, and what can be done to it. */

import type { Arrival } from "./arrival";
import { LATE_MS, wasHeldBack } from "./arrival";
import { pageHere, pause } from "./connection";
import { revived, StreamError } from "./errors";
import type { Frame } from "./frames";
import { parseJson } from "./json";
import { keep, kept } from "./kept";
import type { AssistantMessage, Message } from "./messages";
import { newAnswer, openCalls, reduce, toRequest, userMessage } from "./messages";
import type { ConnectionState, Server } from "./stream";
import { cancelStream, findStream, hasBegun, openStream, randomKey, sendable } from "./stream";
import { openShared } from "./tabs";
import { throttled } from "./throttle";

export type ChatStatus = "idle" | ConnectionState | "failed";

export interface ChatState {
  readonly messages: readonly Message[];
  readonly status: ChatStatus;
  /** Why the last answer failed. */
  readonly error: StreamError | undefined;
  /** The question that is asked when this answer has ended. */
  readonly queued: string | undefined;
}

export interface ChatOptions extends Server {
  /** What the conversation begins with, where none is stored (`storageKey`). */
  messages?: readonly Message[] | undefined;
  /** Sent with every question: `model`, `temperature`, `tools` … as in `POST /v1/chat/stream`. */
  request?: Record<string, unknown> | undefined;
  /**
   * What leaving the page means: seconds to come back (15 by default; a reload resumes the answer), `cancel` to stop
   * it at once, `continue` to let it run to its end.
   */
  onLeave?: "cancel" | "continue" | { graceSeconds: number } | undefined;
  /**
   * Keeps the conversation in this tab under that name, so that a reload resumes it. One `Chat` has a name at a time: the
   * hooks of a page that give the same one share it.
   */
  storageKey?: string | undefined;
  /**
   * One connection for all tabs of this origin that show the answer; each has its own without. With `onLeave: "cancel"`
   * closing the tab that has it stops the answer for all.
   */
  shareTabs?: boolean | undefined;
  /** The longest request body that the server takes; 4 MiB by default, as it is there. */
  maxRequestBytes?: number | undefined;
  /** At most one update in so many milliseconds; one per frame of the screen by default. */
  throttleMs?: number | undefined;
  onFinish?: ((answer: AssistantMessage) => void) | undefined;
  onError?: ((error: StreamError) => void) | undefined;
}

interface Running extends Arrival {
  controller: AbortController;
  frames: Frame[];
  stopped: boolean;
}

interface Stored {
  time: number;
  id: string | undefined;
  messages: readonly Message[];
  queued: string | undefined;
}

const STOP_MS = 3000;
const STOP_ATTEMPTS = 5;
const GRACE_SECONDS = 15;
/** What a server takes unless it is set otherwise (`MILLSTREAM_MAX_BODY_BYTES`). */
const MAX_BODY_BYTES = 4 << 20;

export class Chat {
  /** May be replaced at any time, but for `storageKey`; what runs keeps what it was started with. */
  options: ChatOptions;
  #state: ChatState;
  readonly #first: ChatState;
  #running: Running | undefined;
  /** The answer that is being written, or was the last. */
  #answerId: string | undefined;
  /** The name that it is kept under, from its first options. */
  readonly storageKey: string | undefined;
  /** When it was stored, or would have been: what another one of its name has stored may be newer. */
  #time = 0;
  /** The id of the answer to the question that waits, unless others come before: a tab and its copy ask for the same. */
  #queuedId: string | undefined;
  #listeners = new Set<() => void>();
  #flush: (() => void) | undefined;
  #users = new Set<object>();
  #detach: () => void = () => undefined;
  /** Tells who has sent the question that waits what came of it. */
  #tellSender: ((answer?: Promise<AssistantMessage>) => void) | undefined;

  constructor(options: ChatOptions = {}) {
    this.options = options;
    this.storageKey = options.storageKey;
    this.#first = { messages: options.messages ?? [], status: "idle", error: undefined, queued: undefined };
    this.#state = this.#first;
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  readonly getSnapshot = (): ChatState => this.#state;

  /** How it was made: what a server renders, and a page before it knows more. */
  readonly getServerSnapshot = (): ChatState => this.#first;

  /**
   * Connects the conversation with the page: restores it and resumes its answer after a reload, and handles the
   * page's end. Returns how to disconnect, which stops reading and leaves the rest to the server (`onLeave`).
   */
  readonly attach = (): (() => void) => {
    const user = {};
    if (this.#users.add(user).size === 1) this.#detach = this.#connect();
    return () => {
      if (this.#users.delete(user) && this.#users.size === 0) this.#detach();
    };
  };

  #connect(): () => void {
    const restoring = this.#restore();
    if (restoring === undefined) void this.resume();
    else void restoring.then(() => (this.#users.size > 0 ? this.resume() : undefined));
    const leave = (event: PageTransitionEvent): void => {
      this.#flush?.();
      const answer = this.#answer();
      // All else is stored already, perhaps by another one of the same name.
      if (answer !== undefined) this.#store();
      const streamId = answer?.streamId;
      if (event.persisted || this.options.onLeave !== "cancel" || streamId === undefined) return;
      void cancelStream(this.options, streamId, { leaving: true }).catch(() => undefined);
    };
    const page = pageHere();
    page?.addEventListener("pagehide", leave);
    return () => {
      page?.removeEventListener("pagehide", leave);
      this.#disconnect();
    };
  }

  /**
   * Asks a question; gives the answer as it has ended. While another one is on its way, also one that is being stopped,
   * the question waits for its end (`queued`), and for the results of tools that it calls, until another question is
   * sent. One can wait: the next is refused with a `StreamError`, `busy`, and one that the server would not take is
   * refused with `too_large`. Undefined where there was nothing to ask, where the conversation that it waited in is gone,
   * or was detached; that one asks it when it is attached again.
   *
   * With the id of a message the question takes its place: that one, and what came after it, is forgotten. Where the
   * question is refused, nothing is. Call `stop()` before, where an answer is on its way.
   */
  readonly send = async (text: string, insteadOf?: string): Promise<AssistantMessage | undefined> => {
    if (text === "") return undefined;
    const { messages, queued } = this.#state;
    const at = messages.findIndex((message) => message.id === insteadOf);
    const before = at < 0 ? messages : messages.slice(0, at);
    const asked = [...before, userMessage(randomKey(), text)];
    this.#measure(asked);
    if (queued !== undefined && before.includes(this.#answer() as Message))
      throw new StreamError("busy", "A question waits already.");
    if (at >= 0) this.setMessages(before);
    this.#askNext(true);
    if (this.#running === undefined) return this.#ask(asked);
    this.#queuedId = randomKey();
    this.#set({ ...this.#state, queued: text });
    this.#store();
    return new Promise((resolve) => (this.#tellSender = resolve));
  };

  /**
   * Gives the result of a call that the last answer has made. When each of its calls has one, the model is asked to go on
   * with them.
   */
  readonly addToolResult = async (callId: string, result: string): Promise<AssistantMessage | undefined> => {
    const { messages } = this.#state;
    if (this.#running !== undefined || !openCalls(messages).some((call) => call.id === callId))
      return undefined;
    const parts = [{ type: "text", text: result }] as const;
    this.setMessages([...messages, { role: "tool", id: randomKey(), callId, parts }]);
    if (openCalls(this.#state.messages).length > 0) return undefined;
    return this.#ask(this.#state.messages);
  };

  /**
   * Asks again for the last answer, or for the one with that id and forgets what came after it. One that only could
   * not be reached is not asked for twice, but read on.
   */
  readonly regenerate = async (id?: string): Promise<void> => {
    if (this.#running !== undefined) return;
    if (id === undefined && this.#resumable() !== undefined) return this.resume();
    const { messages } = this.#state;
    const at = messages.findLastIndex((message) => id === undefined || message.id === id);
    if (at < 0) return;
    await this.#ask(messages.slice(0, messages[at]?.role === "assistant" ? at : at + 1));
  };

  /** Stops the answer at the provider, also before its first word. */
  readonly stop = async (): Promise<void> => {
    const running = this.#running;
    const answer = this.#answer();
    if (running === undefined || answer === undefined || running.stopped) return;
    running.stopped = true;
    const options = this.options;
    // Its last frame says what the answer has used; without it, it is stopped all the same.
    const giveUp = setTimeout(() => running.controller.abort(), STOP_MS);
    for (let attempt = 1; attempt <= STOP_ATTEMPTS; attempt++) {
      try {
        await cancelStream(options, await streamOf(options, answer));
        break;
      } catch (error) {
        if (error instanceof StreamError && !error.retryable) {
          running.controller.abort();
          break;
        }
        await pause(500 * 2 ** attempt);
      }
    }
    if (this.#running !== running) clearTimeout(giveUp);
  };

  /** Goes on reading an answer that was left in the middle, if there is one. */
  readonly resume = async (): Promise<void> => {
    const answer = this.#resumable();
    if (this.#running !== undefined) return;
    if (answer === undefined) return this.#askNext();
    // From its start: an answer is what its frames make of it. What there is of it stays until they come.
    const { id, streamId, model, request } = answer;
    await this.#read({ ...newAnswer(id), streamId, model, request }, { ...answer, status: "streaming" });
  };

  /**
   * Replaces the conversation, and stops reading an answer that is not in it. To the server that is leaving it (`onLeave`):
   * call `stop()` before where nobody will come back.
   */
  readonly setMessages = (messages: readonly Message[]): void => {
    const at = messages.findIndex((message) => message.id === this.#answerId);
    if (at < 0) this.#disconnect();
    // An answer that is being written is newer here than wherever these messages come from.
    const answer = this.#answer();
    const theirs = messages.map((message) => (message.id === answer?.id ? answer : message));
    const status = this.#running === undefined ? "idle" : this.#state.status;
    const queued = at < 0 ? undefined : this.#state.queued;
    this.#set({ messages: theirs, error: undefined, status, queued });
    this.#store();
  };

  /** The answer that is being written. */
  #answer(): AssistantMessage | undefined {
    const found = this.#state.messages.find((message) => message.id === this.#answerId);
    return this.#running !== undefined && found?.role === "assistant" ? found : undefined;
  }

  /** The last answer, where it was left in the middle or could not be reached. */
  #resumable(): AssistantMessage | undefined {
    const last = this.#state.messages.at(-1);
    if (last?.role !== "assistant" || (last.streamId ?? last.request) === undefined) return undefined;
    const unreached =
      last.status === "failed" && ["unreachable", "interrupted"].includes(last.error?.code ?? "");
    // An error frame has usage: then the stream has its end.
    return last.status === "streaming" || (unreached && last.usage === undefined) ? last : undefined;
  }

  /** Refuses what the server would refuse, before it is sent. */
  #measure(messages: readonly Message[]): void {
    const { request, maxRequestBytes = MAX_BODY_BYTES } = this.options;
    const body = sendable(() => JSON.stringify({ ...request, messages: toRequest(messages) }));
    if (new TextEncoder().encode(body).length < maxRequestBytes) return;
    throw new StreamError("too_large", "The server takes no request of this length.");
  }

  /** Asks the question that waits, unless an answer or the results of tools come before it. */
  #askNext(withoutResults = false): void {
    const { messages, queued } = this.#state;
    if (this.#running !== undefined || queued === undefined) return;
    if (!withoutResults && openCalls(messages).length > 0) return;
    this.#state = { ...this.#state, queued: undefined };
    const answer = this.#ask([...messages, userMessage(randomKey(), queued)], this.#queuedId);
    this.#tellSender?.(answer);
  }

  async #ask(messages: readonly Message[], id = randomKey()): Promise<AssistantMessage> {
    const { onLeave = { graceSeconds: GRACE_SECONDS }, request } = this.options;
    const body = {
      ...request,
      messages: toRequest(messages),
      on_disconnect: typeof onLeave === "object" ? { grace_seconds: onLeave.graceSeconds } : onLeave,
    };
    this.#state = { ...this.#state, messages };
    this.#queuedId = undefined;
    return this.#read({ ...newAnswer(id), request: body });
  }

  async #read(answer: AssistantMessage, shown: AssistantMessage = answer): Promise<AssistantMessage> {
    const options = this.options;
    const running: Running = {
      controller: new AbortController(),
      frames: [],
      stopped: false,
      asked: Date.now(),
      first: 0,
      count: 0,
    };
    this.#running = running;
    this.#answerId = answer.id;
    this.#put(shown, "connecting");
    this.#store();
    const flush = throttled(options.throttleMs, () => {
      if (this.#running !== running || running.frames.length === 0) return;
      const before = answer;
      answer = shown = running.frames.reduce(reduce, answer);
      running.frames = [];
      this.#put(answer, this.#state.status);
      if (before.streamId !== answer.streamId) this.#store();
    });
    this.#flush = flush.now;
    void this.#watch(running, options, () => {
      answer = { ...answer, heldBack: true };
      shown = { ...shown, heldBack: true };
      this.#put(shown, this.#state.status);
    });
    try {
      const open = options.shareTabs ? openShared : openStream;
      const stream = open({
        ...options,
        request: answer.request,
        streamId: answer.streamId,
        idempotencyKey: answer.id,
        signal: running.controller.signal,
        onState: (status) => this.#running === running && this.#set({ ...this.#state, status }),
      });
      for await (const frame of stream) {
        running.frames.push(frame);
        if (running.count++ === 0) running.first = Date.now();
        if (frame.kind === "start") flush.now();
        else flush.soon();
      }
      flush.now();
      if (shown.status === "streaming" && running.stopped) shown = { ...shown, status: "stopped" };
      if (wasHeldBack(running)) shown = { ...shown, heldBack: true };
    } catch (error) {
      flush.now();
      const found = error instanceof StreamError ? error : new StreamError("unknown", String(error));
      shown = { ...shown, status: running.stopped ? "stopped" : "failed", error: found };
    } finally {
      flush.cancel();
      if (shown.status === "stopped" && running.stopped) shown = { ...shown, stoppedHere: true };
      if (this.#running === running) {
        this.#put(shown, shown.status === "failed" ? "failed" : "idle", shown.error);
        this.#running = undefined;
        this.#store();
        tell(options, shown);
        this.#askNext();
      }
    }
    return shown;
  }

  /**
   * While nothing comes, asks the server from time to time whether it has said something: then it is held back on its way. A
   * model that thinks for long looks the same from here.
   */
  async #watch(running: Running, options: ChatOptions, isHeldBack: () => void): Promise<void> {
    const waits = (): boolean => this.#running === running && running.count === 0 && !running.stopped;
    for (let wait = LATE_MS; waits(); wait *= 2) {
      await pause(wait, running.controller.signal);
      const answer = this.#answer();
      if (answer === undefined || !waits()) return;
      try {
        if ((await hasBegun(options, await streamOf(options, answer))) && waits()) return isHeldBack();
      } catch {
        // The connection that the answer comes over says what is wrong.
      }
    }
  }

  /** Stops reading. The answer stays as it is, to be resumed. */
  #disconnect(): void {
    this.#flush?.();
    this.#running?.controller.abort();
    this.#running = undefined;
    this.#tellSender?.();
  }

  #put(answer: AssistantMessage, status: ChatStatus, error?: StreamError): void {
    const { messages } = this.#state;
    const changed = messages.map((message) => (message.id === answer.id ? answer : message));
    if (!changed.includes(answer)) changed.push(answer);
    this.#set({ ...this.#state, messages: changed, status, error });
  }

  #set(state: ChatState): void {
    this.#state = state;
    for (const listener of this.#listeners) listener();
  }

  #store(): void {
    if (this.storageKey === undefined) return;
    const { messages, queued } = this.#state;
    this.#time = Math.max(Date.now(), this.#time + 1);
    keep(this.storageKey, JSON.stringify({ time: this.#time, messages, queued, id: this.#queuedId }));
  }

  /** What is stored, where it is newer; later where there is so much of it. Once it was the messages alone. */
  #restore(): Promise<void> | undefined {
    if (this.storageKey === undefined) return undefined;
    const before = this.#state;
    const use = (text: string | undefined): undefined => {
      const found = parseJson(text ?? "") as Partial<Stored> | undefined;
      const { time = 1, messages = found, queued, id } = found ?? {};
      if (!Array.isArray(messages) || time <= this.#time || this.#state !== before) return;
      this.#time = time;
      this.#queuedId = id;
      this.#set({ ...before, messages: messages.map(revived), queued });
    };
    const text = kept(this.storageKey);
    return typeof text === "object" ? text.then(use) : use(text);
  }
}

/** The id of an answer's stream, which the server is asked for where it has not come. */
async function streamOf(server: Server, { id, streamId, request = {} }: AssistantMessage): Promise<string> {
  return streamId ?? findStream(server, request, id);
}

/** An application's own error is its own: the conversation goes on. */
function tell(options: ChatOptions, answer: AssistantMessage): void {
  try {
    if (answer.status === "failed" && answer.error) options.onError?.(answer.error);
    else options.onFinish?.(answer);
  } catch (error) {
    (globalThis.reportError ?? console.error)(error);
  }
}
