import { useEffect, useState } from "react";

import { ApiError, listModels } from "./api";
import type { Model } from "./api";
import type { Failure } from "./stream";

export type Models =
  | { state: "loading" }
  | { state: "ready"; models: Model[] }
  | { state: "failed"; failure: Failure };

/** The models that this key may use, and a way to ask again. */
export function useModels(key: string, onUnauthorized: () => void): [Models, () => void] {
  const [found, setFound] = useState<Models>({ state: "loading" });
  const [attempt, setAttempt] = useState(0);

  useEffect(() => {
    const controller = new AbortController();
    setFound({ state: "loading" });
    listModels(key, controller.signal).then(
      (models) => setFound({ state: "ready", models }),
      (error: unknown) => {
        if (controller.signal.aborted) return;
        if (!(error instanceof ApiError)) throw error;
        if (error.status === 401) onUnauthorized();
        else setFound({ state: "failed", failure: error.failure });
      },
    );
    return () => controller.abort();
  }, [key, attempt, onUnauthorized]);

  return [found, () => setAttempt(attempt + 1)];
}
