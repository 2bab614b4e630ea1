import type { Model } from "./api";
import type { Models } from "./useModels";

// What the server falls back on without a provider's key.
const DEMOS = new Set(["local", "scripted"]);

interface Props {
  models: Models;
  chosen: string | undefined;
  onChoose(model: string): void;
}

export function ModelSelect({ models, chosen, onChoose }: Props) {
  const list = models.state === "ready" ? models.models : [];
  const owners = [...new Set(list.map((model) => model.owner))];
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
        {owners.length < 2
          ? options(list)
          : owners.map((owner) => (
              <optgroup key={owner} label={owner}>
                {options(list.filter((model) => model.owner === owner))}
              </optgroup>
            ))}
      </select>
    </label>
  );
}

function options(models: Model[]) {
  return models.map((model) => (
    <option key={model.id} value={model.id}>
      {DEMOS.has(model.owner) ? `${model.id} (demo)` : model.id}
    </option>
  ));
}
