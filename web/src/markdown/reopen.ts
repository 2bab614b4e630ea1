/**
 * Items too long to be parsed again with every piece that comes: where one can be cut, and what opens it again. In the
 * page the rest stands in an item without a mark.
 */

import type { Code, List, ListItem, RootContent } from "mdast";

import type { Piece } from "./parse";

/** Characters that are parsed and shown well within a frame. */
export const LONG_ITEM = 4096;
/** Lines of code are parsed in a tenth of the time, and a block that is cut looks like two. */
const LONG_CODE = 24_576;
/** What a cut takes off at least. */
const LEAST = 1024;
/** Containers in one another; what opens them again is as long as the square of it. */
const DEEPEST = 64;
const MARK = /^([-+*]|\d{1,9}[.)])( {1,4}(?=\S))?/;
const REOPENED = "reopened";
/** Stands for what an item had before the cut, with the item's number and that of the next one in it. */
const BEFORE_CUT = /^<!--(\d*)(?: (\d+))?-->$/;

export interface Cut {
  at: number;
  /** What the parser has to know before the rest. */
  opening: string;
  /** What there is before the cut, where it need not be parsed again. */
  begun?: ListItem;
}

/** The last place where the item can be cut: between two items in it, or two lines of code. */
export function cutInItem(piece: Piece, item: ListItem, number: number | undefined): Cut | undefined {
  const whole = item;
  let cut: Cut | undefined;
  let opening = "";
  for (let depth = 0; depth < DEEPEST; depth++) {
    const line = openingOf(piece, item, number);
    if (line === undefined) return cut;
    opening += line.text;
    const last = item.children.at(-1);
    if (last?.type === "code") return cutInCode(piece, last, opening, line.width) ?? cut;
    const next = last?.type === "list" ? last.children.at(-1) : undefined;
    if (last?.type !== "list" || next === undefined) return cut;
    const at = piece.lineOf(next);
    const nextNumber = numberOf(last, last.children.length - 1);
    if (at >= LEAST && at > piece.lineOf(item) && piece.hasLines(next, 1)) {
      const withNext = nextNumber === undefined ? opening : opening.replace(/-->\n$/, ` ${nextNumber}-->\n`);
      cut = { at, opening: withNext, begun: withoutLast(whole, depth) };
    }
    number = nextNumber;
    item = next;
  }
  return cut;
}

/** An item without the last one in it, which is that many lists further in. */
function withoutLast(item: ListItem, depth: number): ListItem {
  const list = item.children.at(-1);
  if (list?.type !== "list") return item;
  const items = list.children.slice(0, -1);
  const last = list.children.at(-1);
  if (depth > 0 && last !== undefined) items.push(withoutLast(last, depth - 1));
  const before = item.children.slice(0, -1);
  return { ...item, children: items.length === 0 ? before : [...before, { ...list, children: items }] };
}

/** The number of an item; undefined where it has none. */
function numberOf({ ordered, start, children }: List, index: number): number | undefined {
  if (!ordered) return undefined;
  return (numberBeforeCut(children[0]) ?? start ?? 1) + index;
}

/** A line that opens an item as the source does, and how wide its mark is with what stands before it. */
function openingOf(
  piece: Piece,
  item: ListItem,
  number: number | undefined,
): { text: string; width: number } | undefined {
  const [, mark, space = " "] = MARK.exec(piece.fromStartOf(item)) ?? [];
  const column = item.position?.start.column;
  if (mark === undefined || column === undefined) return undefined;
  const indent = column - 1;
  const text = `${" ".repeat(indent)}${mark}${space}<!--${number ?? ""}-->\n`;
  return { text, width: indent + mark.length + space.length };
}

function cutInCode(piece: Piece, code: Code, opening: string, width: number): Cut | undefined {
  const fence = /^(?:`{3,}[^`\n]*|~{3,}[^\n]*)\n/.exec(piece.fromStartOf(code))?.[0];
  const at = piece.text.lastIndexOf("\n", piece.endOf(code) - 1) + 1;
  if (fence === undefined || at < LONG_CODE || piece.endOf(code) < piece.text.trimEnd().length)
    return undefined;
  return { at, opening: `${opening}${" ".repeat(width)}${fence}` };
}

/** An item as the parser finds it after an opening: without what stands for what was before the cut. */
export function reopened(item: ListItem): ListItem {
  const [first, ...children] = item.children;
  const [, number, next] = (first?.type === "html" && BEFORE_CUT.exec(first.value)) || [];
  if (number === undefined) return item;
  const [list] = children;
  if (list?.type === "list") {
    const start = next === undefined ? list.start : Number(next);
    children[0] = {
      ...list,
      start: start ?? null,
      children: list.children.map((one, i) => (i === 0 ? reopened(one) : one)),
    };
  }
  const value = number === "" ? undefined : number;
  return { ...item, children, data: { hProperties: { className: [REOPENED], value } } };
}

export function isReopened(node: RootContent): boolean {
  const classes = node.type === "listItem" && node.data?.hProperties?.className;
  return Array.isArray(classes) && classes.includes(REOPENED);
}

export function numberBeforeCut(node: RootContent | undefined): number | undefined {
  const value = node !== undefined && isReopened(node) ? node.data?.hProperties?.["value"] : undefined;
  return value === undefined ? undefined : Number(value);
}
