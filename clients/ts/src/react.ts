/** The hook for React and Next.js. */

"use client";

import { useEffect, useState, useSyncExternalStore } from "react";

import type { ChatOptions, ChatState } from "./chat";
import { Chat } from "./chat";

export interface StreamingChat extends ChatState {
  /** Whether an answer is on its way: then `stop` does something, else `send` does. */
  busy: boolean;
  send: Chat["send"];
  stop: Chat["stop"];
  regenerate: Chat["regenerate"];
  setMessages: Chat["setMessages"];
}

/**
 * A conversation whose answers survive drops, reloads and restarts. Another `storageKey` is another conversation: give
 * the component a `key` with it.
 *
 *     const { messages, status, send, stop } = useStreamingChat({ getToken });
 */
export function useStreamingChat(options: ChatOptions = {}): StreamingChat {
  const [chat] = useState(() => new Chat(options));
  useEffect(() => {
    chat.options = options;
  });
  useEffect(() => chat.attach(), [chat]);
  const state = useSyncExternalStore(chat.subscribe, chat.getSnapshot, chat.getSnapshot);
  const { send, stop, regenerate, setMessages } = chat;
  const busy = state.status !== "idle" && state.status !== "failed";
  return { ...state, busy, send, stop, regenerate, setMessages };
}

export * from "./index";
