"""Stream LLM answers over Server-Sent Events: metered once, stopped at once, never buffered."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from millstream.version import __version__

if TYPE_CHECKING:
    from millstream.auth import Principal
    from millstream.catalog import ChunkResponse, LLMService
    from millstream.messages import ChatMessage, ChatRequest
    from millstream.meter import Meter
    from millstream.server.app import EXPOSED_HEADERS, Millstream, create_app
    from millstream.server.dependencies import (
        get_api_key,
        get_llm_service,
        get_meter,
        require_api_key,
        require_principal,
    )
    from millstream.settings import Settings

__all__ = [
    "EXPOSED_HEADERS",
    "ChatMessage",
    "ChatRequest",
    "ChunkResponse",
    "LLMService",
    "Meter",
    "Millstream",
    "Principal",
    "Settings",
    "__version__",
    "create_app",
    "get_api_key",
    "get_llm_service",
    "get_meter",
    "require_api_key",
    "require_principal",
]

# The public names load what they need when they are first used, so that a command as small as
# ``millstream keys list`` does not wait for FastAPI.
_HOMES = {
    "Principal": "auth",
    "ChunkResponse": "catalog",
    "LLMService": "catalog",
    "ChatMessage": "messages",
    "ChatRequest": "messages",
    "Meter": "meter",
    "EXPOSED_HEADERS": "server.app",
    "Millstream": "server.app",
    "create_app": "server.app",
    "get_api_key": "server.dependencies",
    "get_llm_service": "server.dependencies",
    "get_meter": "server.dependencies",
    "require_api_key": "server.dependencies",
    "require_principal": "server.dependencies",
    "Settings": "settings",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'millstream' has no attribute '{name}'")
    return getattr(import_module(f"millstream.{_HOMES[name]}"), name)
