import { renderToString } from "react-dom/server";
import { expect, it } from "vitest";

import { textOf, useStreamingChat } from "../src/react";

function Page() {
  const { messages, status } = useStreamingChat({
    storageKey: "chat",
    messages: [{ role: "user", id: "1", parts: [{ type: "text", text: "Hi" }] }],
    fetch: () => Promise.reject(new Error("nothing may be asked for here")),
  });
  return <p>{`${messages.map(textOf).join()} ${status}`}</p>;
}

it("renders on a server, where there is no page and nothing is asked for", () => {
  expect(renderToString(<Page />)).toBe("<p>Hi idle</p>");
});
