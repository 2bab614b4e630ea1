/** What an answer used, in words. */

import type { AssistantMessage } from "millstream/react";

const SOURCES: Record<string, string> = {
  provider_final: "counted by the provider",
  provider_partial: "provider’s count so far",
  counted: "counted here",
  checkpoint: "last checkpoint",
};

const FINISHES: Record<string, string> = {
  length: "cut off at the length limit",
  tool_calls: "asks for its tools to be called",
  content_filter: "held back by a content filter",
  cancelled: "cancelled",
  budget_exceeded: "stopped: the budget is spent",
};

const number = new Intl.NumberFormat("en");

/** The parts of the quiet line under an answer; empty while there is nothing to say. */
export function usageParts(answer: AssistantMessage): string[] {
  const parts: string[] = [];
  const { usage, finishReason } = answer;
  if (usage !== undefined) {
    const cached = usage.cachedTokens > 0 ? ` (${number.format(usage.cachedTokens)} cached)` : "";
    const reasoning = usage.reasoningTokens > 0 ? ` (${number.format(usage.reasoningTokens)} reasoning)` : "";
    parts.push(
      `${number.format(usage.promptTokens)} prompt${cached} + ` +
        `${number.format(usage.completionTokens)} completion${reasoning} tokens`,
    );
    const source = SOURCES[usage.source] ?? usage.source;
    if (source !== "") parts.push(source);
    if (usage.costUsd !== null) parts.push(`$${usage.costUsd}`);
  }
  if (finishReason !== undefined && finishReason !== "stop") {
    parts.push(FINISHES[finishReason] ?? finishReason);
  }
  if (parts.length > 0 && answer.model) parts.unshift(answer.model);
  return parts;
}
