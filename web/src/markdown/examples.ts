/** Texts for the tests: what GitHub adds to CommonMark, and what models write. */

export const GITHUB: Record<string, string> = {
  table: "| a | b |\n| --- | --- |\n| c | d |\n| *e* | `f` |\n\nafter\n",
  "table without frame": "a | b\n:-- | --:\nc | d\ne\n> quote\n",
  "table after a line": "one\ntwo\n| a | b |\n| - | - |\nc | d\n| e | f\n",
  "no table": "| a | b | c |\n| --- | --- |\n| d | e | f |\n",
  "short and long rows": "| a | b | c |\n| :-: | --- | ---\n| x\n| a | b\n| 1 | 2 | 3 | 4 |\n- list\n",
  "pipes in cells": "| a | b |\n| - | - |\n| x \\| y | `p \\| q` |\n| **`c\\|`** | d |\n",
  "table and code": "| a |\n| - |\n| b |\n```\n| c |\n```\n| d |\n| - |\n| e |\n",
  "links in a table":
    "| [a][one] |\n| - |\n| b [two] |\n| [one] |\n\n[one]: http://one.example\n[two]: http://two.example\n",
  strikethrough: "~one~ ~~two~~ ~~~three~~~ ~not~~ ~no\n\nnor~\n",
  autolinks: "www.example.com, http://example.com/a_b. (https://x.example) me@example.com: *www.a.example*\n",
  tasks: "- [ ] one\n- [x] two\n  - [ ] in\n- three\n\n1. [x] four\n",
  "tag filter": "<title> <b>x</b> <script>\n\n<style>\n*x*\n</style>\n",
  footnotes:
    "One[^1] and two[^b], none[^c].\n\n- three[^1]\n\n[^1]: The *first*.\n\n    More of it.\n[^b]:\n    > quote[^d]\n\nText.\n\n[^d]: Last [^1].\n\n[^e]: unused\n",
};

const LONG = "Some words - 1. of *it*, `code` & _marks_, # and > or\n2. more www.example.com | so. ".repeat(
  30,
);

export const SHAPES: Record<string, string> = {
  "a list with blank lines": "1. one\n\n2. two\n\n3. three\n\nend\n\n- a\n\n- b\n- c\n",
  "a list that becomes loose late": "- a\n- b\n- c\n- d\n\n- e\n  - f\n\n  g\n- h\n",
  "lists of many kinds": "- a\n- b\n* c\n* d\n+ e\n1. f\n2. g\n3) h\n4) i\n- - j\n  - k\n-\n- l\n",
  "indented items": " - a\n  - b\n   - c\n    - d\n - e\n\n      f\n",
  "a list that is a line": "- a\n- b\n---\n- c\n- d\n***\n- e\n- * * *\n- - -\n",
  "code in a list":
    "1. Do:\n\n   ```sh\n   a\n\n   b\n   ```\n\n2. Then\n   ~~~\n   c\n   ~~~\nlazy\n3. end\n",
  "numbers that are text": "1. a\n\n2\n\n2. b\n\n2024 was\n\n3. c\n",
  "code fences":
    "```py\na = 1\n\n\n  b\n``\n```` \nc\n\n~~~~ md x\n```\n~~~\n~~~~\n``` a`b\n\n```\n\n```\n```\nx",
  "code after text": "text:\n```js\nlet a;\n```\nmore\n    no code\n\n    code\n\n\n    code\n",
  references:
    "See [one], [two][2] and [three][].\n\n- [2]\n\n> [Three]\n\n[one]: /a\n[2]: <http://b.example> 'B'\n[three]:\n/c\n\"C\"\n[ONE]: /d\n",
  "references first": '[a]: http://a.example\n[b]: http://b.example\n"t\n"\n\n[a] [b]\n\n[b] *x*\n',
  headings: "# A\nB\n===\nC\n---\n## D\n\n- E\n===\n\nF\n-\n",
  quotes: "> a\nb\n\n> c\n> - d\n> - e\n\n- > f\n",
  html: "<div>\n*a*\n\n*b*\n</div>\n\n<!-- c\n\nd -->\ne <i>f</i>\n<pre>\n\ng\n</pre>\n",
  "a long paragraph": `${LONG}and *one\nmore*. ${LONG}[a] [b](http://b.example)\n- ${LONG}\n\n[a]: http://a.example\n`,
  "a long paragraph with an open mark": `${LONG}**open ${LONG}closed** ${LONG}`,
  "a long heading": `${LONG}${LONG}\n===\n${LONG}`,
  "a long head of a table": `${LONG}${LONG}\n| - |\n| x |\n`,
  "an answer":
    "# Title\n\nSome *words* and `code`.\n\n1. **One**: x\n   - a\n   - b\n\n2. Two\n\n```py\nprint('x')\n\nprint('y')\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\nDone[^1].\n\n[^1]: A note.\n",
};
