/** Work that can wait for a frame of its own: one piece of it a frame, and what was last in the page goes first. */

const waiting = new Set<() => void>();
let planned = false;

/** Does `work` in a frame to come. Returns how to do without. */
export function inTurn(work: () => void): () => void {
  waiting.add(work);
  plan();
  return () => void waiting.delete(work);
}

function plan(): void {
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => {
    planned = false;
    const work = [...waiting].at(-1);
    if (work === undefined) return;
    waiting.delete(work);
    work();
    if (waiting.size > 0) plan();
  });
}
