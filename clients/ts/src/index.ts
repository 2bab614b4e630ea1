/** Millstream's client: for browsers, Node ≥ 20, workers and whatever else has a streaming `fetch`. */

export type { ChatOptions, ChatState, ChatStatus } from "./chat";
export { Chat } from "./chat";
export type { ErrorCode } from "./errors";
export { errorFromResponse, StreamError } from "./errors";
export type { FinishReason, Frame, ModelFile, Position, ToolCallPiece, Usage } from "./frames";
export type { AssistantMessage, Message, Part, ToolCall, ToolMessage, UserMessage } from "./messages";
export { openCalls, reduce, textOf } from "./messages";
export type { ConnectionState, Positioned, Server, StreamOptions } from "./stream";
export { call, cancelStream, keepToken, openStream } from "./stream";
export { openShared } from "./tabs";
