import type { ChatStatus, Part, ToolCall } from "millstream/react";
import { openCalls, StreamError, useStreamingChat } from "millstream/react";
import { useCallback, useMemo, useRef, useState } from "react";

import { SERVER } from "./api";
import { Brand } from "./Brand";
import { Composer } from "./Composer";
import { ErrorNote } from "./ErrorNote";
import { conversationOf } from "./key";
import { Message } from "./Message";
import { ModelSelect } from "./ModelSelect";
import { store, stored } from "./tab";
import { useFollowEnd } from "./useFollowEnd";
import { useModels } from "./useModels";

interface Props {
  apiKey: string;
  draft: string;
  onDraft(draft: string): void;
  onUnauthorized(): void;
  onForget(): void;
}

/** Long enough for a reload, short enough for a tab that was closed. */
const LEAVE = { graceSeconds: 5 };
const MODEL = "millstream-model";

export function Chat({ apiKey, draft, onDraft, onUnauthorized, onForget }: Props) {
  const [models, askForModels] = useModels(apiKey, onUnauthorized);
  const [choice, setChoice] = useState(() => stored(MODEL));
  const known = models.state === "ready" ? models.models : [];
  const model = known.find(({ id }) => id === choice)?.id ?? known[0]?.id;
  /** Why a question was not sent. */
  const [refused, setRefused] = useState<StreamError>();
  const { messages, status, busy, send, stop, regenerate, addToolResult, setMessages } = useStreamingChat({
    url: SERVER,
    getToken: () => apiKey,
    request: { model },
    storageKey: conversationOf(apiKey),
    onLeave: LEAVE,
    onError: (error) => error.code === "unauthorized" && onUnauthorized(),
  });
  const scroller = useRef<HTMLElement>(null);
  const input = useRef<HTMLTextAreaElement>(null);
  const { away, follow } = useFollowEnd(scroller);

  function choose(id: string): void {
    setChoice(id);
    store(MODEL, id);
  }

  /** Asks a question, in the place of the one with that id if there is one. What is refused stays where it was written. */
  const ask = useCallback(
    async (text: string, insteadOf?: string): Promise<void> => {
      setRefused(undefined);
      try {
        await Promise.race([send(text, insteadOf), undefined]); // it is refused at once, and answered later
        if (insteadOf === undefined) onDraft("");
        follow();
        input.current?.focus(); // what it was written in, or the button that was pressed, goes away
      } catch (error) {
        if (!(error instanceof StreamError)) throw error;
        setRefused(error);
      }
    },
    [send, onDraft, follow],
  );
  const onRetry = useCallback(() => {
    void regenerate();
    input.current?.focus(); // the button that was pressed goes away
  }, [regenerate]);

  const open = useMemo(() => (busy ? [] : openCalls(messages)), [busy, messages]);
  const onResult = useCallback(
    (callId: string, result: string) => {
      void addToolResult(callId, result);
      input.current?.focus(); // the field that was filled in goes away
    },
    [addToolResult],
  );

  function startOver(): void {
    setRefused(undefined);
    follow();
    void stop();
    setMessages([]);
  }

  return (
    <div className="page">
      <header className="header">
        <div className="header-row">
          <Brand />
          <Connection status={status} />
          <ModelSelect models={models} chosen={model} onChoose={choose} />
          <button
            className="button"
            type="button"
            data-testid="new-chat"
            aria-label="New chat"
            disabled={messages.length === 0}
            onClick={startOver}
          >
            New<span className="wide-only"> chat</span>
          </button>
        </div>
      </header>

      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: the keyboard scrolls only what can be focused. */}
      <main className="conversation" ref={scroller} tabIndex={0} aria-label="Conversation">
        <div className="column" role="log" aria-live="polite" aria-label="Messages">
          {models.state === "failed" && (
            <div className="models-failed">
              <ErrorNote failure={models.failure} />
              <button className="button" type="button" onClick={askForModels}>
                Ask for the models again
              </button>
            </div>
          )}
          {messages.length === 0 && models.state !== "failed" && (
            <Welcome none={models.state === "ready" && models.models.length === 0} />
          )}
          {messages.map((message, i) => (
            <Message
              key={message.id}
              message={message}
              onEdit={ask}
              openCalls={message.role === "assistant" && message.parts.some(isOneOf(open)) ? open : NONE}
              onResult={onResult}
              busy={busy}
              onRetry={!busy && i === messages.length - 1 ? onRetry : undefined}
            />
          ))}
        </div>
      </main>

      <footer className="footer">
        <div className="column">
          {away && (
            <button className="button newest" type="button" data-testid="newest" onClick={follow}>
              <span aria-hidden="true">↓</span> {busy ? "The answer goes on" : "Newest"}
            </button>
          )}
          {refused !== undefined && <ErrorNote failure={refused} />}
          <Composer
            input={input}
            draft={draft}
            streaming={busy}
            ready={model !== undefined}
            onDraft={onDraft}
            onSend={() => void ask(draft.trim())}
            onStop={() => void stop()}
          />
          <div className="footnote">
            <span className="hint">{busy ? "Escape stops the answer" : "Shift+Enter starts a new line"}</span>
            <button className="link" type="button" data-testid="forget-key" onClick={onForget}>
              Forget key
            </button>
          </div>
        </div>
      </footer>
    </div>
  );
}

const NONE: readonly ToolCall[] = [];

function isOneOf(calls: readonly ToolCall[]): (part: Part) => boolean {
  return (part) => calls.some((call) => call === part);
}

const LIGHTS: Partial<Record<ChatStatus, string>> = {
  connecting: "Connecting",
  streaming: "Streaming",
  reconnecting: "Reconnecting",
};

/** Tells an answer that streams from one whose connection is being looked for. */
function Connection({ status }: { status: ChatStatus }) {
  const light = LIGHTS[status];
  return (
    <span className="connection" data-testid="connection" data-status={status} role="status">
      {light !== undefined && <span className="connection-text">{light}</span>}
    </span>
  );
}

function Welcome({ none }: { none: boolean }) {
  return (
    <div className="welcome">
      <p className="welcome-title">{none ? "No model is ready" : "What would you like to ask?"}</p>
      <p className="welcome-text">
        {none
          ? "Give the server a provider’s key, then load this page again."
          : "The answer appears as the model writes it, with the tokens and the cost underneath."}
      </p>
    </div>
  );
}
