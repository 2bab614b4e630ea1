import { afterEach, expect, it, vi } from "vitest";

import { collectPerFrame } from "./collector";

afterEach(() => vi.unstubAllGlobals());

it("hands on once per animation frame, in order, and the rest on request", () => {
  const frames = new Map<number, () => void>();
  vi.stubGlobal("requestAnimationFrame", (callback: () => void) => {
    frames.set(frames.size + 1, callback);
    return frames.size;
  });
  vi.stubGlobal("cancelAnimationFrame", (request: number) => frames.set(request, () => undefined));
  const handed: number[][] = [];
  const collector = collectPerFrame<number>((items) => handed.push(items));

  collector.add(1);
  collector.add(2);
  expect(frames.size).toBe(1);
  expect(handed).toEqual([]);
  frames.get(1)?.();
  expect(handed).toEqual([[1, 2]]);

  collector.add(3);
  collector.flush();
  frames.get(2)?.();
  collector.flush();
  expect(handed).toEqual([[1, 2], [3]]);
});
