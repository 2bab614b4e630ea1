/** Work that follows events, but not each of them. */

export interface Throttled {
  soon(): void;
  now(): void;
  cancel(): void;
}

/** Does `work` at most once in so many milliseconds, or once a frame of the screen where none are given. */
export function throttled(milliseconds: number | undefined, work: () => void): Throttled {
  let planned: (() => void) | undefined;
  let forFrame = false;
  const cancel = (): void => {
    planned?.();
    planned = undefined;
  };
  const now = (): void => {
    cancel();
    work();
  };
  return {
    now,
    cancel,
    soon() {
      // A page in the background draws no frames, and its conversation has to go on; also one that was planned before.
      const seen = typeof document !== "undefined" && !document.hidden;
      if (planned !== undefined && (seen || !forFrame)) return;
      cancel();
      forFrame = seen && milliseconds === undefined;
      if (forFrame) {
        const frame = requestAnimationFrame(now);
        planned = () => cancelAnimationFrame(frame);
      } else {
        const timer = setTimeout(now, milliseconds ?? 50);
        planned = () => clearTimeout(timer);
      }
    },
  };
}
