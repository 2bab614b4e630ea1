"""A Gemini on a real socket: it lists models, page by page, and says the chunks that a test gives it.

``tests/test_gemini_provider.py`` has google-genai read it: what it says is what Gemini's own client understands.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from oracle import Handler, Request

KEY = "AIza-canary"


def said(
    *parts: dict[str, Any], finish: str | None = None, index: int | None = None, **more: Any
) -> dict[str, Any]:
    """A chunk of one candidate. ``more`` are other fields of the chunk, such as ``usageMetadata``."""
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}} if parts else {}
    if finish is not None:
        candidate["finishReason"] = finish
    if index is not None:
        candidate["index"] = index
    return {"candidates": [candidate], "modelVersion": "gemini-3-flash-001", "responseId": "r-1", **more}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"text": words, **more}


def counted(prompt: int, candidates: int | None = None, **more: int) -> dict[str, Any]:
    """The usage object; ``total`` is made up to the others."""
    own = {} if candidates is None else {"candidatesTokenCount": candidates}
    total = (
        prompt
        + (candidates or 0)
        + sum(more.get(name, 0) for name in ("thoughtsTokenCount", "toolUsePromptTokenCount"))
    )
    return {"promptTokenCount": prompt, **own, **more, "totalTokenCount": total}


def error(code: int, status: str, message: str = "canary", *details: dict[str, Any]) -> dict[str, Any]:
    return {
        "error": {
            "code": code,
            "message": message,
            "status": status,
            **({"details": list(details)} if details else {}),
        }
    }


HELLO = [
    said(text("Hel"), usageMetadata=counted(5, 1)),
    said(text("lo"), finish="STOP", usageMetadata=counted(5, 2)),
]


def gemini(
    chunks: Sequence[object] = HELLO, *, size: int = 1_000_000, cut: bool = False, stay: bool = False
) -> Handler:
    """Says ``chunks``, in pieces of ``size`` bytes; then ends, as it should, or is ``cut``, or ``stay``s."""

    async def handler(request: Request) -> None:
        url = urlsplit(request.path)
        query = parse_qs(url.query)
        if request.headers.get("x-goog-api-key") != KEY:
            info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
            return await request.answer(400, error(400, "INVALID_ARGUMENT", "API key not valid.", info))
        if url.path == "/v1beta/models":
            return await request.answer(200, page(query.get("pageToken", [""])[0]))
        path, _, method = url.path.rpartition(":")
        model = unquote(path.removeprefix("/v1beta/models/"))
        if (
            method != "streamGenerateContent"
            or query.get("alt") != ["sse"]
            or not request.json.get("contents")
        ):
            return await request.answer(400, error(400, "INVALID_ARGUMENT"))
        if model == "missing":
            return await request.answer(
                404, error(404, "NOT_FOUND", "models/missing is not found for API version v1beta")
            )
        await request.head()
        if model == "slow":
            await asyncio.Event().wait()
        stream = b"".join(b"data: %b\r\n\r\n" % json.dumps(chunk).encode() for chunk in chunks)
        for start in range(0, len(stream), size):
            await request.chunk(stream[start : start + size])
        if stay:
            await asyncio.Event().wait()
        if cut or model == "broken":
            return request.cut()
        return await request.end()

    return handler


MODELS = [
    {"name": "models/gemini-3-flash", "supportedGenerationMethods": ["generateContent", "countTokens"]},
    {"name": "models/embedding-001", "supportedGenerationMethods": ["embedContent"]},
    {"name": "models/gemini-2.5-flash", "supportedGenerationMethods": ["generateContent"]},
]


def page(token: str) -> dict[str, Any]:
    """Two models at a time."""
    start = int(token or 0)
    following = {"nextPageToken": str(start + 2)} if start + 2 < len(MODELS) else {}
    return {"models": MODELS[start : start + 2], **following}
