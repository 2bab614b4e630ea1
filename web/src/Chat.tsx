import { useRef, useState } from "react";
import type { Dispatch } from "react";

import { Brand } from "./Brand";
import { isStreaming } from "./chat";
import type { Action, Chat as ChatState } from "./chat";
import { Composer } from "./Composer";
import { ErrorNote } from "./ErrorNote";
import { Message } from "./Message";
import { ModelSelect } from "./ModelSelect";
import { useAnswer } from "./useAnswer";
import { useFollowEnd } from "./useFollowEnd";
import { useModels } from "./useModels";

interface Props {
  apiKey: string;
  chat: ChatState;
  dispatch: Dispatch<Action>;
  onUnauthorized(): void;
  onForget(): void;
}

export function Chat({ apiKey, chat, dispatch, onUnauthorized, onForget }: Props) {
  const [models, askForModels] = useModels(apiKey, onUnauthorized);
  const [choice, setChoice] = useState<string>();
  const { ask, stop } = useAnswer(apiKey, dispatch, onUnauthorized);
  const scroller = useRef<HTMLElement>(null);
  const { follow } = useFollowEnd(scroller, chat.messages);

  const model = choice ?? (models.state === "ready" ? models.models[0]?.id : undefined);
  const streaming = isStreaming(chat);

  function send(): void {
    if (model === undefined) return;
    follow();
    ask(model, chat.messages, chat.draft.trim());
  }

  function startOver(): void {
    stop();
    follow();
    dispatch({ type: "cleared" });
  }

  return (
    <div className="page">
      <header className="header">
        <div className="header-row">
          <Brand />
          <ModelSelect models={models} chosen={model} onChoose={setChoice} />
          <button
            className="button"
            type="button"
            data-testid="new-chat"
            aria-label="New chat"
            disabled={chat.messages.length === 0}
            onClick={startOver}
          >
            New<span className="wide-only"> chat</span>
          </button>
        </div>
      </header>

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
          {chat.messages.length === 0 && models.state !== "failed" && (
            <Welcome none={models.state === "ready" && models.models.length === 0} />
          )}
          {chat.messages.map((message) => (
            <Message key={`${message.role}-${message.id}`} message={message} />
          ))}
        </div>
      </main>

      <footer className="footer">
        <div className="column">
          <Composer
            draft={chat.draft}
            streaming={streaming}
            ready={model !== undefined}
            onDraft={(draft) => dispatch({ type: "typed", draft })}
            onSend={send}
            onStop={stop}
          />
          <div className="footnote">
            <span className="hint">
              {streaming ? "Escape stops the answer" : "Shift+Enter starts a new line"}
            </span>
            <button className="link" type="button" data-testid="forget-key" onClick={onForget}>
              Forget key
            </button>
          </div>
        </div>
      </footer>
    </div>
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
