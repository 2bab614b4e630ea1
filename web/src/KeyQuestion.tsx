import type { KeyboardEvent } from "react";

import { focused } from "./focus";
import { composes } from "./keys";

interface Props {
  onUse(): void;
  onKeep(): void;
}

/** A link may come from anyone, an answer of a model too: what it carries is not taken without a word. */
export function KeyQuestion({ onUse, onKeep }: Props) {
  function keepOnEscape(event: KeyboardEvent): void {
    if (event.key !== "Escape" || composes(event.nativeEvent)) return;
    event.preventDefault(); // else it would stop an answer
    onKeep();
  }

  return (
    <div
      className="key-question"
      role="alertdialog"
      aria-labelledby="key-question"
      data-testid="key-question"
      onKeyDown={keepOnEscape}
    >
      <p id="key-question">
        This link has another API key. With it, a new conversation begins; this one stays with its key.
      </p>
      <div className="key-question-row">
        {/* This answer changes nothing. */}
        <button ref={focused} className="button" type="button" data-testid="keep-key" onClick={onKeep}>
          Keep my key
        </button>
        <button className="button primary" type="button" data-testid="use-key" onClick={onUse}>
          Use the other
        </button>
      </div>
    </div>
  );
}
