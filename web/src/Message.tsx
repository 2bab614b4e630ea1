import { memo } from "react";

import type { Answer, Message as AnyMessage, ToolCall } from "./chat";
import { ErrorNote } from "./ErrorNote";
import { usageParts } from "./usage";

interface Props {
  message: AnyMessage;
}

/** Memoised: while an answer streams, the messages above it stay untouched. */
export const Message = memo(function Message({ message }: Props) {
  if (message.role === "user") {
    return (
      <article
        className="message question"
        data-testid="message"
        data-role="user"
        data-status="done"
        aria-label="You"
      >
        <div className="text">{message.text}</div>
      </article>
    );
  }
  return (
    <article
      className="message answer"
      data-testid="message"
      data-role="assistant"
      data-status={message.status}
      aria-label="Answer"
      aria-busy={message.status === "streaming"}
    >
      <AnswerBody answer={message} />
    </article>
  );
});

function AnswerBody({ answer }: { answer: Answer }) {
  const usage = usageParts(answer);
  return (
    <>
      {answer.reasoning !== "" && (
        <details className="reasoning">
          <summary>Reasoning</summary>
          <div className="text">{answer.reasoning}</div>
        </details>
      )}
      {(answer.text !== "" || answer.status === "streaming") && (
        <div className="text">{answer.text}</div>
      )}
      {answer.toolCalls.map((call) => (
        <ToolCallBlock key={call.index} call={call} />
      ))}
      {answer.refused && <p className="notice">The model refused this request.</p>}
      {answer.status === "stopped" && <p className="notice">Stopped. The answer is not complete.</p>}
      {answer.status === "interrupted" && (
        <p className="notice warning">
          Interrupted: the connection ended before the answer did. The answer is not complete.
        </p>
      )}
      {answer.status === "done" && answer.text === "" && answer.toolCalls.length === 0 && (
        <p className="notice">The model answered without words.</p>
      )}
      {answer.failure !== undefined && <ErrorNote failure={answer.failure} />}
      {usage.length > 0 && (
        <p className="usage" data-testid="usage">
          {usage.join(" · ")}
        </p>
      )}
    </>
  );
}

function ToolCallBlock({ call }: { call: ToolCall }) {
  return (
    <div className="tool-call">
      <p className="tool-name">
        Tool call <code>{call.name}</code>
      </p>
      {call.arguments !== "" && <pre className="tool-arguments">{call.arguments}</pre>}
    </div>
  );
}
