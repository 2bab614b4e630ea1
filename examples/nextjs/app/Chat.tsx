"use client";

import { useState } from "react";

import { keepToken, textOf, useStreamingChat } from "millstream/react";

const getToken = keepToken(async () => {
  const answer = await fetch("/api/token", { method: "POST" });
  if (!answer.ok) throw new Error("no token");
  return answer.text();
});

export function Chat({ url }: { url: string }) {
  const [question, setQuestion] = useState("");
  const [refused, setRefused] = useState<Error>();
  const { messages, status, busy, error, send, stop, regenerate } = useStreamingChat({
    url,
    getToken,
    storageKey: "chat", // a reload resumes the answer
  });

  function ask() {
    setQuestion("");
    setRefused(undefined);
    send(question).catch((reason: Error) => {
      setQuestion(question); // too long, or one waits already: nothing of it is lost
      setRefused(reason);
    });
  }

  return (
    <main>
      <h1>Chat</h1>
      {messages.map((message) => (
        <article key={message.id} data-role={message.role}>
          <p style={{ whiteSpace: "pre-wrap" }}>{textOf(message)}</p>
          {message.role === "assistant" && message.usage && (
            <small>
              {message.usage.promptTokens} + {message.usage.completionTokens} tokens
              {message.usage.costUsd !== null && `, $${message.usage.costUsd}`}
            </small>
          )}
        </article>
      ))}
      {error && (
        <p role="alert">
          {error.message} <button onClick={() => regenerate()}>Try again</button>
        </p>
      )}
      {refused && <p role="alert">{refused.message}</p>}
      <form
        onSubmit={(event) => {
          event.preventDefault();
          ask();
        }}
      >
        <input
          aria-label="Question"
          value={question}
          onChange={(event) => setQuestion(event.target.value)}
        />
        {busy ? (
          <button type="button" onClick={() => stop()}>
            Stop
          </button>
        ) : (
          <button disabled={question === ""}>Ask</button>
        )}
        <small role="status"> {status}</small>
      </form>
    </main>
  );
}
