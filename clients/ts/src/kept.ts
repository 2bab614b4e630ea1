/** A text that this tab keeps over a reload: in its `sessionStorage`, or in IndexedDB where it is too long for that. */

const DATABASE = "millstream";
const TEXTS = "texts";
const DAY_MS = 86_400_000;
/** Stands in `sessionStorage` for a text that is in the database. */
const ELSEWHERE = /^elsewhere:([0-9a-f]+)$/;

/** Keeps it for as long as the tab is there; a browser may refuse, and then it lasts as long as the page. */
export function keep(name: string, text: string, newId: () => string): void {
  try {
    const before = ELSEWHERE.exec(sessionStorage.getItem(name) ?? "")?.[1];
    try {
      sessionStorage.setItem(name, text);
      if (before !== undefined) void inTexts((texts) => texts.delete(before));
    } catch {
      const id = before ?? newId();
      sessionStorage.setItem(name, `elsewhere:${id}`);
      void inTexts((texts) => texts.put({ text, at: Date.now() }, id));
    }
  } catch {
    return;
  }
}

export function kept(name: string): string | undefined | Promise<string | undefined> {
  try {
    const text = sessionStorage.getItem(name) ?? undefined;
    const id = ELSEWHERE.exec(text ?? "")?.[1];
    return id === undefined ? text : inTexts((texts) => texts.get(id)).then(textIn);
  } catch {
    return undefined;
  }
}

function textIn(found: unknown): string | undefined {
  return (found as { text: string } | undefined)?.text;
}

/** The result of `ask`; undefined where the database cannot be had. */
function inTexts(ask: (texts: IDBObjectStore) => IDBRequest): Promise<unknown> {
  return new Promise((resolve) => {
    if (typeof indexedDB === "undefined") return resolve(undefined);
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(TEXTS);
    opening.onerror = () => resolve(undefined);
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
      transaction.onabort = () => resolve(undefined);
      database.onversionchange = () => database.close();
    };
  });
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
