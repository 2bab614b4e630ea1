/** What the browser says about the network and the page; nothing where there is no browser. */

/** Calls `wake` whenever a waiting client has a reason to try again at once. Returns how to stop it. */
export function onWake(wake: (reason: "online" | "visible" | "restored") => void): () => void {
  const listening = new AbortController();
  const { signal } = listening;
  const page = pageHere();
  if (page !== undefined) {
    page.addEventListener("online", () => wake("online"), { signal });
    page.addEventListener("pageshow", (event) => event.persisted && wake("restored"), { signal });
    document.addEventListener("visibilitychange", () => document.hidden || wake("visible"), { signal });
  }
  return () => listening.abort();
}

/** React Native has a `window` that no page lives in. */
export function pageHere(): Window | undefined {
  return typeof window === "undefined" || !window.addEventListener ? undefined : window;
}

/** Waits; less long where `signal` aborts or the page wakes up. */
export function pause(milliseconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      stopListening();
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    signal?.addEventListener("abort", done);
    const stopListening = onWake(done);
    if (signal?.aborted) done();
  });
}
