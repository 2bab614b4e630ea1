/** Long paragraphs in parts: where one can be cut so that its parts are what they are in the whole. */

import type { Paragraph } from "mdast";

import type { Piece } from "./parse";

/** Stands in the same line before a part that is not the first, so that it begins no list, heading or quote. */
export const MID_LINE = "a ";

const LONG = 2048;
/** What stays uncut at the end, where words are still coming. */
const TAIL = 256;
/** Characters that may yet become a mark together with what comes. */
const OPEN_MARK = /[*_~`[<]/;

/**
 * Where the last part begins: between two words of plain text, with no mark before it that is not paired. Undefined where
 * there is no such place, and where the paragraph is not long.
 */
export function cutOf(piece: Piece, node: Paragraph): number | undefined {
  if (piece.endOf(node) - piece.startOf(node) < LONG) return undefined;
  let cut: number | undefined;
  for (const child of node.children) {
    if (child.type !== "text") continue;
    const start = Math.max(0, piece.startOf(child));
    const source = piece.text.slice(start, Math.min(piece.endOf(child), piece.endOf(node) - TAIL));
    const mark = source.search(OPEN_MARK);
    const plain = mark < 0 ? source : source.slice(0, mark);
    const found = /^.*\S (?=\p{L})/su.exec(plain);
    if (found !== null) cut = start + found[0].length;
    if (mark >= 0) break;
  }
  return cut !== undefined && cut > 0 ? cut : undefined;
}

/** Part of a paragraph: without what stood before it, and with the space that ends it. */
export function partOf(node: Paragraph, isFirst: boolean, isLast: boolean): Paragraph {
  const children = [...node.children];
  const [head] = children;
  if (!isFirst && head?.type === "text") {
    const value = head.value.slice(MID_LINE.length);
    children.splice(0, 1, ...(value === "" ? [] : [{ ...head, value }]));
  }
  if (!isLast) children.push({ type: "text", value: " " });
  return { ...node, children };
}
