import type { Models } from "./useModels";

interface Props {
  models: Models;
  chosen: string | undefined;
  onChoose(model: string): void;
}

export function ModelSelect({ models, chosen, onChoose }: Props) {
  const list = models.state === "ready" ? models.models : [];
  return (
    <label className="model">
      <span className="model-label">Model</span>
      <select
        className="model-select"
        data-testid="model"
        value={chosen ?? ""}
        disabled={list.length === 0}
        onChange={(event) => onChoose(event.target.value)}
      >
        {list.length === 0 && (
          <option value="">{models.state === "loading" ? "Loading…" : "No models"}</option>
        )}
        {list.map((model) => (
          <option key={model.id} value={model.id}>
            {model.owner === "" ? model.id : `${model.id} · ${model.owner}`}
          </option>
        ))}
      </select>
    </label>
  );
}
