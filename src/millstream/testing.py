"""Testing an application that has Millstream in it: a provider that says what a test tells it, and a key.

    pytest_plugins = ["millstream.testing"]

has these fixtures; the functions work without them.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pytest

from millstream.api_keys import Scope
from millstream.events import TextDelta
from millstream.providers import Finish
from millstream.providers.scripted import Script, ScriptedProvider
from millstream.server.app import Millstream
from millstream.usage import Usage

__all__ = ["Script", "ScriptedProvider", "answering", "api_key", "create_key", "scripted_provider"]

CreateKey: TypeAlias = Callable[..., str]


def answering(*words: str, prompt_tokens: int = 1) -> Script:
    """The script of an answer of these words, each a piece of its own and a token."""
    usage = Usage(prompt_tokens, len(words), "provider_final")
    return [*(TextDelta(word) for word in words), Finish("stop", usage)]


def create_key(client: Any, millstream: Millstream, scopes: Sequence[Scope] = ("chat",)) -> str:
    """A new API key. ``client`` is Starlette's ``TestClient``, entered, with ``millstream``'s lifespan in its
    application: the key is made in that application's event loop.
    """
    _, secret = client.portal.call(millstream.keys.create, "test", scopes)
    return str(secret)


@pytest.fixture
def scripted_provider() -> ScriptedProvider:
    """A provider with the model ``hello``, which says "Hello there." in two pieces, and the models
    ``scripted/<n>x<ms>``: n words, one every ms milliseconds.
    """
    return ScriptedProvider({"hello": answering("Hello ", "there.")})


@pytest.fixture
def api_key() -> CreateKey:
    """``create_key``."""
    return create_key
