import type { ToolCall as Call } from "millstream/react";
import { useState } from "react";

interface Props {
  call: Call;
  /** Where the model waits for what the tool says. */
  onResult?: ((callId: string, result: string) => void) | undefined;
}

/** What a model wants a tool to do, and a place for what the tool said: here a person is the tool. */
export function ToolCall({ call, onResult }: Props) {
  const [result, setResult] = useState("");
  return (
    <div className="tool-call" data-testid="tool-call">
      <p className="tool-name">
        Tool call <code>{call.name}</code>
      </p>
      {call.arguments !== "" && <pre className="tool-arguments">{indented(call.arguments)}</pre>}
      {onResult !== undefined && (
        <form
          className="composer tool-result"
          onSubmit={(event) => {
            event.preventDefault();
            onResult(call.id, result);
          }}
        >
          <textarea
            className="input"
            data-testid="tool-result"
            aria-label={`What ${call.name} said`}
            placeholder="What the tool said"
            rows={1}
            dir="auto"
            value={result}
            onChange={(event) => setResult(event.target.value)}
          />
          <button className="button primary" type="submit" data-testid="send-result">
            Send
          </button>
        </form>
      )}
    </div>
  );
}

/** JSON over several lines; as it is where it is none, or not yet. */
function indented(json: string): string {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}
