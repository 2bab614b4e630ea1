/** What a key press means. */

import type { KeyboardEvent } from "react";

/**
 * Whether an input method has the key: Enter takes a candidate, Escape drops it. Safari ends the composition before
 * it reports the key (WebKit bug 165004) and tells by the code 229 alone.
 */
export function composes(event: globalThis.KeyboardEvent): boolean {
  return event.isComposing || event.keyCode === 229;
}

/** Enter sends, Shift+Enter starts a line. */
export function sends(event: KeyboardEvent): boolean {
  return event.key === "Enter" && !event.shiftKey && !composes(event.nativeEvent);
}
