/**
 * A Markdown text that grows. What nothing can change any more is settled: it is parsed once. Only the end is parsed
 * again: the last block, of a list the last item, of a table the last row, of a fenced block the last line.
 */

import type { Code, List, ListItem, Paragraph, RootContent, Table, TableRow } from "mdast";

import { FlatText } from "./flat";
import { cutOf, MID_LINE, partOf } from "./paragraph";
import type { Links } from "./parse";
import { definitionsOf, linksOf, NO_LINKS, nameOf, Piece, withoutPlaces } from "./parse";
import { cutInItem, isReopened, LONG_ITEM, numberBeforeCut, reopened } from "./reopen";

/** A node that is parsed by itself. It is replaced, never changed. */
export interface Unit<Node extends RootContent = RootContent> {
  readonly node: Node;
  readonly source: string;
  readonly links: Links;
  /** The definitions that it was parsed with; undefined where it has no use for any. */
  readonly names: string | undefined;
}

export type Block =
  | { type: "node"; unit: Unit }
  /** Items in runs: a run that is full stays the same object. */
  | { type: "list"; list: List; loose: boolean; runs: readonly (readonly Unit<ListItem>[])[] }
  | { type: "table"; table: Table; head: Unit<TableRow>; runs: readonly (readonly Unit<TableRow>[])[] }
  | { type: "code"; code: Code; runs: readonly string[] }
  | { type: "paragraph"; parts: readonly Unit<Paragraph>[] };

/** A block that more may come to. */
type Open =
  /** `opening` opens an item again that was cut. */
  | { type: "list"; list: List; loose: boolean; opening: string; runs: Unit<ListItem>[][] }
  | { type: "table"; table: Table; head: Unit<TableRow>; source: string; runs: Unit<TableRow>[][] }
  /** In the middle of a line where some of a long one is in `runs` already. */
  | { type: "code"; code: Code; close: RegExp; inLine: boolean; runs: string[] }
  | { type: "paragraph"; start: number; parts: Unit<Paragraph>[] };

const RUN_ITEMS = 32;
const RUN_CHARACTERS = 4096;
const FENCE = /^(?:(`{3,})[^`\n]*|(~{3,})[^\n]*)\n/;

export class GrowingDocument {
  blocks: readonly Block[] = [];
  #source = "";
  #flat = new FlatText();
  #text = "";
  /** Where the end begins. */
  #at = 0;
  #settled: Block[] = [];
  #open: Open | undefined;
  /** Where a paragraph begins that is not to be cut: a line under it made something else of it. */
  #whole: number | undefined;
  /** The definitions in what is settled. */
  #names = new Set<string>();
  #linked = "";

  update(source: string): void {
    if (source === this.#source) return;
    if (!source.startsWith(this.#source)) this.#startOver();
    this.#source = source;
    this.#text = this.#flat.update(source);
    let end = this.#end();
    if (this.#link(end)) end = this.#end();
    this.blocks = [...this.#settled, ...end];
  }

  #end(): Block[] {
    let end: Block[] | undefined;
    do end = this.#step();
    while (end === undefined);
    return end;
  }

  #startOver(): void {
    this.#flat = new FlatText();
    this.#at = 0;
    this.#settled = [];
    this.#open = undefined;
    this.#whole = undefined;
    this.#names = new Set();
    this.#linked = "";
  }

  /** The blocks of the end; undefined where some of it was settled, and the rest is to be looked at again. */
  #step(): Block[] | undefined {
    const end = this.#text.slice(this.#at);
    const open = this.#open;
    if (open?.type === "code") return this.#addLines(open, end);
    const names = end.includes("[") ? definitionsOf(this.#names) : "";
    const piece = new Piece(end, names + contextOf(open));
    if (open === undefined) return this.#settleNodes(piece);
    return open.type === "paragraph" ? this.#addPart(open, piece) : this.#addUnits(open, piece);
  }

  #settleNodes(piece: Piece): Block[] | undefined {
    const names = this.#namesWith(definedIn(piece));
    const last = boundary(piece, 1);
    if (last === undefined) {
      const first = piece.nodes[0];
      if (first !== undefined && this.#opens(piece, first, names)) return undefined;
      const cut = cutAnywhere(piece);
      if (cut !== undefined) {
        const before = new Piece(
          piece.text.slice(0, cut),
          piece.text.includes("[") ? definitionsOf(this.#names) : "",
        );
        this.#settle(before, 0, before.nodes.length, names);
        this.#at += cut;
        return undefined;
      }
      return piece.nodes.map((node) => ({ type: "node", unit: unitOf(piece, node, names) }));
    }
    this.#settle(piece, 0, last, names);
    return undefined;
  }

  #settle(piece: Piece, from: number, to: number, names: string): void {
    for (const node of piece.nodes.slice(from, to)) {
      const unit = unitOf(piece, node, names);
      this.#learn(unit);
      this.#settled.push({ type: "node", unit: settled(unit) });
    }
    const next = piece.nodes[to];
    if (next !== undefined) this.#at += piece.lineOf(next);
  }

  #learn(unit: Unit): void {
    for (const definition of unit.links.definitions) this.#names.add(nameOf(definition));
  }

  /** Whether a block is from now on read item by item, row by row or line by line. */
  #opens(piece: Piece, node: RootContent, names: string): boolean {
    const line = piece.lineOf(node);
    if (node.type === "code") {
      const fence = FENCE.exec(piece.text.slice(line));
      const mark = fence?.[1] ?? fence?.[2];
      if (fence === null || mark === undefined) return false;
      const close = new RegExp(`^ {0,3}${mark.charAt(0)}{${mark.length},}[ \\t]*$`);
      this.#open = { type: "code", code: { ...node, value: "" }, close, inLine: false, runs: [] };
      this.#at += line + fence[0].length;
      return true;
    }
    if (node.type === "paragraph") {
      const start = this.#at + line;
      const cut = start === this.#whole ? undefined : cutOf(piece, node);
      if (cut === undefined) return false;
      this.#open = { type: "paragraph", start, parts: [] };
      this.#addCut(this.#open, piece.text.slice(line, cut), names);
      this.#at += cut;
      return true;
    }
    const [first, second] = "children" in node ? node.children : [];
    const hasSecond = second !== undefined && piece.hasLines(second, 1);
    if (node.type === "list" && (hasSecond || piece.text.length > LONG_ITEM)) {
      this.#open = { type: "list", list: { ...node, children: [] }, loose: false, opening: "", runs: [] };
      this.#at += line;
      return true;
    }
    if (node.type !== "table" || first?.type !== "tableRow" || !hasSecond) return false;
    const rows = piece.lineOf(second);
    const source = piece.text.slice(line, rows);
    const head = { ...unitOf(piece, first, names), source };
    this.#open = { type: "table", table: { ...node, children: [] }, head, source, runs: [] };
    this.#learn(head);
    this.#at += rows;
    return true;
  }

  #addPart(open: Extract<Open, { type: "paragraph" }>, piece: Piece): Block[] | undefined {
    const [first] = piece.nodes;
    if (first?.type !== "paragraph" || piece.startOf(first) >= 0) {
      this.#whole = this.#at = open.start;
      this.#open = undefined;
      return undefined;
    }
    const names = this.#namesWith(definedIn(piece));
    const last = boundary(piece, 1);
    const cut = last === undefined ? cutOf(piece, first) : undefined;
    if (cut !== undefined) {
      this.#addCut(open, MID_LINE + piece.text.slice(0, cut), names);
      this.#at += cut;
      return undefined;
    }
    const source = MID_LINE + piece.text.slice(0, piece.endOf(first));
    const found = unitOf(piece, first, names);
    const unit = { ...found, node: partOf(first, false, true), source };
    const block = { type: "paragraph", parts: [...open.parts, unit] } as const;
    if (last === undefined) return [block, ...this.#rest(piece, 1, names)];
    this.#learn(unit);
    this.#settled.push(block);
    this.#open = undefined;
    this.#settle(piece, 1, last, names);
    return undefined;
  }

  /** Adds a part that others follow; its source has what stands before it, if it is not the first. */
  #addCut(open: Extract<Open, { type: "paragraph" }>, source: string, names: string): void {
    const before = source.includes("[") ? definitionsOf(names === "" ? [] : names.split("\n")) : "";
    const piece = new Piece(source, before);
    const node = partOf(piece.nodes[0] as Paragraph, open.parts.length === 0, false);
    open.parts.push(settled({ ...unitOf(piece, node, names), source }));
  }

  #addUnits(open: Extract<Open, { type: "list" | "table" }>, piece: Piece): Block[] | undefined {
    const names = this.#namesWith(definedIn(piece));
    const first = piece.nodes[0];
    const goesOn = first?.type === open.type;
    const own = goesOn ? 1 : 0;
    const last = boundary(piece, own);
    const spread = goesOn && open.type === "list" && isLoose(first);
    const loose = open.type === "list" && (open.loose || spread);
    if (open.type === "list") {
      const items = first?.type === "list" ? first.children : [];
      const units = items.map((item, i) =>
        i === 0 ? itemOf(piece, item, names, open.opening) : unitOf(piece, item, names),
      );
      const count = last !== undefined ? items.length : settledItems(piece, items);
      if (last === undefined && count === 0) {
        if (this.#cutItem(open, piece, units[0], names)) return undefined;
        return [{ ...open, loose, runs: [...open.runs, units] }, ...this.#rest(piece, own, names)];
      }
      // The last of them that stays is parsed again with what follows it.
      if (last !== undefined) open.loose = loose;
      else for (let i = 0; i < count; i++) open.loose ||= isSpread(piece, items[i], items[i + 1]);
      if (last === undefined) this.#at += piece.lineOf(items[count] as ListItem);
      this.#add(open.runs, units.slice(0, count));
      open.opening = "";
    } else {
      const rows = first?.type === "table" ? first.children.slice(1) : [];
      const units = rows.map((row) => ({
        ...unitOf(piece, row, names),
        source: open.source + piece.sourceOf(row),
      }));
      const count = last !== undefined ? rows.length : settledItems(piece, rows);
      if (last === undefined && count > 0) this.#at += piece.lineOf(rows[count] as TableRow);
      this.#add(open.runs, units.slice(0, count));
      if (last === undefined && count === 0) {
        const { type, table, head, runs } = open;
        return [{ type, table, head, runs: [...runs, units] }, ...this.#rest(piece, own, names)];
      }
    }
    if (last === undefined) return undefined;
    this.#settled.push(open);
    this.#open = undefined;
    this.#settle(piece, own, last, names);
    return undefined;
  }

  /** Settles the beginning of an item that is too long to be parsed again and again. */
  #cutItem(
    open: Extract<Open, { type: "list" }>,
    piece: Piece,
    unit: Unit<ListItem> | undefined,
    names: string,
  ): boolean {
    if (unit === undefined || piece.text.length < LONG_ITEM) return false;
    const { ordered, start } = open.list;
    const before = open.runs.flat().filter(({ node }) => !isReopened(node)).length;
    const number = numberBeforeCut(unit.node) ?? (ordered ? (start ?? 1) + before : undefined);
    const cut = cutInItem(piece, unit.node, number);
    if (cut === undefined) return false;
    const text = piece.text.slice(0, cut.at);
    const known = text.includes("[") ? definitionsOf(names === "" ? [] : names.split("\n")) : "";
    const node = cut.begun ?? reopened(firstItem(new Piece(text, known + open.opening)) ?? unit.node);
    const source = open.opening + text;
    const begun = settled(
      text.includes("[") ? { node, source, links: linksOf(node), names } : { ...unit, node, source },
    );
    this.#learn(begun);
    open.runs.push([begun]); // where it has been until now: in the page it stays
    open.opening = cut.opening;
    this.#at += cut.at;
    return true;
  }

  #rest(piece: Piece, from: number, names: string): Block[] {
    return piece.nodes.slice(from).map((node) => ({ type: "node", unit: unitOf(piece, node, names) }));
  }

  #add<Node extends RootContent>(runs: Unit<Node>[][], units: readonly Unit<Node>[]): void {
    for (const unit of units.map(settled)) {
      this.#learn(unit);
      const run = runs.at(-1);
      if (run === undefined || run.length >= RUN_ITEMS) runs.push([unit]);
      else runs[runs.length - 1] = [...run, unit];
    }
  }

  #addLines(open: Extract<Open, { type: "code" }>, end: string): Block[] | undefined {
    let from = 0;
    for (let to = end.indexOf("\n"); to >= 0; to = end.indexOf("\n", from)) {
      const line = end.slice(from, to);
      from = to + 1;
      if (open.inLine || !open.close.test(line)) {
        open.inLine = false;
        const run = open.runs.at(-1);
        if (run === undefined || run.length > RUN_CHARACTERS) open.runs.push(`${line}\n`);
        else open.runs[open.runs.length - 1] = `${run}${line}\n`;
        continue;
      }
      this.#at += from;
      this.#settled.push(open);
      this.#open = undefined;
      return undefined;
    }
    const line = end.slice(from);
    if (line.length > RUN_CHARACTERS && (open.inLine || !open.close.test(line))) {
      open.runs.push(line);
      open.inLine = true;
      from = end.length;
    }
    this.#at += from;
    const { type, code, inLine, runs } = open;
    const rest = end.slice(from);
    const isShown = inLine || (rest !== "" && !open.close.test(rest));
    return [{ type, code, runs: isShown ? [...runs, `${rest}\n`] : [...runs] }];
  }

  #namesWith(more: readonly string[]): string {
    return [...new Set([...this.#names, ...more])].sort().join("\n");
  }

  /**
   * Parses again what was settled before a definition came, or went, that it may refer to. Whether the block that is
   * open may have changed.
   */
  #link(end: readonly Block[]): boolean {
    const names = this.#namesWith(end.flatMap(unitsOf).flatMap((unit) => unit.links.definitions.map(nameOf)));
    if (names === this.#linked) return false;
    const before = definitionsOf(names === "" ? [] : names.split("\n"));
    const words = changedWords(this.#linked, names);
    this.#linked = names;
    const linked = <Node extends RootContent>(unit: Unit<Node>): Unit<Node> =>
      relinked(unit, before, names, words);
    this.#settled = this.#settled.map((block) => mapUnits(block, linked));
    const open = this.#open;
    if (open !== undefined) this.#open = mapUnits(open, linked) as Open;
    return open !== undefined;
  }
}

/** What the parser has to know before the end. */
function contextOf(open: Open | undefined): string {
  switch (open?.type) {
    case "list":
      return open.opening;
    case "table":
      return open.source;
    case "paragraph":
      return MID_LINE;
    default:
      return "";
  }
}

/** Characters of one block that are parsed with every piece that comes. */
const LONGEST = 16_384;
const LAST_WORDS = 256;

/**
 * Where a block is cut that nothing else cuts, a quotation between two of its paragraphs if it has them: its halves look
 * like two, and the page goes on.
 */
function cutAnywhere({ text, nodes }: Piece): number | undefined {
  const [only] = nodes;
  if (only === undefined || only.type === "list" || only.type === "table") return undefined;
  if (text.length < (only.type === "blockquote" ? LONG_ITEM : LONGEST)) return undefined;
  const most = text.length - LAST_WORDS;
  const places =
    only.type === "blockquote" ? [/^.*\n(?=>[ \t]*\n)/s, /^.*\n(?=>)/s] : [/^.*\n/s, /^.* /s, /^.*/s];
  for (const place of places) {
    const at = place.exec(text.slice(0, most))?.[0].length ?? 0;
    if (at > most / 2) return at;
  }
  return undefined;
}

function definedIn(piece: Piece): string[] {
  if (!piece.text.includes("[")) return [];
  return piece.nodes.flatMap((node) => linksOf(node).definitions.map(nameOf));
}

/**
 * From which node on the piece is still open, `from` or later; undefined where nothing before it can be settled. A node
 * that has begun with a whole line is not taken back, and then neither is what came before it.
 */
function boundary(piece: Piece, from: number): number | undefined {
  for (let i = piece.nodes.length - 1; i >= from; i--) {
    const node = piece.nodes[i] as RootContent;
    const previous = piece.nodes[i - 1];
    const apart = previous === undefined || piece.blankBetween(previous, node);
    // A title in the next line would belong to the definition.
    if (previous?.type === "definition" && !apart) continue;
    const line = piece.lineOf(node);
    const begins = piece.text.slice(line, line + 4);
    // By itself its first line would be something else: `2. a | b`, a list.
    if (node.type === "table" && !apart && !/^[|\p{L}]/u.test(begins)) continue;
    // A second line of dashes makes a table of what follows a paragraph.
    if (piece.hasLines(node, apart ? 1 : 2)) return i;
    // What begins with a letter in the first column is a paragraph, and nothing before it goes on.
    if (apart && i > 0 && line === piece.startOf(node) && /^\p{L}{2}/u.test(begins)) return i;
  }
  return undefined;
}

/** How many items (or rows) are settled: those before the last one whose first line is whole. */
function settledItems(piece: Piece, items: readonly (ListItem | TableRow)[]): number {
  const last = items.findLastIndex((item) => piece.hasLines(item, 1));
  return Math.max(0, last);
}

function isSpread(piece: Piece, item: ListItem | undefined, next: ListItem | undefined): boolean {
  if (item === undefined) return false;
  return item.spread === true || (next !== undefined && piece.blankBetween(item, next));
}

function isLoose(list: RootContent): boolean {
  return list.type === "list" && (list.spread === true || list.children.some((item) => item.spread === true));
}

function firstItem({ nodes }: Piece): ListItem | undefined {
  return nodes[0]?.type === "list" ? nodes[0].children[0] : undefined;
}

/** The first item of a piece, which may be the rest of one that was cut. */
function itemOf(piece: Piece, item: ListItem, names: string, opening: string): Unit<ListItem> {
  if (opening === "") return unitOf(piece, item, names);
  const node = reopened(item);
  return { ...unitOf(piece, node, names), source: opening + piece.sourceOf(item) };
}

/** A unit that stays. */
function settled<Node extends RootContent>(unit: Unit<Node>): Unit<Node> {
  return { ...unit, node: withoutPlaces(unit.node) };
}

function unitOf<Node extends RootContent>(piece: Piece, node: Node, names: string): Unit<Node> {
  const source = piece.sourceOf(node);
  if (!source.includes("[")) return { node, source, links: NO_LINKS, names: undefined };
  return { node, source, links: linksOf(node), names };
}

/** The first words of the names that have come or gone. */
function changedWords(before: string, after: string): string[] {
  const [old, now] = [before.split("\n"), after.split("\n")];
  const [had, has] = [new Set(old), new Set(now)];
  const changed = [...now.filter((name) => !had.has(name)), ...old.filter((name) => !has.has(name))];
  return changed.map((name) => folded(name.split(" ")[0] ?? ""));
}

function folded(text: string): string {
  return text.toLowerCase().toUpperCase();
}

/** The unit with the definitions of those names; `words` are those of the names that are not what they were. */
function relinked<Node extends RootContent>(
  unit: Unit<Node>,
  before: string,
  names: string,
  words: readonly string[],
): Unit<Node> {
  if (unit.names === undefined || unit.names === names) return unit;
  const source = folded(unit.source);
  if (!words.some((word) => source.includes(word))) return unit;
  const [found] = new Piece(unit.source, before).nodes;
  let node: RootContent | undefined = found;
  if (unit.node.type === "listItem" && found?.type === "list") {
    // Whether blank lines follow is not in its own text.
    const item = found.children[0] as ListItem;
    node = { ...(isReopened(unit.node) ? reopened(item) : item), spread: unit.node.spread ?? null };
  }
  if (unit.node.type === "tableRow" && found?.type === "table") node = found.children.at(-1);
  if (node?.type !== unit.node.type) return unit;
  return { ...unit, node: node as Node, links: linksOf(node), names };
}

/** The units of a block, in their order. */
export function unitsOf(block: Block): Unit[] {
  switch (block.type) {
    case "node":
      return [block.unit];
    case "list":
      return block.runs.flat();
    case "table":
      return [block.head, ...block.runs.flat()];
    case "paragraph":
      return [...block.parts];
    case "code":
      return [];
  }
}

function mapUnits(block: Block, change: <Node extends RootContent>(unit: Unit<Node>) => Unit<Node>): Block {
  switch (block.type) {
    case "node":
      return { ...block, unit: change(block.unit) };
    case "list":
      return { ...block, runs: block.runs.map((run) => run.map(change)) };
    case "table":
      return { ...block, head: change(block.head), runs: block.runs.map((run) => run.map(change)) };
    case "paragraph":
      return {
        ...block,
        parts: block.parts.map((unit, i) => partAgain(change(unit), unit, i, block.parts.length)),
      };
    case "code":
      return block;
  }
}

/** A part that was parsed again, from a source that has more and less than it. */
function partAgain(now: Unit<Paragraph>, before: Unit<Paragraph>, i: number, count: number): Unit<Paragraph> {
  return now === before ? now : { ...now, node: partOf(now.node, i === 0, i === count - 1) };
}
