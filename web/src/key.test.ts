import { expect, it } from "vitest";

import { isKey, keyInFragment } from "./key";

it("finds the key in a fragment", () => {
  expect(keyInFragment("#key=ms_live_abc123")).toBe("ms_live_abc123");
  expect(keyInFragment("#a=1&key=ms_live_abc123")).toBe("ms_live_abc123");
});

it("finds none where there is none", () => {
  for (const fragment of ["", "#", "#key=", "#keys=x", "#key=%00", "#key=two%20words"]) {
    expect(keyInFragment(fragment)).toBeUndefined();
  }
});

it("takes for a key only what a header can carry", () => {
  expect(isKey("ms_live_abc123")).toBe(true);
  for (const text of ["", "two words", "schlüssel", "line\nbreak"]) expect(isKey(text)).toBe(false);
});
