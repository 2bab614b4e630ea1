/** Millstream's client: for browsers, Node ≥ 20, workers and whatever else has a streaming `fetch`. */

export { Chat } from "./chat";
export type { ChatOptions, ChatState, ChatStatus } from "./chat";
export { StreamError, errorFromResponse } from "./errors";
export type { ErrorCode } from "./errors";
export type { FinishReason, Frame, Position, ToolCallPiece, Usage } from "./frames";
export { reduce, textOf } from "./messages";
export type { AssistantMessage, Message, Part, UserMessage } from "./messages";
export { call, cancelStream, keepToken, openStream } from "./stream";
export type { ConnectionState, Positioned, Server, StreamOptions } from "./stream";
export { openShared } from "./tabs";
