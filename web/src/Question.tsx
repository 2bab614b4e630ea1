import type { UserMessage } from "millstream/react";
import { textOf } from "millstream/react";
import type { KeyboardEvent } from "react";
import { useRef, useState } from "react";

import { focused } from "./focus";
import { composes, sends } from "./keys";

interface Props {
  message: UserMessage;
  onEdit: (text: string, insteadOf: string) => Promise<void>;
  busy: boolean;
}

/** A question, which is rewritten where it stands, and goes when the new one is taken. */
export function Question({ message, onEdit, busy }: Props) {
  const [text, setText] = useState<string>();
  const button = useRef<HTMLButtonElement>(null);

  function close(): void {
    setText(undefined);
    // The keyboard goes back to where it came from, once that is there again.
    requestAnimationFrame(() => button.current?.focus());
  }

  return (
    <article
      className="message question"
      data-testid="message"
      data-role="user"
      data-status="done"
      aria-label="You"
    >
      {text === undefined ? (
        <>
          <div className="text" dir="auto">
            {textOf(message)}
          </div>
          <button
            ref={button}
            className="link edit"
            type="button"
            data-testid="edit"
            disabled={busy}
            onClick={() => setText(textOf(message))}
          >
            Edit
          </button>
        </>
      ) : (
        <Editor
          text={text}
          sendable={!busy && text.trim() !== ""}
          onText={setText}
          onCancel={close}
          onSend={() => void onEdit(text.trim(), message.id)}
        />
      )}
    </article>
  );
}

interface EditorProps {
  text: string;
  sendable: boolean;
  onText(text: string): void;
  onCancel(): void;
  onSend(): void;
}

function Editor({ text, sendable, onText, onCancel, onSend }: EditorProps) {
  function keyPressed(event: KeyboardEvent): void {
    if (event.key === "Escape" && !composes(event.nativeEvent)) {
      event.preventDefault(); // else it would stop an answer
      onCancel();
    } else if (sends(event)) {
      event.preventDefault();
      if (sendable) onSend();
    }
  }

  return (
    <div className="editor">
      <textarea
        ref={focused}
        className="input"
        data-testid="edited"
        aria-label="Your message, rewritten"
        dir="auto"
        value={text}
        onChange={(event) => onText(event.target.value)}
        onKeyDown={keyPressed}
        onFocus={(event) => event.target.setSelectionRange(text.length, text.length)}
      />
      <div className="editor-row">
        <span className="hint">Sending forgets what came after it</span>
        <button className="button" type="button" data-testid="cancel-edit" onClick={onCancel}>
          Cancel
        </button>
        <button
          className="button primary"
          type="button"
          data-testid="send-edit"
          disabled={!sendable}
          onClick={onSend}
        >
          Send
        </button>
      </div>
    </div>
  );
}
