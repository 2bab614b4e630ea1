import { useCallback, useEffect, useLayoutEffect, useState } from "react";

import { Chat } from "./Chat";
import { KeyForm } from "./KeyForm";
import { KeyQuestion } from "./KeyQuestion";
import { CONVERSATIONS, storedKey, storeKey, takeKeyFromAddress } from "./key";
import { loadMarkdown } from "./markdown/lazy";
import { forgetChats, store, stored } from "./tab";

const DRAFT = "millstream-draft";
/** Characters; a longer one would be copied with every key that is pressed. */
const LONGEST_DRAFT = 100_000;

// Read once, before anything renders.
const firstKey = storedKey();
const firstOffer = takeKeyFromAddress();

export function App() {
  const [key, setKey] = useState(firstKey ?? firstOffer);
  /** A key from a link, while there is another one. */
  const [offer, setOffer] = useState(firstKey === undefined ? undefined : firstOffer);
  const [rejected, setRejected] = useState(false);
  // Lives here, so that a key that stops working does not take what was written with it.
  const [draft, setDraft] = useState(() => stored(DRAFT) ?? "");

  // Before the page is painted: who reloads at once finds it again.
  useLayoutEffect(() => store(DRAFT, draft.length > LONGEST_DRAFT ? undefined : draft), [draft]);
  useEffect(() => storeKey(key), [key]);

  // An answer comes soon.
  useEffect(() => void (key !== undefined && loadMarkdown()), [key]);

  const use = useCallback((newKey: string): void => {
    setRejected(false);
    setOffer(undefined);
    setKey(newKey);
  }, []);

  useEffect(() => {
    // A link with a key, opened in a tab that already shows the page, loads nothing.
    function takeNewKey(): void {
      const newKey = takeKeyFromAddress();
      if (newKey === undefined) return;
      if (key === undefined) use(newKey);
      else setOffer(newKey);
    }
    window.addEventListener("hashchange", takeNewKey);
    return () => window.removeEventListener("hashchange", takeNewKey);
  }, [key, use]);

  const reject = useCallback(() => {
    setRejected(true);
    setKey(undefined);
  }, []);

  function forget(): void {
    setRejected(false);
    setKey(undefined);
    setDraft("");
    forgetChats(CONVERSATIONS);
  }

  if (key === undefined && offer === undefined) return <KeyForm rejected={rejected} onKey={use} />;
  return (
    <>
      {offer !== undefined && offer !== key && (
        <KeyQuestion onUse={() => use(offer)} onKeep={() => setOffer(undefined)} />
      )}
      {/* A new key starts over with its own models and its own conversation. */}
      {key !== undefined && (
        <Chat
          key={key}
          apiKey={key}
          draft={draft}
          onDraft={setDraft}
          onUnauthorized={reject}
          onForget={forget}
        />
      )}
    </>
  );
}
