"""Models: which can be asked (spec/protocol.md §6)."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.routing import APIRoute

from millstream.dialects.anthropic import ANTHROPIC
from millstream.errors import InvalidRequest, ModelNotFound
from millstream.server import openapi
from millstream.server.answers import OneLineJSON
from millstream.server.dependencies import get_runtime
from millstream.server.errors import Handler, Route, with_errors
from millstream.server.routes.chat import Caller

_MAX_SHOWN = 256
_UNKNOWN_DATE = "1970-01-01T00:00:00Z"


class _Route(Route):
    """Errors have the form of who asks: Anthropic's clients name a version of that API."""

    def get_route_handler(self) -> Handler:
        ours = super().get_route_handler()
        theirs = with_errors(APIRoute.get_route_handler(self), ANTHROPIC)

        async def handler(request: Request) -> Response:
            return await (theirs if "anthropic-version" in request.headers else ours)(request)

        return handler


router = APIRouter(
    route_class=_Route, default_response_class=OneLineJSON, responses=openapi.USUAL, tags=openapi.TAGS
)

_TEXT = {"type": "string"}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        **dict.fromkeys(
            ("id", "object", "owned_by", "type", "display_name", "created_at", "lifecycle"), _TEXT
        ),
        "created": {"type": "integer"},
    },
}


@router.get(
    "/v1/models", responses=openapi.errors(422) | openapi.answer("The models", openapi.listed(_MODEL))
)
async def models(
    request: Request,
    caller: Caller,
    limit: Annotated[int | None, Query(ge=1, le=1000, description="all, where it is not given")] = None,
    after_id: Annotated[str | None, Query(description="the models behind that one")] = None,
    before_id: Annotated[str | None, Query(description="the models before that one")] = None,
) -> dict[str, Any]:
    """The models that are ready, the default first, in a form that the SDKs of OpenAI and Anthropic read."""
    found = get_runtime(request).llm_service.models
    names = list(found)
    start = _place(names, "after_id", after_id) + 1 if after_id else 0
    asked = names[start : _place(names, "before_id", before_id) if before_id else None]
    page = asked[-(limit or len(asked)) :] if before_id else asked[:limit]
    return {
        "object": "list",
        "data": [_shown(name, found[name]) for name in page],
        "has_more": len(page) < len(asked),
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }


def _place(names: Sequence[str], field: str, name: str) -> int:
    if name not in names:
        raise InvalidRequest(f"{field}: there is no such model any more")
    return names.index(name)


@router.get(
    "/v1/models/{model_id:path}",
    responses=openapi.errors(404, 422) | openapi.answer("The model", _MODEL),
)
async def model(request: Request, model_id: str, caller: Caller) -> dict[str, Any]:
    """One of them. Its name may have its provider's before it: `openai/gpt-4o`."""
    found = get_runtime(request).llm_service.models
    if model_id in found:
        return _shown(model_id, found[model_id])
    provider, _, name = model_id.partition("/")
    if found.get(name) == provider:
        return _shown(name, provider)
    raise ModelNotFound(f"there is no model '{model_id[:_MAX_SHOWN]}'; see GET /v1/models")


def _shown(name: str, provider: str) -> dict[str, Any]:
    ours = {"id": name, "object": "model", "created": 0, "owned_by": provider}
    # As Anthropic has it: an epoch where the date is not known.
    theirs = {"type": "model", "display_name": name, "created_at": _UNKNOWN_DATE, "lifecycle": "active"}
    return ours | theirs
