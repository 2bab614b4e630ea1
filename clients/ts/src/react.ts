/** The hook for React and Next.js. */

"use client";

import { useEffect, useState, useSyncExternalStore } from "react";

import { Chat } from "./chat";
import type { ChatOptions, ChatState } from "./chat";

export interface StreamingChat extends ChatState {
  send: Chat["send"];
  stop: Chat["stop"];
  regenerate: Chat["regenerate"];
  setMessages: Chat["setMessages"];
}

/**
 * A conversation whose answers survive drops, reloads and restarts.
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
  return { ...state, send, stop, regenerate, setMessages };
}

export * from "./index";
