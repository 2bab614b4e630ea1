/** A text that this tab keeps over a reload: in its `sessionStorage`, or in IndexedDB where it is too long for that. */

import { randomKey } from "./stream";

const DATABASE = "millstream";
const TEXTS = "texts";
const DAY_MS = 86_400_000;
/** Stands in `sessionStorage` for a text that is in the database, before its key there. */
const ELSEWHERE = "elsewhere:";
/** The id of this tab, while it has no page. */
const LEFT = "millstream-left";

let tab: string | undefined;

/** Keeps it for as long as the tab is there; a browser may refuse, and then it lasts as long as the page. */
export function keep(name: string, text: string): void {
  try {
    const key = tabId() + name;
    const before = sessionStorage.getItem(name);
    try {
      sessionStorage.setItem(name, text);
      if (before === ELSEWHERE + key) void inTexts((texts) => texts.delete(key));
    } catch {
      sessionStorage.setItem(name, ELSEWHERE + key);
      void inTexts((texts) => texts.put({ text, at: Date.now() }, key));
    }
  } catch {
    return;
  }
}

export function kept(name: string): string | undefined | Promise<string | undefined> {
  try {
    const own = ELSEWHERE + tabId() + name;
    const stored = sessionStorage.getItem(name) ?? undefined;
    if (!stored?.startsWith(ELSEWHERE)) return stored;
    return inTexts((texts) => texts.get(stored.slice(ELSEWHERE.length))).then((found) => {
      const text = (found as { text: string } | undefined)?.text;
      // Where it is another tab's, which this one is a copy of, it has its own from now on.
      if (text !== undefined && stored !== own && sessionStorage.getItem(name) === stored) keep(name, text);
      return text;
    });
  } catch {
    return undefined;
  }
}

/** The id that this tab has had since its first page. A tab that is duplicated has a page: its copy does not find it. */
function tabId(): string {
  if (tab !== undefined) return tab;
  const id = sessionStorage.getItem(LEFT) ?? randomKey();
  sessionStorage.removeItem(LEFT);
  globalThis.addEventListener?.("pagehide", () => {
    try {
      sessionStorage.setItem(LEFT, id);
    } catch {
      return; // it is full: the next page has another id, and makes its own copy
    }
  });
  globalThis.addEventListener?.("pageshow", () => sessionStorage.removeItem(LEFT));
  tab = id;
  return id;
}

/** The result of `ask`; undefined where the database cannot be had. */
function inTexts(ask: (texts: IDBObjectStore) => IDBRequest): Promise<unknown> {
  const asking = new Promise((resolve, reject) => {
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(TEXTS);
    opening.onerror = reject;
    opening.onsuccess = () => {
      const database = opening.result;
      const transaction = database.transaction(TEXTS, "readwrite");
      const texts = transaction.objectStore(TEXTS);
      const asked = ask(texts);
      forgetOld(texts);
      transaction.oncomplete = () => {
        resolve(asked.result);
        database.close();
      };
      transaction.onabort = reject;
    };
  });
  return asking.catch(() => undefined);
}

/** Those of tabs that were closed long ago. */
function forgetOld(texts: IDBObjectStore): void {
  const walking = texts.openCursor();
  walking.onsuccess = () => {
    const cursor = walking.result;
    if (cursor === null) return;
    if (Date.now() - (cursor.value as { at: number }).at > 7 * DAY_MS) cursor.delete();
    cursor.continue();
  };
}
