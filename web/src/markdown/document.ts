/**
 * A Markdown text that grows. What nothing can change any more is settled: it is parsed once. Only the end is parsed
 * again: the last block, of a list the last item, of a table the last row, of a fenced block the last line.
 */

import type { Code, List, ListItem, Paragraph, RootContent, Table, TableRow } from "mdast";

import { cutOf, MID_LINE, partOf } from "./paragraph";
import type { Links } from "./parse";
import { definitionsOf, linksOf, NO_LINKS, nameOf, Piece } from "./parse";

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
  | { type: "list"; list: List; loose: boolean; runs: Unit<ListItem>[][] }
  | { type: "table"; table: Table; head: Unit<TableRow>; source: string; runs: Unit<TableRow>[][] }
  | { type: "code"; code: Code; close: RegExp; runs: string[] }
  | { type: "paragraph"; start: number; parts: Unit<Paragraph>[] };

const RUN_ITEMS = 32;
const RUN_CHARACTERS = 4096;
const FENCE = /^(?:(`{3,})[^`\n]*|(~{3,})[^\n]*)\n/;

export class GrowingDocument {
  blocks: readonly Block[] = [];
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

  update(text: string): void {
    if (text === this.#text) return;
    if (!text.startsWith(this.#text)) this.#startOver();
    this.#text = text;
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
    const context = open?.type === "table" ? open.source : open?.type === "paragraph" ? MID_LINE : "";
    const piece = new Piece(end, names + context);
    if (open === undefined) return this.#settleNodes(piece);
    return open.type === "paragraph" ? this.#addPart(open, piece) : this.#addUnits(open, piece);
  }

  #settleNodes(piece: Piece): Block[] | undefined {
    const names = this.#namesWith(definedIn(piece));
    const last = boundary(piece, 1);
    if (last === undefined) {
      const first = piece.nodes[0];
      if (first !== undefined && this.#opens(piece, first, names)) return undefined;
      return piece.nodes.map((node) => ({ type: "node", unit: unitOf(piece, node, names) }));
    }
    this.#settle(piece, 0, last, names);
    return undefined;
  }

  #settle(piece: Piece, from: number, to: number, names: string): void {
    for (const node of piece.nodes.slice(from, to)) {
      const unit = unitOf(piece, node, names);
      this.#learn(unit);
      this.#settled.push({ type: "node", unit });
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
      this.#open = { type: "code", code: { ...node, value: "" }, close, runs: [] };
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
    if (first === undefined || second === undefined || !piece.hasLines(second, 1)) return false;
    if (node.type === "list") {
      this.#open = { type: "list", list: { ...node, children: [] }, loose: false, runs: [] };
      this.#at += line;
      return true;
    }
    if (node.type !== "table" || first.type !== "tableRow") return false;
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
    open.parts.push({ ...unitOf(piece, node, names), source });
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
      const units = items.map((item) => unitOf(piece, item, names));
      const settled = last !== undefined ? items.length : settledItems(piece, items);
      this.#add(open.runs, units.slice(0, settled));
      // The last of them that stays is parsed again with what follows it.
      if (last !== undefined) open.loose = loose;
      else for (let i = 0; i < settled; i++) open.loose ||= isSpread(piece, items[i], items[i + 1]);
      if (last === undefined && settled > 0) this.#at += piece.lineOf(items[settled] as ListItem);
      if (last === undefined && settled === 0) {
        return [{ ...open, loose, runs: [...open.runs, units] }, ...this.#rest(piece, own, names)];
      }
    } else {
      const rows = first?.type === "table" ? first.children.slice(1) : [];
      const units = rows.map((row) => ({
        ...unitOf(piece, row, names),
        source: open.source + piece.sourceOf(row),
      }));
      const settled = last !== undefined ? rows.length : settledItems(piece, rows);
      this.#add(open.runs, units.slice(0, settled));
      if (last === undefined && settled > 0) this.#at += piece.lineOf(rows[settled] as TableRow);
      if (last === undefined && settled === 0) {
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

  #rest(piece: Piece, from: number, names: string): Block[] {
    return piece.nodes.slice(from).map((node) => ({ type: "node", unit: unitOf(piece, node, names) }));
  }

  #add<Node extends RootContent>(runs: Unit<Node>[][], units: readonly Unit<Node>[]): void {
    for (const unit of units) {
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
      if (!open.close.test(line)) {
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
    this.#at += from;
    const line = end.slice(from);
    const { type, code, runs } = open;
    return [{ type, code, runs: line === "" || open.close.test(line) ? [...runs] : [...runs, `${line}\n`] }];
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
    this.#linked = names;
    const before = definitionsOf(names === "" ? [] : names.split("\n"));
    const linked = <Node extends RootContent>(unit: Unit<Node>): Unit<Node> => relinked(unit, before, names);
    this.#settled = this.#settled.map((block) => mapUnits(block, linked));
    const open = this.#open;
    if (open !== undefined) this.#open = mapUnits(open, linked) as Open;
    return open !== undefined;
  }
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

function unitOf<Node extends RootContent>(piece: Piece, node: Node, names: string): Unit<Node> {
  const source = piece.sourceOf(node);
  if (!source.includes("[")) return { node, source, links: NO_LINKS, names: undefined };
  return { node, source, links: linksOf(node), names };
}

function relinked<Node extends RootContent>(unit: Unit<Node>, before: string, names: string): Unit<Node> {
  if (unit.names === undefined || unit.names === names) return unit;
  const [found] = new Piece(unit.source, before).nodes;
  let node: RootContent | undefined = found;
  if (unit.node.type === "listItem" && found?.type === "list") {
    // Whether blank lines follow is not in its own text.
    node = { ...(found.children[0] as ListItem), spread: unit.node.spread ?? null };
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
