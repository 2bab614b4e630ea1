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

  /** `before` is what the parser has to know and is not part of the piece. */
  constructor(
    readonly text: string,
    before = "",
  ) {
    this.#skipped = before.length;
    const { children } = fromMarkdown(before + text, OPTIONS);
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
  /** Whether its HTML depends on a definition. */
  refers: boolean;
}

export const NO_LINKS: Links = { definitions: [], calls: [], refers: false };

export function linksOf(node: Nodes): Links {
  const definitions: (Definition | FootnoteDefinition)[] = [];
  const calls: FootnoteReference[] = [];
  let refers = false;
  function visit(at: Nodes, inFootnote: boolean): void {
    if (at.type === "definition" || at.type === "footnoteDefinition") definitions.push(at);
    if (at.type === "footnoteReference" && !inFootnote) calls.push(at);
    if (at.type === "linkReference" || at.type === "imageReference") refers = true;
    if (!("children" in at)) return;
    for (const child of at.children) visit(child, inFootnote || at.type === "footnoteDefinition");
  }
  visit(node, false);
  return { definitions, calls, refers };
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
