import type { StreamError } from "millstream/react";

interface Props {
  failure: StreamError;
}

export function ErrorNote({ failure }: Props) {
  return (
    <p className="error" data-testid="error">
      <code className="error-code">{failure.code}</code>
      <span className="error-message">{failure.message}</span>
      {failure.retryable && <span className="error-hint">Trying again may help.</span>}
      {failure.details.requestId !== undefined && (
        <span className="error-request">Request {failure.details.requestId}</span>
      )}
    </p>
  );
}
