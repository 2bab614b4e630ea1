import { useEffect, useRef } from "react";
import type { Dispatch } from "react";

import { ApiError, startAnswer } from "./api";
import { conversation } from "./chat";
import type { Action, Message } from "./chat";
import { collectPerFrame } from "./collector";
import { readFrames } from "./stream";
import type { Frame } from "./stream";

interface Answering {
  ask(model: string, before: Message[], text: string): void;
  stop(): void;
}

// Ids outlive the component: the conversation does too.
let lastId = 0;

/** Asks questions and feeds the answers into the conversation, one at a time. */
export function useAnswer(
  key: string,
  dispatch: Dispatch<Action>,
  onUnauthorized: () => void,
): Answering {
  const stopRunning = useRef<(() => void) | undefined>(undefined);

  useEffect(() => () => stopRunning.current?.(), []);

  async function run(id: number, model: string, before: Message[], text: string): Promise<void> {
    const controller = new AbortController();
    const { signal } = controller;
    const collector = collectPerFrame<Frame>((frames) =>
      dispatch({ type: "received", id, frames }),
    );
    const stop = (): void => {
      controller.abort();
      collector.flush();
      dispatch({ type: "stopped", id });
    };
    stopRunning.current = stop;
    try {
      const messages = [...conversation(before), { role: "user" as const, content: text }];
      const body = await startAnswer(key, model, messages, signal);
      for await (const frame of readFrames(body)) {
        if (signal.aborted) return;
        collector.add(frame);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 401) {
        dispatch({ type: "withdrawn", id });
        onUnauthorized();
      } else {
        dispatch({ type: "failed", id, failure: error.failure });
      }
    } finally {
      collector.flush();
      if (stopRunning.current === stop) stopRunning.current = undefined;
    }
  }

  return {
    ask(model, before, text) {
      const id = ++lastId;
      dispatch({ type: "asked", id, model, text });
      void run(id, model, before, text);
    },
    stop() {
      stopRunning.current?.();
    },
  };
}
