/** Where the API key is kept: in this tab, until it closes. */

const NAME = "millstream-key";

/** A key has to fit into a header: printable ASCII without spaces. */
export function isKey(text: string): boolean {
  return /^[!-~]{1,256}$/.test(text);
}

/** The key in a URL fragment `#key=…`, if there is one that can be used. */
export function keyInFragment(fragment: string): string | undefined {
  const key = new URLSearchParams(fragment.replace(/^#/, "")).get("key")?.trim();
  return key !== undefined && isKey(key) ? key : undefined;
}

/** Takes the key out of the address bar, so that no bookmark, history or screenshot keeps it. */
export function takeKeyFromAddress(): string | undefined {
  const key = keyInFragment(location.hash);
  if (new URLSearchParams(location.hash.slice(1)).has("key")) {
    history.replaceState(null, "", location.pathname + location.search);
  }
  if (key !== undefined) storeKey(key);
  return key;
}

// A browser may refuse storage altogether; then the key lasts as long as the page.

export function storedKey(): string | undefined {
  try {
    return sessionStorage.getItem(NAME) ?? undefined;
  } catch {
    return undefined;
  }
}

export function storeKey(key: string): void {
  try {
    sessionStorage.setItem(NAME, key);
  } catch {
    return;
  }
}

export function forgetKey(): void {
  try {
    sessionStorage.removeItem(NAME);
  } catch {
    return;
  }
}
