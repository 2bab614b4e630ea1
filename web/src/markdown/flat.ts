/**
 * A text that grows, with no item further in than anybody reads: what opens an item again is as long as the square of
 * how far in it is, and the page would wait for it. Items beyond that stand under each other.
 */

/** Columns: 20 lists in one another, where each is two further in. */
const MOST = 40;
const TAB = 4;
const ITEM = /^(?:[-+*]|\d{1,9}[.)])[ \t]/;
/** What may yet become an item. */
const BEGUN = /^(?:[-+*]|\d{1,9}[.)]?)?$/;
const FENCE = /^[ \t>]*(?:(?:[-+*]|\d{1,9}[.)])[ \t]+)*(`{3,}|~{3,})/;

export class FlatText {
  #lines = "";
  /** Where the last line begins in the source. */
  #at = 0;
  /** The mark of the code that the last line is in. */
  #fence: string | undefined;

  /** The source, which has what it had before and more; so has what is returned. */
  update(source: string): string {
    for (let end = source.indexOf("\n", this.#at); end >= 0; end = source.indexOf("\n", this.#at)) {
      const line = source.slice(this.#at, end);
      this.#lines += `${this.#flat(line, true)}\n`;
      this.#at = end + 1;
      this.#lookForCode(line);
    }
    return this.#lines + this.#flat(source.slice(this.#at), false);
  }

  #flat(line: string, isWhole: boolean): string {
    if (this.#fence !== undefined) return line;
    const rest = line.trimStart();
    const indent = line.slice(0, line.length - rest.length);
    const kept = within(indent);
    if (kept === indent) return line;
    if (ITEM.test(isWhole ? `${rest} ` : rest)) return kept + rest;
    return !isWhole && BEGUN.test(rest) ? kept : line;
  }

  #lookForCode(line: string): void {
    if (this.#fence === undefined) this.#fence = FENCE.exec(line)?.[1];
    else if (isFence(line.trim(), this.#fence)) this.#fence = undefined;
  }
}

function isFence(text: string, opening: string): boolean {
  return text.startsWith(opening) && text === opening.charAt(0).repeat(text.length);
}

function within(indent: string): string {
  let width = 0;
  for (let i = 0; i < indent.length; i++) {
    width += indent.charAt(i) === "\t" ? TAB : 1;
    if (width > MOST) return indent.slice(0, i);
  }
  return indent;
}
