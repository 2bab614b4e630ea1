import type { Nodes } from "hast";
import { toJsxRuntime } from "hast-util-to-jsx-runtime";
import type { List, ListItem, Table, TableRow } from "mdast";
import type { ReactElement, ReactNode } from "react";
import { Fragment, memo, useId, useLayoutEffect, useRef, useState } from "react";
import { jsx, jsxs } from "react/jsx-runtime";

import type { Block, Unit } from "./document";
import { GrowingDocument, unitsOf } from "./document";
import { COMPONENTS } from "./elements";
import type { Around } from "./html";
import { calledWith, footnotesHtml, itemHtml, NONE_CALLED, nodeHtml, rowHtml } from "./html";
import type { Links } from "./parse";
import { inTurn } from "./turns";

/**
 * Markdown as it arrives. HTML in it is shown as text, images are not loaded. What is settled is neither parsed nor
 * rendered again, however long it is.
 */
export const Markdown = memo(function Markdown({ text }: { text: string }) {
  const growing = useRef<GrowingDocument>(null);
  growing.current ??= new GrowingDocument();
  const prefix = `${useId()}-user-content-`;
  growing.current.update(useSlices(text));
  return (
    <div className="markdown" dir="auto">
      <Blocks blocks={growing.current.blocks} prefix={prefix} />
    </div>
  );
});

/** Characters that are parsed and shown well within a frame. */
const SLICE = 1024;

/**
 * A text that has come at once, such as a stored one, slice by slice: the page answers in between. A conversation that is
 * stored has many of them, and they share the frames.
 */
function useSlices(text: string): string {
  const [shown, setShown] = useState(() => (text.length > SLICE ? 0 : SLICE));
  const behind = shown < text.length;
  useLayoutEffect(() => (behind ? inTurn(() => setShown(shown + SLICE)) : undefined), [shown, behind]);
  // What streams is never that far behind: the slice moves on with it.
  if (!behind && shown < text.length + SLICE) setShown(text.length + SLICE);
  return behind ? text.slice(0, shown) : text;
}

export function Blocks({ blocks, prefix }: { blocks: readonly Block[]; prefix: string }) {
  const units = blocks.flatMap(unitsOf).filter((unit) => unit.names !== undefined);
  const definitions = units.flatMap((unit) => unit.links.definitions);
  const definitionsFor = useDefinitions(definitions);
  const calls = units.flatMap((unit) => unit.links.calls);
  const footnotes = footnotesHtml(calls, definitions, prefix);
  let called = NONE_CALLED;
  /** What the next units have to know; the same for as long as it makes no difference to them. */
  function next(of: readonly Unit[]): Around {
    const before = called;
    for (const unit of of) called = calledWith(called, unit);
    return {
      definitions: definitionsFor(of),
      called: called === before ? NONE_CALLED : before,
      prefix,
    };
  }
  return (
    <>
      {blocks.filter(isShown).map((block, i) => (
        // biome-ignore lint/suspicious/noArrayIndexKey: blocks keep their places; new ones come last.
        <Fragment key={i}>
          {i > 0 && "\n"}
          {blockOf(block, next)}
        </Fragment>
      ))}
      {footnotes !== undefined && "\n"}
      {footnotes !== undefined && show(footnotes)}
    </>
  );
}

const NO_DEFINITIONS: Links["definitions"] = [];

function isShown(block: Block): boolean {
  return block.type !== "node" || !/efinition$/.test(block.unit.node.type);
}

/** The definitions that units refer to: the same array for as long as they are the same. */
function useDefinitions(definitions: Links["definitions"]): (of: readonly Unit[]) => Links["definitions"] {
  const last = useRef(new WeakMap<Unit, Links["definitions"]>());
  return (of) => {
    const [first] = of;
    const names = new Set(of.flatMap((unit) => unit.links.refers));
    if (first === undefined || names.size === 0) return NO_DEFINITIONS;
    const found = definitions.filter((node) => node.type === "definition" && names.has(node.identifier));
    const before = last.current.get(first);
    if (before?.length === found.length && found.every((node, i) => node === before[i])) return before;
    last.current.set(first, found);
    return found;
  };
}

type Next = (units: readonly Unit[]) => Around;

function blockOf(block: Block, next: Next): ReactNode {
  switch (block.type) {
    case "node":
      return <NodeBlock unit={block.unit} {...next([block.unit])} />;
    case "list":
      return listOf(block, next);
    case "table":
      return tableOf(block, next);
    case "code":
      return codeOf(block);
    case "paragraph":
      return paragraphOf(block, next);
  }
}

/** Parts of a paragraph that are laid out together: a browser lays out all lines again when one is added. */
const STRETCH = 8;

function paragraphOf({ parts }: Extract<Block, { type: "paragraph" }>, next: Next): ReactNode {
  const shown = parts.map((part, i) => (
    // biome-ignore lint/suspicious/noArrayIndexKey: parts keep their places; new ones come last.
    <Part key={i} part={part} {...next([part])} />
  ));
  const stretches = [];
  for (let i = STRETCH; i < shown.length; i += STRETCH) {
    stretches.push(
      <span key={i} className="stretch">
        {shown.slice(i, i + STRETCH)}
      </span>,
    );
  }
  return (
    <p>
      {shown.slice(0, STRETCH)}
      {stretches}
    </p>
  );
}

const NodeBlock = memo(function NodeBlock({ unit, ...around }: { unit: Unit } & Around) {
  return show({ type: "root", children: nodeHtml(unit.node, around) });
});

const Part = memo(function Part({ part, ...around }: { part: Unit } & Around) {
  const [made] = nodeHtml(part.node, around);
  return made?.type === "element" ? show({ type: "root", children: made.children }) : null;
});

function listOf({ list, loose, runs }: Extract<Block, { type: "list" }>, next: Next): ReactNode {
  const Name = list.ordered ? "ol" : "ul";
  const start = typeof list.start === "number" && list.start !== 1 ? list.start : undefined;
  const checks = runs.some((run) => run.some((item) => typeof item.node.checked === "boolean"));
  return (
    <Name start={start} className={checks ? "contains-task-list" : undefined}>
      {"\n"}
      {runs.map((run, i) => (
        // biome-ignore lint/suspicious/noArrayIndexKey: runs keep their places; new ones come last.
        <Items key={i} items={run} list={list} loose={loose} {...next(run)} />
      ))}
    </Name>
  );
}

interface ItemsProps extends Around {
  items: readonly Unit<ListItem>[];
  list: List;
  loose: boolean;
}

interface ItemProps extends Omit<ItemsProps, "items"> {
  item: Unit<ListItem>;
}

const Items = memo(function Items({ items, called, ...rest }: ItemsProps) {
  return withCalls(items, called).map(([item, before], i) => (
    // biome-ignore lint/suspicious/noArrayIndexKey: items keep their places; new ones come last.
    <Item key={i} item={item} called={before} {...rest} />
  ));
});

const Item = memo(function Item({ item, list, loose, ...around }: ItemProps) {
  const made = itemHtml(item.node, list, loose, around);
  return (
    <>
      {made !== undefined && show(made)}
      {"\n"}
    </>
  );
});

function tableOf({ table, head, runs }: Extract<Block, { type: "table" }>, next: Next): ReactNode {
  const Frame = COMPONENTS.table;
  return (
    <Frame>
      <thead>
        <Row row={head} table={table} isHead {...next([head])} />
      </thead>
      {runs.some((run) => run.length > 0) && (
        <tbody>
          {runs.map((run, i) => (
            // biome-ignore lint/suspicious/noArrayIndexKey: runs keep their places; new ones come last.
            <Rows key={i} rows={run} table={table} {...next(run)} />
          ))}
        </tbody>
      )}
    </Frame>
  );
}

interface RowsProps extends Around {
  rows: readonly Unit<TableRow>[];
  table: Table;
}

const Rows = memo(function Rows({ rows, called, ...rest }: RowsProps) {
  return withCalls(rows, called).map(([row, before], i) => (
    // biome-ignore lint/suspicious/noArrayIndexKey: rows keep their places; new ones come last.
    <Row key={i} row={row} called={before} {...rest} />
  ));
});

interface RowProps extends Omit<RowsProps, "rows"> {
  row: Unit<TableRow>;
  isHead?: boolean;
}

const Row = memo(function Row({ row, table, isHead = false, ...around }: RowProps) {
  const made = rowHtml(row.node, table, around, isHead);
  return made === undefined ? null : show(made);
});

/** Units, each with the calls of footnotes before it. */
function withCalls<One extends Unit>(units: readonly One[], called: string): [One, string][] {
  let before = called;
  return units.map((unit) => {
    const found: [One, string] = [unit, unit.links.calls.length === 0 ? NONE_CALLED : before];
    before = calledWith(before, unit);
    return found;
  });
}

function codeOf({ code, runs }: Extract<Block, { type: "code" }>): ReactNode {
  const { pre: Frame, code: Code } = COMPONENTS;
  const language = code.lang?.split(/\s+/)[0];
  const isBlank = runs.length === 1 && runs[0] === "\n";
  return (
    <Frame>
      <Code className={language ? `language-${language}` : undefined}>{isBlank ? "" : runs}</Code>
    </Frame>
  );
}

function show(node: Nodes): ReactElement {
  return toJsxRuntime(node, {
    Fragment,
    jsx,
    jsxs,
    components: COMPONENTS,
    ignoreInvalidStyle: true,
    passKeys: true,
  });
}
