/** The hook for React and Next.js. */

"use client";

import { useEffect, useInsertionEffect, useState, useSyncExternalStore } from "react";

import type { ChatOptions, ChatState } from "./chat";
import { Chat } from "./chat";

export interface StreamingChat extends ChatState {
  /** Whether an answer is on its way: then `stop` does something, and `send` waits. */
  busy: boolean;
  send: Chat["send"];
  stop: Chat["stop"];
  regenerate: Chat["regenerate"];
  addToolResult: Chat["addToolResult"];
  setMessages: Chat["setMessages"];
}

interface Entry {
  readonly chat: Chat;
  users: number;
}

/** The conversations of this page that have a name, while they are shown. */
const named = new Map<string | undefined, Entry>();

/**
 * A conversation whose answers survive drops, reloads and restarts. Components that give the same `storageKey` show the
 * same conversation, and so do those that give the same `chat`. Another one is another conversation: give the component a
 * `key` with it. An option that is left out stays as it was; `undefined` takes it back.
 *
 *     const { messages, status, send, stop } = useStreamingChat({ getToken });
 */
export function useStreamingChat(options: ChatOptions & { chat?: Chat | undefined } = {}): StreamingChat {
  const given = options.chat;
  const [chat, show] = useState(() => given ?? entryOf(new Chat(options)).chat);
  // Before any of them is attached, which may ask the server already.
  useInsertionEffect(() => {
    if (given === undefined) chat.options = { ...chat.options, ...options };
  });
  useEffect(() => (given === undefined ? use(chat, show) : chat.attach()), [chat, given]);
  const state = useSyncExternalStore(chat.subscribe, chat.getSnapshot, chat.getServerSnapshot);
  const { send, stop, regenerate, addToolResult, setMessages } = chat;
  const busy = state.status !== "idle" && state.status !== "failed";
  return { ...state, busy, send, stop, regenerate, addToolResult, setMessages };
}

/** The entry of its name, which another one may have. A server has many pages at once, and shares none. */
function entryOf(chat: Chat): Entry {
  const name = chat.storageKey;
  const entry = named.get(name) ?? { chat, users: 0 };
  if (name !== undefined && typeof window !== "undefined") named.set(name, entry);
  return entry;
}

/** Attaches it; where another one has its name by now, that one is shown in its place. */
function use(chat: Chat, show: (chat: Chat) => void): (() => void) | undefined {
  const entry = entryOf(chat);
  if (entry.chat !== chat) {
    show(entry.chat);
    return undefined;
  }
  const detach = chat.attach();
  entry.users += 1;
  return () => {
    detach();
    entry.users -= 1;
    if (entry.users === 0) named.delete(chat.storageKey);
  };
}

export * from "./index";
