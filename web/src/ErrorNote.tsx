import type { StreamError } from "millstream/react";

interface Props {
  failure: StreamError;
}

/** What a person can make of it; other messages are words for people already. */
const WORDS: Record<string, string> = {
  interrupted: "The answer broke off: the server that wrote it is gone. What has come is kept.",
  stream_gone: "The server was restarted, and the rest of this answer is lost. What has come is kept.",
  draining: "The server is being restarted.",
  too_large: "This is too long to be sent. A shorter question, or a new chat, may fit.",
  unreachable: "The server cannot be reached. Is it running, and are you online?",
};

export function ErrorNote({ failure }: Props) {
  const words = WORDS[failure.code];
  return (
    <p className="error" data-testid="error" role="alert">
      <span className="error-message">{words ?? failure.message}</span>
      {failure.retryable && words === undefined && <span className="error-hint">Trying again may help.</span>}
      <code className="error-code">
        {failure.code}
        {words !== undefined && `: ${failure.message}`}
      </code>
      {failure.details.requestId !== undefined && (
        <span className="error-request">Request {failure.details.requestId}</span>
      )}
    </p>
  );
}
