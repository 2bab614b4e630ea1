import type { SyntheticEvent } from "react";
import { useState } from "react";

import { Brand } from "./Brand";
import { focused } from "./focus";
import { isKey } from "./key";

interface Props {
  rejected: boolean;
  onKey(key: string): void;
}

export function KeyForm({ rejected, onKey }: Props) {
  const [text, setText] = useState("");
  const [unusable, setUnusable] = useState(false);
  const key = text.trim();

  function submit(event: SyntheticEvent): void {
    event.preventDefault();
    if (key === "") return;
    if (isKey(key)) onKey(key);
    else setUnusable(true);
  }

  const problem = unusable
    ? "That is not a key: it has characters that no key has."
    : rejected
      ? "The server did not accept that key. It may be mistyped, revoked or from another server."
      : undefined;

  return (
    <main className="entrance">
      <form className="key-form" data-testid="key-form" onSubmit={submit}>
        <Brand />
        {problem !== undefined && (
          <p className="error" data-testid="error" role="alert" id="key-problem">
            <code className="error-code">{unusable ? "not_a_key" : "unauthorized"}</code>
            <span className="error-message">{problem}</span>
          </p>
        )}
        <label className="key-label" htmlFor="key">
          API key
        </label>
        <div className="key-row">
          <input
            ref={focused}
            id="key"
            className="key-input"
            type="password"
            value={text}
            onChange={(event) => {
              setText(event.target.value);
              setUnusable(false);
            }}
            placeholder="ms_live_…"
            autoComplete="off"
            autoCapitalize="none"
            spellCheck={false}
            aria-invalid={problem !== undefined}
            aria-describedby={problem === undefined ? "key-help" : "key-problem key-help"}
          />
          <button className="button primary" type="submit" disabled={key === ""}>
            Continue
          </button>
        </div>
        <div className="key-help" id="key-help">
          <p>
            The server prints a key and a link with it when it starts for the first time. Make another with
          </p>
          <pre className="command">millstream keys create --name me</pre>
          <p>The key stays in this tab until you close it and is sent to this server only.</p>
        </div>
      </form>
    </main>
  );
}
