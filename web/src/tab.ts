/** What this tab keeps until it closes. A browser may refuse; then it lasts as long as the page. */

import { Chat } from "millstream/react";

export function stored(name: string): string | undefined {
  try {
    return sessionStorage.getItem(name) ?? undefined;
  } catch {
    return undefined;
  }
}

export function store(name: string, text: string | undefined): void {
  try {
    if (text === undefined || text === "") sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, text);
  } catch {
    return;
  }
}

/** Forgets the conversations under such names, also what lies in a database of them. */
export function forgetChats(prefix: string): void {
  try {
    for (const name of Object.keys(sessionStorage)) {
      if (!name.startsWith(prefix)) continue;
      new Chat({ storageKey: name }).setMessages([]);
      sessionStorage.removeItem(name);
    }
  } catch {
    return;
  }
}
