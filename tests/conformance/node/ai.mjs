// The chat of the AI SDK, without a page.

import { chatOf, converse } from "./chat.mjs";
import { serve, URL } from "./driver.mjs";

const run = (request, said) => converse(chatOf(URL, request, said), request, said);

await serve({ ask: run, turns: run });
