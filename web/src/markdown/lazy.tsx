/** The part of the page that renders Markdown: a third of it, and of no use before there is a key. */

import type { ComponentType } from "react";
import { useEffect, useState } from "react";

type Shown = ComponentType<{ text: string }>;

let loaded: Shown | undefined;

/** Loads it, once. */
export async function loadMarkdown(): Promise<Shown> {
  try {
    loaded ??= (await import("./Markdown")).Markdown;
    return loaded;
  } catch {
    return PlainText; // it could not be had: the server has another version by now
  }
}

export function LazyMarkdown({ text }: { text: string }) {
  const [Markdown, setMarkdown] = useState<Shown>(() => loaded ?? PlainText);
  useEffect(() => {
    if (loaded === undefined) void loadMarkdown().then((found) => setMarkdown(() => found));
  }, []);
  return <Markdown text={text} />;
}

function PlainText({ text }: { text: string }) {
  return (
    <div className="markdown text" dir="auto">
      {text}
    </div>
  );
}
