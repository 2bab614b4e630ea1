// Sends each case of the fixtures through the whole of HttpAgent, and says what became of it.

import { HttpAgent } from "@ag-ui/client";
import { readFileSync } from "node:fs";

const warnings = [];
console.warn = (...words) => warnings.push(words.join(" "));

const found = {};
for (const { name, frames } of JSON.parse(readFileSync(process.argv[2], "utf8"))) {
  warnings.length = 0;
  const agent = new HttpAgent({
    url: "http://fixture/",
    fetch: async () => new Response(frames, { headers: { "Content-Type": "text/event-stream" } }),
  });
  const seen = { outcome: null, error: null };
  await agent.runAgent(
    {},
    {
      onRunFinishedEvent: ({ event }) => {
        seen.outcome = event.outcome;
      },
      onRunErrorEvent: ({ event }) => {
        seen.error = event.code;
      },
    },
  );
  found[name] = { ...seen, messages: agent.messages, warnings: [...warnings] };
}
console.log(JSON.stringify(found));
