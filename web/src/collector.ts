/** Gathers what arrives and hands it on at most once per animation frame. */

export interface Collector<Item> {
  add(item: Item): void;
  /** Hands on what is left, now. */
  flush(): void;
}

export function collectPerFrame<Item>(handOn: (items: Item[]) => void): Collector<Item> {
  let waiting: Item[] = [];
  let request: number | undefined;

  function flush(): void {
    if (request !== undefined) cancelAnimationFrame(request);
    request = undefined;
    if (waiting.length === 0) return;
    const items = waiting;
    waiting = [];
    handOn(items);
  }

  return {
    add(item) {
      waiting.push(item);
      request ??= requestAnimationFrame(flush);
    },
    flush,
  };
}
