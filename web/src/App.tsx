import { useCallback, useEffect, useState } from "react";

import { Chat, STORAGE_KEY } from "./Chat";
import { KeyForm } from "./KeyForm";
import { forgetKey, storedKey, storeKey, takeKeyFromAddress } from "./key";

/** The key from the link comes first: it is the newer one. Read once, before anything renders. */
const firstKey = takeKeyFromAddress() ?? storedKey();

export function App() {
  const [key, setKey] = useState(firstKey);
  const [rejected, setRejected] = useState(false);
  // Lives here, so that a key that stops working does not take what was written with it.
  const [draft, setDraft] = useState("");

  function use(newKey: string): void {
    storeKey(newKey);
    setRejected(false);
    setKey(newKey);
  }

  useEffect(() => {
    // A link with a key, opened in a tab that already shows the page, loads nothing.
    function takeNewKey(): void {
      const newKey = takeKeyFromAddress();
      if (newKey === undefined) return;
      setRejected(false);
      setKey(newKey);
    }
    window.addEventListener("hashchange", takeNewKey);
    return () => window.removeEventListener("hashchange", takeNewKey);
  }, []);

  const reject = useCallback(() => {
    forgetKey();
    setRejected(true);
    setKey(undefined);
  }, []);

  function forget(): void {
    forgetKey();
    setRejected(false);
    setKey(undefined);
    setDraft("");
    sessionStorage.removeItem(STORAGE_KEY);
  }

  if (key === undefined) return <KeyForm rejected={rejected} onKey={use} />;
  // A new key starts over with its own models, and ends a stream that runs under the old one.
  return (
    <Chat key={key} apiKey={key} draft={draft} onDraft={setDraft} onUnauthorized={reject} onForget={forget} />
  );
}
