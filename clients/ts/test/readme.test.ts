import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import ts from "typescript";
import { describe, expect, it } from "vitest";

const at = (path: string): string => fileURLToPath(new URL(path, import.meta.url));

/** What the pieces of the pages leave to their readers. */
const THEIRS: Record<string, string> = {
  getToken: "declare const getToken: () => string;",
  url: "declare const url: string;",
  tools: "declare const tools: object[];",
  run: "declare function run(name: string, args: unknown): Promise<string>;",
};
const OURS = ["Chat", "openCalls", "useStreamingChat"];

function blocks(page: string): string[] {
  const found = [...readFileSync(at(page), "utf-8").matchAll(/^```tsx?\n(.*?)^```$/gms)];
  return found.map((match) => match[1] ?? "");
}

/** A block as a file: whole, or with what is missing before it. */
function file(block: string): string {
  if (/^(import|export) /m.test(block)) return block;
  const used = OURS.filter((name) => new RegExp(`\\b${name}\\(`).test(block));
  const theirs = Object.entries(THEIRS).filter(([name]) => new RegExp(`\\b${name}\\b`).test(block));
  return [
    `import { ${used.join(", ")} } from "millstream/react";`,
    ...theirs.map(([, text]) => text),
    block,
  ].join("\n");
}

/** What the compiler says about files that it finds only here. */
function wrongIn(files: Map<string, string>, options: ts.CompilerOptions): string {
  const host = ts.createCompilerHost(options);
  const { fileExists, getSourceFile, readFile } = host;
  host.fileExists = (name) => files.has(name) || fileExists(name);
  host.readFile = (name) => files.get(name) ?? readFile(name);
  host.getSourceFile = (name, version, ...rest) => {
    const text = files.get(name);
    return text === undefined
      ? getSourceFile(name, version, ...rest)
      : ts.createSourceFile(name, text, version);
  };
  const program = ts.createProgram([...files.keys()], options, host);
  return ts.formatDiagnostics(ts.getPreEmitDiagnostics(program), host);
}

describe("the compiler", () => {
  it("takes every block of the READMEs", () => {
    const all = ["../README.md", "../../../README.md"].flatMap(blocks);
    const files = new Map(all.map((block, i) => [at(`./block${i}.tsx`), file(block)]));
    expect(files.size).toBe(4);
    const options: ts.CompilerOptions = {
      strict: true,
      noEmit: true,
      skipLibCheck: true,
      target: ts.ScriptTarget.ES2022,
      module: ts.ModuleKind.ESNext,
      moduleResolution: ts.ModuleResolutionKind.Bundler,
      jsx: ts.JsxEmit.ReactJSX,
      lib: ["lib.es2023.d.ts", "lib.dom.d.ts", "lib.dom.iterable.d.ts"],
      types: ["node"],
      paths: { "millstream/react": [at("../src/react.ts")] },
    };
    expect(wrongIn(files, options)).toBe("");
  }, 60_000);

  it("takes the package's types where a page knows no more than ES2020, and checks them", () => {
    const files = new Map<string, string>();
    const source = {
      declaration: true,
      emitDeclarationOnly: true,
      rootDir: at("../src"),
      outDir: at("."),
      target: ts.ScriptTarget.ES2022,
      module: ts.ModuleKind.ESNext,
      moduleResolution: ts.ModuleResolutionKind.Bundler,
      types: [],
    };
    ts.createProgram([at("../src/react.ts")], source).emit(undefined, (name, text) => files.set(name, text));
    expect(files.size).toBeGreaterThan(9);
    const theirs = { ...source, lib: ["lib.es2020.d.ts", "lib.dom.d.ts"], skipDefaultLibCheck: true };
    expect(wrongIn(files, { ...theirs, noEmit: true, emitDeclarationOnly: false })).toBe("");
  }, 60_000);
});
