import type { KeyboardEvent } from "react";
import { useEffect, useRef } from "react";

interface Props {
  draft: string;
  streaming: boolean;
  ready: boolean;
  onDraft(draft: string): void;
  onSend(): void;
  onStop(): void;
}

export function Composer({ draft, streaming, ready, onDraft, onSend, onStop }: Props) {
  const input = useRef<HTMLTextAreaElement>(null);
  const sendable = ready && !streaming && draft.trim() !== "";

  useEffect(() => {
    if (!streaming) return;
    function stopOnEscape(event: globalThis.KeyboardEvent): void {
      // Escape also closes the suggestions of an input method and an open list of options.
      if (event.key === "Escape" && !event.isComposing && !event.defaultPrevented) onStop();
    }
    window.addEventListener("keydown", stopOnEscape);
    return () => window.removeEventListener("keydown", stopOnEscape);
  }, [streaming, onStop]);

  function sendOnEnter(event: KeyboardEvent): void {
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
    event.preventDefault();
    if (sendable) onSend();
  }

  // The button that was pressed goes away; the keyboard belongs to the text again.
  function act(action: () => void): void {
    action();
    input.current?.focus();
  }

  return (
    <div className="composer">
      <textarea
        ref={input}
        className="input"
        data-testid="input"
        aria-label="Your message"
        placeholder="Write a message"
        rows={1}
        value={draft}
        onChange={(event) => onDraft(event.target.value)}
        onKeyDown={sendOnEnter}
        // biome-ignore lint/a11y/noAutofocus: writing is what one comes to this page for.
        autoFocus
      />
      {/* Two elements, told apart by key: a press that began on Stop must never end on Send. */}
      {streaming ? (
        <button key="stop" className="button" type="button" data-testid="stop" onClick={() => act(onStop)}>
          Stop
        </button>
      ) : (
        <button
          key="send"
          className="button primary"
          type="button"
          data-testid="send"
          disabled={!sendable}
          onClick={() => act(onSend)}
        >
          Send
        </button>
      )}
    </div>
  );
}
