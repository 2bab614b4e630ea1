/** mdast -> hast, a unit at a time, as one conversion of the whole text would have it. */

import type { Element, ElementContent, RootContent as HastContent, Root as HastRoot } from "hast";
import type { List, ListItem, Paragraph, RootContent, Table, TableRow } from "mdast";
import { defaultHandlers, toHast } from "mdast-util-to-hast";

import type { Unit } from "./document";
import type { Links } from "./parse";

/** What a unit has to know of the text around it. */
export interface Around {
  definitions: Links["definitions"];
  /** The footnotes that were called before it: their order, and how often. As JSON, to be compared. */
  called: string;
  /** Before the ids of footnotes: there are other texts in the page. */
  prefix: string;
}

export type Called = [order: string[], counts: [string, number][]];

export const NONE_CALLED = JSON.stringify([[], []] satisfies Called);

/** The calls of footnotes after those of a unit. */
export function calledWith(called: string, unit: Unit): string {
  if (unit.links.calls.length === 0) return called;
  const [order, pairs] = JSON.parse(called) as Called;
  const counts = new Map(pairs);
  for (const call of unit.links.calls) {
    const id = call.identifier.toUpperCase();
    if (!counts.has(id)) order.push(id);
    counts.set(id, (counts.get(id) ?? 0) + 1);
  }
  return JSON.stringify([order, [...counts]] satisfies Called);
}

function convert(nodes: RootContent[], { definitions, called, prefix }: Around): HastContent[] {
  let ready = false;
  const tree = toHast(
    { type: "root", children: [...definitions.filter((node) => node.type === "definition"), ...nodes] },
    {
      allowDangerousHtml: true,
      clobberPrefix: prefix,
      handlers: {
        footnoteReference(state, node) {
          if (!ready) {
            const [order, counts] = JSON.parse(called) as Called;
            state.footnoteOrder.push(...order);
            for (const [id, count] of counts) state.footnoteCounts.set(id, count);
          }
          ready = true;
          return defaultHandlers.footnoteReference(state, node);
        },
      },
    },
  ) as HastRoot;
  return tree.children
    .map((node) => ofPage(node, prefix))
    .filter((node) => node.type !== "text" || node.value !== "\n");
}

const LABEL = "footnote-label";

/** As it can stand in a page: HTML in the text is shown as text, and the heading of footnotes has an id of its own. */
function ofPage<Node extends HastContent | ElementContent>(node: Node, prefix: string): Node {
  if (node.type === "raw") return { type: "text", value: node.value } as unknown as Node;
  if (node.type !== "element") return node;
  const properties = { ...node.properties };
  if (properties["id"] === LABEL) properties["id"] = prefix + LABEL;
  if (properties["ariaDescribedBy"] !== undefined) properties["ariaDescribedBy"] = [prefix + LABEL];
  return { ...node, properties, children: node.children.map((child) => ofPage(child, prefix)) };
}

export function nodeHtml(node: RootContent, around: Around): HastContent[] {
  return convert([node], around);
}

export function itemHtml(item: ListItem, list: List, loose: boolean, around: Around): Element | undefined {
  const alone: List = { ...list, spread: loose, children: [{ ...item, spread: loose }] };
  return elementIn(convert([alone], around)[0], "li");
}

export function rowHtml(row: TableRow, table: Table, around: Around, isHead: boolean): Element | undefined {
  const empty: TableRow = { type: "tableRow", children: [] };
  const rows: Table = { ...table, children: isHead ? [row] : [empty, row] };
  const [made] = convert([rows], around);
  return elementIn(elementIn(made, isHead ? "thead" : "tbody"), "tr");
}

/** The section of footnotes under the text, if there are any. */
export function footnotesHtml(
  calls: Links["calls"],
  definitions: Links["definitions"],
  prefix: string,
): Element | undefined {
  if (calls.length === 0) return undefined;
  const text: Paragraph = { type: "paragraph", children: [...calls] };
  const nodes = [text, ...definitions.filter((node) => node.type === "footnoteDefinition")];
  const last = convert(nodes, { definitions, called: NONE_CALLED, prefix }).at(-1);
  return last?.type === "element" && last.tagName === "section" ? last : undefined;
}

function elementIn(parent: HastContent | undefined, name: string): Element | undefined {
  if (parent?.type !== "element") return undefined;
  const found = parent.children.find((child) => child.type === "element" && child.tagName === name);
  return found as Element | undefined;
}
