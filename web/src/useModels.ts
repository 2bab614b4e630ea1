import { StreamError } from "millstream/react";
import { useEffect, useState } from "react";

import type { Model } from "./api";
import { listModels } from "./api";

export type Models =
  | { state: "loading" }
  | { state: "ready"; models: Model[] }
  | { state: "failed"; failure: StreamError };

/** The models that this key may use, and a way to ask again. */
export function useModels(key: string, onUnauthorized: () => void): [Models, () => void] {
  const [found, setFound] = useState<Models>({ state: "loading" });
  const [attempt, setAttempt] = useState(0);

  // biome-ignore lint/correctness/useExhaustiveDependencies: another attempt asks again.
  useEffect(() => {
    const controller = new AbortController();
    setFound({ state: "loading" });
    listModels(key, controller.signal).then(
      (models) => setFound({ state: "ready", models }),
      (error: unknown) => {
        if (controller.signal.aborted) return;
        if (!(error instanceof StreamError)) throw error;
        if (error.code === "unauthorized") onUnauthorized();
        else setFound({ state: "failed", failure: error });
      },
    );
    return () => controller.abort();
  }, [key, attempt, onUnauthorized]);

  return [found, () => setAttempt(attempt + 1)];
}
