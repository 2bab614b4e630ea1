/** The blocks of a Markdown text: what lies between blank lines, a fenced code block whole. */
export function blocksOf(text: string): string[] {
  const blocks: string[] = [];
  let block: string[] = [];
  let fence: string | undefined;
  for (const line of text.split("\n")) {
    const mark = /^ {0,3}(`{3,}|~{3,})/.exec(line)?.[1];
    if (fence === undefined) fence = mark;
    else if (mark?.startsWith(fence) && line.trim() === mark) fence = undefined;
    // An indented line goes on with what was before: a list item's paragraph, say.
    const ends = fence === undefined && line.trim() === "" && block.length > 0;
    const continues = fence === undefined && /^(?: {2,}|\t)\S/.test(line) && block.length === 0;
    if (continues && blocks.length > 0) block = `${blocks.pop() ?? ""}\n`.split("\n");
    if (ends) {
      blocks.push(block.join("\n"));
      block = [];
    } else if (line.trim() !== "" || block.length > 0) block.push(line);
  }
  if (block.length > 0) blocks.push(block.join("\n"));
  return blocks;
}
