import type { Message as AnyMessage, AssistantMessage, ToolCall as Call, Part } from "millstream/react";
import { textOf } from "millstream/react";
import { memo } from "react";

import { ErrorNote } from "./ErrorNote";
import { LazyMarkdown } from "./markdown/lazy";
import { Question } from "./Question";
import { ToolCall } from "./ToolCall";
import { usageParts } from "./usage";

interface Props {
  message: AnyMessage;
  /** What can be done with it now. */
  onRetry?: (() => void) | undefined;
  onEdit: (text: string, insteadOf: string) => Promise<void>;
  /** Its tool calls that wait for a result. */
  openCalls: readonly Call[];
  onResult: (callId: string, result: string) => void;
  busy: boolean;
}

/** Memoised: while an answer streams, the messages above it stay untouched. */
export const Message = memo(function Message({ message, onRetry, onEdit, openCalls, onResult, busy }: Props) {
  if (message.role === "tool") {
    return (
      <article className="message tool-call" data-testid="message" data-role="tool" aria-label="Tool result">
        <p className="tool-name">Tool result</p>
        <pre className="tool-arguments">{textOf(message)}</pre>
      </article>
    );
  }
  if (message.role !== "assistant") {
    return <Question message={message} onEdit={onEdit} busy={busy} />;
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
      <AnswerBody answer={message} openCalls={openCalls} onResult={onResult} />
      {onRetry !== undefined && (
        <button className="link retry" type="button" data-testid="retry" onClick={onRetry}>
          {retryWords(message)}
        </button>
      )}
    </article>
  );
});

function retryWords({ status, stoppedHere, error }: AssistantMessage): string {
  if (status === "done") return "Answer again";
  const isLost =
    ["stream_gone", "interrupted"].includes(error?.code ?? "") || (status === "stopped" && !stoppedHere);
  return isLost ? "Ask again" : "Try again";
}

interface BodyProps extends Pick<Props, "openCalls" | "onResult"> {
  answer: AssistantMessage;
}

function AnswerBody({ answer, openCalls, onResult }: BodyProps) {
  const usage = usageParts(answer);
  const wordless = answer.parts.every((part) => part.type === "reasoning" || !("text" in part) || !part.text);
  return (
    <>
      {answer.parts.map((part, i) => (
        <PartBlock
          // biome-ignore lint/suspicious/noArrayIndexKey: parts keep their places; new ones come last.
          key={i}
          part={part}
          onResult={openCalls.some((call) => call === part) ? onResult : undefined}
        />
      ))}
      {answer.status === "streaming" && answer.parts.length === 0 && <div className="text waiting" />}
      {answer.parts.some((part) => part.type === "refusal") && (
        <p className="notice">The model refused this request.</p>
      )}
      {answer.status === "stopped" && (
        <p className="notice">
          {answer.stoppedHere
            ? "Stopped. The answer is not complete."
            : "The server ended this answer before it was complete: it was shut down, or told to elsewhere. What has come is kept."}
        </p>
      )}
      {answer.heldBack && (
        <p className="notice" data-testid="held-back">
          {answer.status === "streaming"
            ? "The model is answering, and nothing of it comes through: something between this page and the server, such as a proxy that buffers, holds it back. It will come all at once."
            : "This answer came all at once. Something between this page and the server, such as a proxy that buffers, holds streams back."}
        </p>
      )}
      {answer.status === "done" && wordless && !answer.parts.some(isNoProse) && (
        <p className="notice">The model answered without words.</p>
      )}
      {answer.status === "failed" && answer.error !== undefined && <ErrorNote failure={answer.error} />}
      {usage.length > 0 && (
        <p className="usage" data-testid="usage">
          {usage.join(" · ")}
        </p>
      )}
    </>
  );
}

function isNoProse(part: Part): boolean {
  return part.type === "tool-call" || part.type === "file";
}

function PartBlock({ part, onResult }: { part: Part; onResult: Props["onResult"] | undefined }) {
  switch (part.type) {
    case "reasoning":
      return (
        <details className="reasoning">
          <summary>Reasoning</summary>
          <div className="text" dir="auto">
            {part.text}
          </div>
        </details>
      );
    case "tool-call":
      return <ToolCall call={part} onResult={onResult} />;
    case "file":
      return part.url.startsWith("data:image/") ? (
        <img className="picture" src={part.url} alt="Made by the model" />
      ) : (
        <p className="notice">The model made a file: {part.mediaType}</p>
      );
    default:
      return <LazyMarkdown text={part.text} />;
  }
}
