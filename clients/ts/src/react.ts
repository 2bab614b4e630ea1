/** The hook for React and Next.js. */

"use client";

import { useEffect, useState, useSyncExternalStore } from "react";

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

/** The conversations of this page that have a name. */
const named = new Map<string, { chat: Chat; users: number }>();

/**
 * A conversation whose answers survive drops, reloads and restarts. Components that give the same `storageKey` show the
 * same conversation, and so do those that give the same `chat`. Another one is another conversation: give the component a
 * `key` with it.
 *
 *     const { messages, status, send, stop } = useStreamingChat({ getToken });
 */
export function useStreamingChat(options: ChatOptions & { chat?: Chat | undefined } = {}): StreamingChat {
  const [chat] = useState(() => options.chat ?? chatNamed(options));
  useEffect(() => {
    if (options.chat === undefined) chat.options = options;
  });
  useEffect(() => use(chat, options.storageKey), [chat, options.storageKey]);
  const state = useSyncExternalStore(chat.subscribe, chat.getSnapshot, chat.getServerSnapshot);
  const { send, stop, regenerate, addToolResult, setMessages } = chat;
  const busy = state.status !== "idle" && state.status !== "failed";
  return { ...state, busy, send, stop, regenerate, addToolResult, setMessages };
}

/** The one of that name that is shown already, or a new one. A server has many pages at once, and shares none. */
function chatNamed(options: ChatOptions): Chat {
  const name = options.storageKey;
  if (name === undefined || typeof window === "undefined") return new Chat(options);
  const entry = named.get(name) ?? { chat: new Chat(options), users: 0 };
  named.set(name, entry);
  return entry.chat;
}

function use(chat: Chat, name = ""): () => void {
  const detach = chat.attach();
  const entry = named.get(name);
  if (entry?.chat !== chat) return detach;
  entry.users += 1;
  return () => {
    detach();
    entry.users -= 1;
    if (entry.users === 0) named.delete(name);
  };
}

export * from "./index";
