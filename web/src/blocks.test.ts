import { describe, expect, it } from "vitest";

import { blocksOf } from "./blocks";

describe("blocksOf", () => {
  it("cuts at blank lines", () => {
    expect(blocksOf("a\nb\n\n\nc\n")).toEqual(["a\nb", "c"]);
    expect(blocksOf("")).toEqual([]);
  });

  it("keeps a fenced block whole, also one that is not closed yet", () => {
    expect(blocksOf("a\n\n```py\nx\n\ny\n```\n\nb")).toEqual(["a", "```py\nx\n\ny\n```", "b"]);
    expect(blocksOf("```\nx\n\ny")).toEqual(["```\nx\n\ny"]);
    expect(blocksOf("````\n```\n\n```\n````")).toHaveLength(1);
  });

  it("keeps what is indented with what it belongs to", () => {
    expect(blocksOf("1. a\n\n   more\n\n2. b")).toEqual(["1. a\n\n   more", "2. b"]);
  });

  it("only ever changes its last block as text arrives", () => {
    const text = "# T\n\ntext *a*\n\n```\ncode\n\nmore\n```\n\n- x\n- y\n\nend";
    for (let length = 1; length < text.length; length++) {
      const before = blocksOf(text.slice(0, length));
      const after = blocksOf(text.slice(0, length + 1));
      expect(after.slice(0, before.length - 1)).toEqual(before.slice(0, -1));
    }
  });
});
