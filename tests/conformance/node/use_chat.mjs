// `useChat` on a page. The test calls `ask(request)`; what it gets back is what stands on the page.

import { useChat } from "@ai-sdk/react";
import { createElement } from "react";
import { createRoot } from "react-dom/client";
import { chatOf, converse } from "./chat.mjs";
import { Said } from "./said.mjs";

function Page({ chat, resume }) {
  const { messages, status, error } = useChat({ chat, resume });
  const text = (message) => message.parts.map((part) => (part.type === "text" ? part.text : "")).join("");
  return [
    ...messages.map((message) => createElement("p", { key: message.id, "data-role": message.role }, text(message))),
    createElement("output", { key: "status" }, status),
    createElement("em", { key: "error" }, error?.message ?? ""),
  ];
}

function show(chat, resume = false) {
  const place = document.createElement("main");
  document.body.replaceChildren(place);
  createRoot(place).render(createElement(Page, { chat, resume }));
}

window.ask = async (request) => {
  const said = new Said();
  const chat = chatOf(location.origin, request, said);
  show(chat);
  await converse(chat, request, said);
  await new Promise((resolve) => setTimeout(() => requestAnimationFrame(resolve)));
  const shown = [...document.querySelectorAll("[data-role=assistant]")].at(-1);
  said.text = shown?.textContent ?? "";
  return said;
};

/** A page that is opened on a chat whose answer is being given. */
window.watch = (id, key) => {
  const request = { op: "ask", key, model: "", tools: false, image: false, stop_after: null };
  const chat = chatOf(location.origin, request, new Said(), id);
  show(chat, true);
};
