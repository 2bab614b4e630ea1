/** The one endpoint that the page asks by itself; everything else is the client's. */

import { call, errorFromResponse, StreamError } from "millstream/react";

/** The address of Millstream: it serves this page, perhaps below a path of a proxy's. */
export const SERVER = new URL(".", document.baseURI).href;

export interface Model {
  id: string;
  owner: string;
}

export async function listModels(key: string, signal: AbortSignal): Promise<Model[]> {
  let response: Response;
  try {
    response = await call({ url: SERVER, getToken: () => key }, "/v1/models", { signal });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new StreamError("unreachable", "The server could not be reached.", { retryable: true });
  }
  if (response.status !== 200) throw await errorFromResponse(response);
  try {
    const { data } = (await response.json()) as { data: { id: string; owned_by: string }[] };
    return data.map((model) => ({ id: model.id, owner: model.owned_by }));
  } catch (error) {
    if (signal.aborted) throw error;
    throw new StreamError("bad_response", "The list of models did not come from Millstream.");
  }
}
