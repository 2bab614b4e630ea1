import type { Failure } from "./stream";

interface Props {
  failure: Failure;
}

export function ErrorNote({ failure }: Props) {
  return (
    <p className="error" data-testid="error">
      <code className="error-code">{failure.code}</code>
      <span className="error-message">{failure.message}</span>
      {failure.retryable && <span className="error-hint">Trying again may help.</span>}
      {failure.requestId !== undefined && (
        <span className="error-request">Request {failure.requestId}</span>
      )}
    </p>
  );
}
