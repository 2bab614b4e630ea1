/** What the browser says about the network and the page; nothing where there is no browser. */

/** Calls `wake` whenever a waiting client has a reason to try again at once. Returns how to stop it. */
export function onWake(wake: (reason: "online" | "visible" | "restored") => void): () => void {
  if (typeof window === "undefined" || !window.addEventListener) return () => undefined;
  const online = (): void => wake("online");
  const visible = (): void => {
    if (document.visibilityState === "visible") wake("visible");
  };
  const restored = (event: PageTransitionEvent): void => {
    if (event.persisted) wake("restored");
  };
  window.addEventListener("online", online);
  window.addEventListener("pageshow", restored);
  document.addEventListener("visibilitychange", visible);
  return () => {
    window.removeEventListener("online", online);
    window.removeEventListener("pageshow", restored);
    document.removeEventListener("visibilitychange", visible);
  };
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
