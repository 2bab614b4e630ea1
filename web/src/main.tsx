import { createRoot } from "react-dom/client";

import { App } from "./App";
import { storedKey } from "./key";
import { loadMarkdown } from "./markdown/lazy";
import "./style.css";

/** In milliseconds; then a stored conversation is shown as plain text until it can be more. */
const PATIENCE = 1000;

async function start(root: HTMLElement): Promise<void> {
  if (storedKey() !== undefined) {
    await Promise.race([loadMarkdown(), new Promise((resolve) => setTimeout(resolve, PATIENCE))]);
  }
  createRoot(root).render(<App />);
}

const root = document.getElementById("root");
if (root === null) throw new Error("the page has no #root");
void start(root);
