/** Items that are too far in stand under each other, and nothing else is changed. */

import { renderToStaticMarkup } from "react-dom/server";
import { expect, it } from "vitest";

import { GrowingDocument } from "./document";
import { FlatText } from "./flat";
import { Blocks } from "./Markdown";

const DEEP = Array.from({ length: 400 }, (_, i) => `${"  ".repeat(i % 100)}- item ${i} of **it**\n`).join("");

/** What a text becomes, whose every beginning is the beginning of the next. */
function flat(text: string): string {
  const growing = new FlatText();
  let last = "";
  for (let length = 1; length <= text.length; length++) {
    const now = growing.update(text.slice(0, length));
    expect(now.startsWith(last)).toBe(true);
    last = now;
  }
  return last;
}

it("items far in stand under each other", () => {
  const far = " ".repeat(60);
  const kept = " ".repeat(40);
  expect(flat(`${far}- a\n${far}12. b\n${far}*\n${"\t".repeat(20)}+ c`)).toBe(
    `${kept}- a\n${kept}12. b\n${kept}*\n${"\t".repeat(10)}+ c`,
  );
});

it.each([
  ["words", `${" ".repeat(60)}-a 1.5 *b* -- c\n`],
  ["code", `\`\`\`\n${" ".repeat(60)}- a\n~~~\n${" ".repeat(60)}- b\n\`\`\`\n`],
  ["code in a list", `- a\n  1. ~~~ sh\n${" ".repeat(60)}- b\n     ~~~\n`],
  ["items not so far in", `${" ".repeat(40)}- a\n`],
])("%s stay as they are", (_, text) => {
  expect(flat(text)).toBe(text);
});

it("after code it goes on", () => {
  const far = " ".repeat(60);
  expect(flat(`\`\`\`\n${far}- a\n\`\`\`\n${far}- b\n`)).toBe(
    `\`\`\`\n${far}- a\n\`\`\`\n${" ".repeat(40)}- b\n`,
  );
});

it("no list of an answer is so deep that the page waits for it, and nothing of it is lost", () => {
  const document = new GrowingDocument();
  for (let length = 0; length < DEEP.length + 997; length += 997) document.update(DEEP.slice(0, length));
  const html = renderToStaticMarkup(<Blocks blocks={document.blocks} prefix="" />);
  let depth = 0;
  let deepest = 0;
  for (const [tag] of html.matchAll(/<\/?ul/g)) {
    depth += tag === "<ul" ? 1 : -1;
    deepest = Math.max(deepest, depth);
  }
  expect(deepest).toBeLessThan(22);
  expect([...html.matchAll(/item (\d+) of <strong>it/g)].map(([, number]) => Number(number))).toEqual(
    Array.from({ length: 400 }, (_, i) => i),
  );
});
