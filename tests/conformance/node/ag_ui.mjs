// HttpAgent of @ag-ui/client.

import { HttpAgent } from "@ag-ui/client";
import { look, PIXEL, QUESTION, SCHEMA, serve, URL } from "./driver.mjs";

const TOOL = { name: "look", description: "Looks.", parameters: SCHEMA };

async function run(request, said, agent) {
  const subscriber = {
    onTextMessageContentEvent({ event }) {
      said.piece(event.delta);
      if (said.enough(request)) agent.abortRun();
    },
    onReasoningMessageContentEvent({ event }) {
      said.reasoning += event.delta;
    },
    onToolCallEndEvent({ toolCallName, toolCallArgs }) {
      said.call(toolCallName, toolCallArgs);
    },
    onRunFinishedEvent({ event }) {
      const [usage] = event.usage;
      said.usage = [usage.inputTokens, usage.outputTokens];
      said.finish = event.metadata.millstream.finishReason;
    },
    onRunErrorEvent({ event }) {
      // A run that fails resolves all the same.
      if (event.code !== "abort") said.fail({ name: "RunError", message: `${event.code}: ${event.message}` });
    },
  };
  return await agent.runAgent(
    { tools: request.tools ? [TOOL] : [], forwardedProps: { model: request.model } },
    subscriber,
  );
}

function agentOf(request) {
  const source = { type: "data", value: PIXEL, mimeType: "image/png" };
  const content = request.image ? [{ type: "text", text: QUESTION }, { type: "image", source }] : QUESTION;
  return new HttpAgent({
    url: `${URL}/ag-ui`,
    headers: { Authorization: `Bearer ${request.key}` },
    initialMessages: [{ id: "question", role: "user", content }],
  });
}

async function turns(request, said) {
  const agent = agentOf(request);
  while (true) {
    const { newMessages } = await run(request, said, agent);
    const calls = newMessages.flatMap((message) => message.toolCalls ?? []);
    if (calls.length === 0) return;
    for (const call of calls) {
      const content = look(JSON.parse(call.function.arguments));
      agent.addMessage({ id: `result-${call.id}`, role: "tool", toolCallId: call.id, content });
    }
  }
}

await serve({ ask: (request, said) => run(request, said, agentOf(request)), turns });
