/** The elements that a page makes of Markdown in its own way. */

import type { ComponentProps } from "react";
import { useRef, useState } from "react";

export const COMPONENTS = {
  a: Link,
  code: Code,
  img: Image,
  input: CheckBox,
  pre: CodeBlock,
  table: ScrolledTable,
};

/** Where a link may lead: elsewhere, or to a footnote. Other links to this page could carry a key into it. */
function isAllowed(href: string): boolean {
  if (/^#[\w:«»-]*user-content-fn/.test(href)) return true;
  if (!URL.canParse(href)) return false;
  const { protocol, origin } = new URL(href);
  if (protocol === "mailto:") return true;
  const here = typeof location === "undefined" ? undefined : location.origin;
  return (protocol === "https:" || protocol === "http:") && origin !== here;
}

function Link({ href = "", children, id, ...of }: ComponentProps<"a">) {
  if (!isAllowed(href)) return <span>{children}</span>;
  if (href.startsWith("#")) {
    return (
      <a href={href} id={id} aria-label={of["aria-label"]} aria-describedby={of["aria-describedby"]}>
        {children}
      </a>
    );
  }
  return (
    <a href={href} target="_blank" rel="noopener noreferrer nofollow">
      {children}
    </a>
  );
}

function Image({ alt }: ComponentProps<"img">) {
  return <span className="image">[image{alt ? `: ${alt}` : ""}]</span>;
}

function CheckBox({ checked }: ComponentProps<"input">) {
  return <input type="checkbox" checked={checked} disabled aria-label={checked ? "Done" : "To do"} />;
}

function ScrolledTable({ children }: ComponentProps<"table">) {
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: the keyboard scrolls only what can be focused.
    <section className="table" aria-label="Table" tabIndex={0}>
      <table>{children}</table>
    </section>
  );
}

/** Code runs from left to right, also in a text that does not, and says nothing of how that one runs. */
function Code({ className, children }: ComponentProps<"code">) {
  return (
    <code className={className} dir="ltr">
      {children}
    </code>
  );
}

function CodeBlock({ children }: ComponentProps<"pre">) {
  const code = useRef<HTMLPreElement>(null);
  const [said, setSaid] = useState("Copy");

  /** Over plain HTTP a page has no clipboard: then the code is marked, for the keys that copy. */
  async function copy(): Promise<void> {
    try {
      await navigator.clipboard.writeText(code.current?.textContent ?? "");
      setSaid("Copied");
    } catch {
      if (code.current !== null) getSelection()?.selectAllChildren(code.current);
      setSaid("Marked: copy it with the keyboard");
    }
    setTimeout(() => setSaid("Copy"), 3000);
  }

  return (
    <div className="code" dir="ltr">
      <button className="link copy" type="button" onClick={() => void copy()}>
        {said}
      </button>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: the keyboard scrolls only what can be focused. */}
      <pre ref={code} tabIndex={0}>
        {children}
      </pre>
    </div>
  );
}
