/** How an answer came. */

export interface Arrival {
  /** In milliseconds, as `Date.now()`. */
  asked: number;
  first: number;
  /** Frames. */
  count: number;
}

const MANY = 50;
/** In milliseconds; a model that thinks before it speaks is later than that. */
export const LATE_MS = 3000;
const TIMES = 20;

/** Whether all of it came at once, and late: a model writes for longer than a twentieth of the time before its first word. */
export function wasHeldBack({ asked, first, count }: Arrival): boolean {
  const waited = first - asked;
  return count > MANY && waited > LATE_MS && (Date.now() - first) * TIMES < waited;
}
