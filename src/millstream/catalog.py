"""The models catalogue: a model's name -> the provider that has it, its price and its tokenizer.

``LLMService`` is also the small public face for code that wants an answer without a stream of ours.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence

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
from millstream.prices import Prices
from millstream.providers import Finish
from millstream.routing import Batch, Circuit, Deployment, Model, Routed

log = logging.getLogger("millstream.catalog")

_MAX_RESOLVED = 1024
OWNER = "millstream"  # of names that are the operator's own, in listings


class Routing(Struct, frozen=True):
    """What a name of the operator's own stands for: names of models with their weights, and those to fall
    back on. ``attempts`` and ``attempt_seconds`` bound how often and for how long it is tried;
    ``hedge_seconds`` is when another is asked as well.
    """

    deployments: Mapping[str, int]
    fallbacks: Sequence[str] = ()
    attempts: int = 3
    attempt_seconds: float = 10.0
    hedge_seconds: float | None = None


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
        routings: Mapping[str, Routing] | None = None,
    ) -> None:
        self._providers = dict(providers)
        self._routings = dict(routings or {})
        self._circuits: dict[tuple[str, str], Circuit] = {}
        self._prices = prices or Prices({})
        self._configured_default = default_model
        self._resolved: dict[str, Model] = {}
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
        """Every model that is ready, with its provider's name. The default comes first, then the operator's
        own names.
        """
        default = self.default_model
        models = {**dict.fromkeys(self._routings, OWNER), **self._listings.models}
        if default not in models:
            return models
        return {default: models[default]} | models

    @property
    def default_model(self) -> str | None:
        return self._configured_default or next(iter(self._routings), None) or self._listings.default

    async def resolve(self, name: str | None) -> Model:
        """The model of that name, or the default, with its prices now. Raises ``ModelNotFound``, or
        ``InvalidRequest`` where no model is named and there is no default.
        """
        if name is None and self.default_model is None:
            await self._listings.ask_for_a_caller()
        name = name or self.default_model
        if name is None:
            raise InvalidRequest("no model is given and there is no default; see GET /v1/models")
        if found := self._resolved.get(name):
            return found
        routing = self._routings.get(name)
        if routing is None:
            model = Model(name, (await self._deployment(name, name),))
        else:
            deployments = [await self._deployment(one, name, n) for one, n in routing.deployments.items()]
            fallbacks = [await self._deployment(one, name) for one in routing.fallbacks]
            bounds = (routing.attempts, routing.attempt_seconds, routing.hedge_seconds)
            model = Model(name, tuple(deployments), tuple(fallbacks), *bounds)
        # Names come from callers where a provider takes any; what they can make us remember is bounded.
        if len(self._resolved) < _MAX_RESOLVED:
            self._resolved[name] = model
        return model

    async def _deployment(self, name: str, called: str, weight: int = 1) -> Deployment:
        """A provider's model. Its price may be set for the name by which it was ``called``."""
        if not self._is_known(name):
            await self._listings.ask_for_a_caller()
        provider_name, upstream_name = self._locate(name)
        entry = self._providers[provider_name]
        tariff = await self._prices.find(called, provider_name, entry.price_id, upstream_name)
        circuit = Circuit()
        if len(self._circuits) < _MAX_RESOLVED:
            circuit = self._circuits.setdefault((provider_name, upstream_name), circuit)
        return Deployment(
            provider_name,
            entry.provider,
            upstream_name,
            tokens.encoding_for(upstream_name),
            circuit,
            tariff,
            entry.stream_seconds,
            weight,
            entry.is_for_tests,
        )

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
        routed = Routed(await self.resolve(prompt.model), prompt)
        text: list[str] = []
        async with routed.answering() as (begun, rest):
            async for batch in _chained(begun, rest):
                for item in batch:
                    if isinstance(item, TextDelta):
                        text.append(item.text)
                        yield ChunkResponse(item.text)
                    elif isinstance(item, Finish):
                        if item.usage is not None:
                            count = item.usage.completion_tokens
                        else:
                            tokenizer = await tokens.load(routed.deployment.encoding)
                            count = await asyncio.to_thread(tokenizer.count, "".join(text))
                        yield ChunkResponse("", item.reason, count)
                        return
            raise UpstreamError(f"provider '{routed.deployment.provider_name}' cut its answer off")

    async def close(self) -> None:
        await self._listings.close()
        closing = (entry.provider.close() for entry in self._providers.values())
        for result in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(result, Exception):
                log.error("a provider did not close: %s", safe_traceback(result))


async def _chained(begun: Sequence[Batch], rest: AsyncGenerator[Batch]) -> AsyncGenerator[Batch]:
    for batch in begun:
        yield batch
    async for batch in rest:
        yield batch
