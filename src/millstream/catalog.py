"""The models catalogue: a model's name -> the provider that has it, its price and its tokenizer.

``LLMService`` is also the small public face for code that wants an answer without a stream of ours.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from msgspec import Struct

from millstream import tokens
from millstream.errors import (
    InvalidRequest,
    ModelNotFound,
    UpstreamError,
    safe_traceback,
)
from millstream.events import FinishReason, TextDelta
from millstream.listings import Listings, ProviderEntry
from millstream.messages import ChatMessage, ChatRequest
from millstream.prices import Price, Prices
from millstream.providers import Finish, Provider

log = logging.getLogger("millstream.catalog")

_MAX_RESOLVED = 1024


class Model(Struct, frozen=True):
    """A model that can be asked. ``name`` is ours, ``upstream_name`` its provider's."""

    name: str
    provider_name: str
    provider: Provider
    upstream_name: str
    encoding: str
    stream_seconds: float | None = None


class ChunkResponse(Struct, frozen=True):
    """A piece of an answer. The last one has the finish reason and the number of completion tokens."""

    content: str
    finish_reason: FinishReason | None = None
    token_count: int | None = None


class LLMService:
    """Models by name. ``discover`` asks the providers which they have."""

    def __init__(
        self,
        providers: Mapping[str, ProviderEntry],
        *,
        default_model: str | None = None,
        prices: Prices | None = None,
    ) -> None:
        self._providers = dict(providers)
        self._prices = prices or Prices({})
        self._configured_default = default_model
        self._resolved: dict[str, tuple[Model, Price | None]] = {}
        self._listings = Listings(self._providers, changed=self._resolved.clear)
        self._unready: dict[str, str] = {}

    async def discover(self) -> None:
        """Asks every provider for its models; those that do not answer are in ``unready``."""
        await self._listings.ask()

    async def keep_models_true(self) -> None:
        """Asks again: providers that did not answer, and from time to time those that did. Runs until it is
        cancelled.
        """
        await self._listings.keep_true()

    @property
    def unready(self) -> Mapping[str, str]:
        """Why a provider has no models, by its name."""
        return self._listings.unready | self._unready

    def add_unready(self, why: Mapping[str, str]) -> None:
        """Providers that there are none of, and why."""
        self._unready |= why

    @property
    def models(self) -> Mapping[str, str]:
        """Every model that is ready, with its provider's name. The default comes first."""
        default, models = self.default_model, self._listings.models
        if default not in models:
            return models
        return {default: models[default]} | models

    @property
    def default_model(self) -> str | None:
        return self._configured_default or self._listings.default

    async def resolve(self, name: str | None) -> tuple[Model, Price | None]:
        """The model of that name (or the default) and its price now. Raises ``ModelNotFound``, or
        ``InvalidRequest`` where no model is named and there is no default.
        """
        if name is None and self.default_model is None:
            await self._listings.ask_for_a_caller()
        name = name or self.default_model
        if name is None:
            raise InvalidRequest("no model is given and there is no default; see GET /v1/models")
        if found := self._resolved.get(name):
            return found
        if not self._is_known(name):
            await self._listings.ask_for_a_caller()
        provider_name, upstream_name = self._locate(name)
        entry = self._providers[provider_name]
        encoding = tokens.encoding_for(upstream_name)
        model = Model(name, provider_name, entry.provider, upstream_name, encoding, entry.stream_seconds)
        price = await self._prices.find(name, provider_name, entry.price_id, upstream_name)
        # Names come from callers where a provider takes any; what they can make us remember is bounded.
        if len(self._resolved) < _MAX_RESOLVED:
            self._resolved[name] = (model, price)
        return model, price

    def _is_known(self, name: str) -> bool:
        """Whether a provider has it, or is named with it."""
        return name in self._listings.models or name.partition("/")[0] in self._providers

    def _locate(self, name: str) -> tuple[str, str]:
        """Provider and upstream name: ``gpt-4o`` where it is known, ``openai/gpt-4o`` anywhere."""
        if provider := self._listings.models.get(name):
            return provider, name
        prefix, _, rest = name.partition("/")
        if rest and prefix in self._providers:
            entry = self._providers[prefix]
            if not entry.models or rest in entry.models:
                return prefix, rest
        for provider, entry in self._providers.items():
            if entry.any_model:
                return provider, name
        raise ModelNotFound(f"there is no model '{name}'; see GET /v1/models")

    async def stream_chat(
        self,
        messages: Sequence[ChatMessage | Mapping[str, object]],
        model: str | None = None,
        **options: object,
    ) -> AsyncGenerator[ChunkResponse]:
        """The answer's text in pieces, straight from the provider: no journal, no ledger row.

        ``options`` are the other fields of ``ChatRequest``. Raises ``ModelNotFound``, ``ProviderError`` and
        pydantic's ``ValidationError``. Close the generator to stop the provider
        (``contextlib.aclosing``). ``token_count`` is the provider's, or counted from the text.
        """
        fields = {"messages": list(messages), "model": model, **options}
        prompt = ChatRequest.model_validate(fields).to_prompt()
        target, _ = await self.resolve(prompt.model)
        text: list[str] = []
        async with aclosing(target.provider.stream(prompt, target.upstream_name)) as batches:
            async for batch in batches:
                for item in batch:
                    if isinstance(item, TextDelta):
                        text.append(item.text)
                        yield ChunkResponse(item.text)
                    elif isinstance(item, Finish):
                        if item.usage is not None:
                            count = item.usage.completion_tokens
                        else:
                            tokenizer = await tokens.load(target.encoding)
                            count = await asyncio.to_thread(tokenizer.count, "".join(text))
                        yield ChunkResponse("", item.reason, count)
                        return
        raise UpstreamError(f"provider '{target.provider_name}' cut its answer off")

    async def close(self) -> None:
        await self._listings.close()
        closing = (entry.provider.close() for entry in self._providers.values())
        for result in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(result, Exception):
                log.error("a provider did not close: %s", safe_traceback(result))
