import type { KeyboardEvent, RefObject } from "react";
import { useEffect, useState } from "react";

import { composes, sends } from "./keys";

interface Props {
  input: RefObject<HTMLTextAreaElement | null>;
  draft: string;
  streaming: boolean;
  ready: boolean;
  onDraft(draft: string): void;
  onSend(): void;
  onStop(): void;
}

export function Composer({ input, draft, streaming, ready, onDraft, onSend, onStop }: Props) {
  const sendable = ready && !streaming && draft.trim() !== "";
  const stoppable = useStays(streaming);

  useEffect(() => input.current?.focus(), [input]);

  useEffect(() => {
    if (!streaming) return;
    function stopOnEscape(event: globalThis.KeyboardEvent): void {
      // Escape also closes the suggestions of an input method and an open list of options.
      const isOfList = event.target instanceof HTMLSelectElement;
      if (event.key === "Escape" && !composes(event) && !event.defaultPrevented && !isOfList) onStop();
    }
    window.addEventListener("keydown", stopOnEscape);
    return () => window.removeEventListener("keydown", stopOnEscape);
  }, [streaming, onStop]);

  function sendOnEnter(event: KeyboardEvent): void {
    if (!sends(event)) return;
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
      />
      {/* Two elements, told apart by key: a press that began on Stop must never end on Send. */}
      {streaming ? (
        <button
          key="stop"
          className="button stop"
          type="button"
          data-testid="stop"
          disabled={!stoppable}
          onClick={() => act(onStop)}
        >
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

/** Longer than a double click takes. */
const DOUBLE_CLICK_MS = 500;

/**
 * Whether Stop has been there long enough to be meant. It comes up where Send was: the second press of a double click
 * would stop the answer that the first one asked for.
 */
function useStays(shown: boolean): boolean {
  const [stays, setStays] = useState(false);
  useEffect(() => {
    setStays(false);
    if (!shown) return;
    const timer = setTimeout(() => setStays(true), DOUBLE_CLICK_MS);
    return () => clearTimeout(timer);
  }, [shown]);
  return stays;
}
