/** Where the API key is kept: in this tab, until it closes. */

import { store, stored } from "./tab";

const NAME = "millstream-key";

/** A key has to fit into a header: printable ASCII without spaces. */
export function isKey(text: string): boolean {
  return /^[!-~]{1,256}$/.test(text);
}

/** The key in a URL fragment `#key=…`, if there is one that can be used. */
export function keyInFragment(fragment: string): string | undefined {
  const key = new URLSearchParams(fragment.replace(/^#/, "")).get("key")?.trim();
  return key !== undefined && isKey(key) ? key : undefined;
}

/** Takes the key out of the address bar, so that no bookmark, history or screenshot keeps it. */
export function takeKeyFromAddress(): string | undefined {
  const key = keyInFragment(location.hash);
  if (new URLSearchParams(location.hash.slice(1)).has("key")) {
    history.replaceState(null, "", location.pathname + location.search);
  }
  return key;
}

export function storedKey(): string | undefined {
  return stored(NAME);
}

export function storeKey(key: string | undefined): void {
  store(NAME, key);
}

/** The name that a conversation is kept under: another key's is another one, and is not sent under this key. */
export function conversationOf(key: string): string {
  return `${CONVERSATIONS}${key.slice(-8)}`;
}

export const CONVERSATIONS = "millstream-chat-";
