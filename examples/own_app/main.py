"""Millstream inside an application of one's own.

    uvicorn main:app --app-dir examples/own_app

- its endpoints, by including the router;
- its API keys on a route of ours, with usage recorded for that route;
- its models, called directly from our code.
"""

from contextlib import aclosing
from typing import Annotated

from fastapi import Depends, FastAPI

from millstream import (
    ChatMessage,
    LLMService,
    Meter,
    Millstream,
    Principal,
    get_api_key,
    get_llm_service,
    get_meter,
    require_api_key,
)

millstream = Millstream()
app = FastAPI(title="Own app", lifespan=millstream.lifespan)
app.include_router(millstream.router)


@app.get("/whoami")
async def whoami(key: Annotated[Principal, Depends(get_api_key)]) -> dict[str, object]:
    """Any valid key opens this route."""
    return {"key": key.id, "scopes": sorted(key.scopes)}


@app.post("/summary")
async def summary(
    text: str,
    key: Annotated[Principal, Depends(require_api_key(scopes=["chat"]))],
    llm: Annotated[LLMService, Depends(get_llm_service)],
    meter: Annotated[Meter, Depends(get_meter)],
) -> dict[str, object]:
    """An answer for our own code, metered by hand, since no stream of Millstream's is involved."""
    messages = [ChatMessage(role="user", content=f"Summarise in one sentence: {text}")]
    pieces: list[str] = []
    tokens = 0
    async with aclosing(llm.stream_chat(messages, max_tokens=60)) as chunks:
        async for chunk in chunks:
            pieces.append(chunk.content)
            if chunk.token_count is not None:
                tokens = chunk.token_count
    await meter.record(key.id, tokens, model="summary")
    return {"summary": "".join(pieces), "tokens": tokens}
