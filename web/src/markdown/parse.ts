/** Markdown (CommonMark with GitHub's tables, task lists, footnotes and links) -> mdast, a piece at a time. */

import type { Definition, FootnoteDefinition, FootnoteReference, Nodes, RootContent } from "mdast";
import { fromMarkdown } from "mdast-util-from-markdown";
import { gfmFromMarkdown } from "mdast-util-gfm";
import { gfm } from "micromark-extension-gfm";

const OPTIONS = { extensions: [gfm()], mdastExtensions: [gfmFromMarkdown()] };

/** A piece of a text, and the nodes of the top level that end in it. */
export class Piece {
  readonly nodes: readonly RootContent[];
  readonly #skipped: number;
  readonly #all: string;

  /** `before` is what the parser has to know and is not part of the piece. */
  constructor(
    readonly text: string,
    before = "",
  ) {
    this.#skipped = before.length;
    this.#all = before + text;
    const { children } = fromMarkdown(this.#all, OPTIONS);
    this.nodes = children.filter((node) => this.endOf(node) > 0);
  }

  startOf(node: Nodes): number {
    return (node.position?.start.offset ?? 0) - this.#skipped;
  }

  endOf(node: Nodes): number {
    return (node.position?.end.offset ?? 0) - this.#skipped;
  }

  /** Where the line begins that the node begins in. */
  lineOf(node: Nodes): number {
    return this.text.lastIndexOf("\n", this.startOf(node) - 1) + 1;
  }

  /** The node and what follows it, also where it begins in what is not part of the piece. */
  fromStartOf(node: Nodes): string {
    return this.#all.slice(node.position?.start.offset ?? 0);
  }

  sourceOf(node: Nodes): string {
    return this.text.slice(Math.max(0, this.lineOf(node)), this.endOf(node));
  }

  /** Whether the first `count` lines of the node have come, so that nothing makes something else of them. */
  hasLines(node: Nodes, count: number): boolean {
    let at = this.startOf(node) - 1;
    for (let i = 0; i < count; i++) {
      at = this.text.indexOf("\n", at + 1);
      if (at < 0) return false;
    }
    return true;
  }

  blankBetween(node: Nodes, next: Nodes): boolean {
    return /\n[ \t]*\n/.test(this.text.slice(this.endOf(node), this.startOf(next)));
  }
}

/** What a node has to do with the rest of the text. */
export interface Links {
  definitions: readonly (Definition | FootnoteDefinition)[];
  /** The calls of footnotes, in their order, but for those in footnotes. */
  calls: readonly FootnoteReference[];
  /** The names of the definitions that its HTML depends on. */
  refers: readonly string[];
}

export const NO_LINKS: Links = { definitions: [], calls: [], refers: [] };

export function linksOf(node: Nodes): Links {
  const definitions: (Definition | FootnoteDefinition)[] = [];
  const calls: FootnoteReference[] = [];
  const refers: string[] = [];
  function visit(at: Nodes, inFootnote: boolean): void {
    if (at.type === "definition" || at.type === "footnoteDefinition") definitions.push(at);
    if (at.type === "footnoteReference" && !inFootnote) calls.push(at);
    if (at.type === "linkReference" || at.type === "imageReference") refers.push(at.identifier);
    if (!("children" in at)) return;
    for (const child of at.children) visit(child, inFootnote || at.type === "footnoteDefinition");
  }
  visit(node, false);
  return { definitions, calls, refers };
}

/** The same nodes without where they stand: of a long answer that is the larger part of them. */
export function withoutPlaces<Node extends Nodes>(node: Node): Node {
  const { position: _, ...rest } = node as Nodes;
  if (!("children" in rest)) return rest as Node;
  return { ...rest, children: rest.children.map((child) => withoutPlaces(child)) } as Node;
}

/** The name of a definition, as `definitionsOf` takes it. */
export function nameOf(node: Definition | FootnoteDefinition): string {
  return node.type === "definition" ? node.identifier : `^${node.identifier}`;
}

/**
 * Definitions of those names, to be put before a piece: a parser takes `[name]` for a link only where it knows the name.
 * The comment ends what might go on in the piece.
 */
export function definitionsOf(names: Iterable<string>): string {
  let text = "";
  for (const name of names) text += name.startsWith("^") ? `[${name}]: x\n\n` : `[${name}]: <#>\n`;
  return text === "" ? "" : `${text}\n<!---->\n\n`;
}
