/** What this tab keeps until it closes. A browser may refuse; then it lasts as long as the page. */

export function stored(name: string): string | undefined {
  try {
    return sessionStorage.getItem(name) ?? undefined;
  } catch {
    return undefined;
  }
}

export function store(name: string, text: string | undefined): void {
  try {
    if (text === undefined || text === "") sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, text);
  } catch {
    return;
  }
}

export function forgetAll(prefix: string): void {
  try {
    for (const name of Object.keys(sessionStorage))
      if (name.startsWith(prefix)) sessionStorage.removeItem(name);
  } catch {
    return;
  }
}
