"""Who answers: the settings -> the providers, with their prices."""

import logging
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from msgspec.structs import replace

from millstream.catalog import LLMService, Routing
from millstream.errors import ConfigurationError, safe_traceback
from millstream.listings import ProviderEntry
from millstream.prices import RATES, Override, Prices, Rates, RatesAbove, UnitPrices
from millstream.providers import Provider, chaos, replay
from millstream.providers.anthropic import BETA_HEADER, VERSION, AnthropicProvider
from millstream.providers.chaos import ChaosProvider
from millstream.providers.clocks import Clocks
from millstream.providers.gemini import GeminiProvider
from millstream.providers.known import KNOWN, OPENAI, Quirks
from millstream.providers.local import LocalProvider, model_file, weights
from millstream.providers.openai import OpenAIProvider
from millstream.providers.replay import ReplayProvider
from millstream.providers.responses import ResponsesProvider
from millstream.providers.scripted import ScriptedProvider
from millstream.providers.upstream import Upstream
from millstream.settings import (
    PLUGINS,
    ModelSettings,
    PriceSettings,
    ProviderSettings,
    RateSettings,
    Settings,
)

log = logging.getLogger("millstream.providers")

# What test keys may ask: it costs nothing.
_FOR_TESTS = (ScriptedProvider, LocalProvider, ChaosProvider, ReplayProvider)


def llm_service(settings: Settings, given: Mapping[str, Provider]) -> LLMService:
    """The providers of the settings and those ``given``; without any, a model on this machine or a script.
    Raises ``ConfigurationError``.
    """
    entries = {
        name: _ENTRIES.get(config.type, _plugin)(name, settings, config)
        for name, config in settings.providers.items()
    }
    if settings.unused_proxy and any(config.base_url for config in settings.providers.values()):
        log.warning(
            "%s is set, and providers are asked without it; MILLSTREAM_PROXY=environment makes use of it",
            settings.unused_proxy,
        )
    entries |= {name: ProviderEntry(provider) for name, provider in given.items()}
    unready = dict(settings.unready_providers)
    if not entries:
        _require_demo(settings)
        try:
            entries["local"] = ProviderEntry(LocalProvider(weights()))
        except ConfigurationError as error:
            unready["local"] = str(error)
            entries["scripted"] = ProviderEntry(ScriptedProvider(), any_model=False)
    if settings.chaos if settings.chaos is not None else _demo_is_wanted(settings):
        entries.setdefault(chaos.NAME, ProviderEntry(ChaosProvider(_clocks(settings))))
    entries.setdefault(replay.NAME, ProviderEntry(ReplayProvider(settings.resolved_recordings_dir)))
    entries = {
        name: replace(entry, is_for_tests=isinstance(entry.provider, _FOR_TESTS))
        for name, entry in entries.items()
    }
    service = LLMService(
        entries,
        default_model=settings.default_model,
        prices=prices(settings),
        routings={name: _routing(model) for name, model in settings.models.items()},
    )
    service.add_unready(unready)
    return service


def prices(settings: Settings) -> Prices:
    """Those that are set, and the mark-up on all others."""
    return Prices({name: _override(one) for name, one in settings.prices.items()}, settings.markup)


def _override(price: PriceSettings) -> Override:
    version = f"settings {price.version}".strip()
    cost = charged = None
    if price.input is not None:
        above = sorted(price.above, key=lambda one: one.tokens)
        rates = _rates(price, above=tuple(RatesAbove(one.tokens, _dependent(one, price)) for one in above))
        tiers = {tier.lower(): _dependent(one, price) for tier, one in price.tiers.items()}
        cost = UnitPrices(version, rates, tiers, all_tiers=bool(tiers))
    if price.charged is not None:
        charged = UnitPrices(version, _rates(price.charged))
    return Override(cost, price.markup, charged)


def _dependent(given: RateSettings, on: PriceSettings) -> Rates:
    """Of a tier, or of long prompts: an answer costs what it usually does where they say nothing of that."""
    rates = _rates(given)
    return replace(rates, request=on.request) if rates.request is None else rates


def _rates(given: PriceSettings | RateSettings, **more: Any) -> Rates:
    return Rates(**{name: getattr(given, name) for name in RATES}, **more)


def _routing(model: ModelSettings) -> Routing:
    weights = {
        one if isinstance(one, str) else one.model: 1 if isinstance(one, str) else one.weight
        for one in model.deployments
    }
    bounds = (model.attempts, model.attempt_seconds, model.hedge_seconds)
    return Routing(weights, model.fallbacks, *bounds)


def _demo_is_wanted(settings: Settings) -> bool:
    """Whether what is for a first look and for tests may be served: it was said so, or this is a terminal."""
    required = settings.require_provider
    return not required if required is not None else sys.stderr.isatty()


def _require_demo(settings: Settings) -> None:
    """Raises ``ConfigurationError`` where a model that is no more than a first look must not be served:
    whoever misspelt a variable would not know.
    """
    if not _demo_is_wanted(settings):
        variables = ", ".join(known.variable for known in KNOWN)
        raise ConfigurationError(
            f"no provider is set: set one of {variables}, AZURE_OPENAI_ENDPOINT, OPENAI_BASE_URL, or a "
            "section [providers.<name>]; MILLSTREAM_REQUIRE_PROVIDER=false serves a small model or a script"
        )


def _scripted(name: str, settings: Settings, config: ProviderSettings) -> ProviderEntry:
    return ProviderEntry(ScriptedProvider(), models=config.models, stream_seconds=config.stream_seconds)


def _local(name: str, settings: Settings, config: ProviderSettings) -> ProviderEntry:
    try:
        path = model_file(config.path) if config.path else weights()
    except ConfigurationError as error:
        raise ConfigurationError(f"provider {name}: {error}") from error
    return ProviderEntry(LocalProvider(path), stream_seconds=config.stream_seconds)


def _openai(name: str, settings: Settings, config: ProviderSettings) -> ProviderEntry:
    assert config.base_url is not None
    headers: dict[str, str] = {}
    if config.api_key is not None:
        secret = config.api_key.get_secret_value()
        headers = {"api-key": secret} if config.azure else {"Authorization": f"Bearer {secret}"}
    quirks = _quirks(config)
    upstream = _upstream(name, settings, config, headers, pings=quirks.pings)
    return _remote(OpenAIProvider(name, config.base_url, upstream, quirks=quirks, extra=config.extra), config)


def _anthropic(name: str, settings: Settings, config: ProviderSettings) -> ProviderEntry:
    assert config.base_url is not None
    # A header with what is tried has what a client wants to try as well.
    betas = [value for header, value in config.headers.items() if header.lower() == BETA_HEADER]
    others = {header: value for header, value in config.headers.items() if header.lower() != BETA_HEADER}
    headers = {"anthropic-version": VERSION, **others}
    if config.api_key is not None:
        headers["x-api-key"] = config.api_key.get_secret_value()
    upstream = _upstream(name, settings, config.model_copy(update={"headers": others}), headers, pings=True)
    provider = AnthropicProvider(name, config.base_url, upstream, extra=config.extra, betas=betas)
    return _remote(provider, config)


def _responses(name: str, settings: Settings, config: ProviderSettings) -> ProviderEntry:
    assert config.base_url is not None
    key = config.api_key
    headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
    upstream = _upstream(name, settings, config, headers)
    return _remote(ResponsesProvider(name, config.base_url, upstream, extra=config.extra), config)


def _gemini(name: str, settings: Settings, config: ProviderSettings) -> ProviderEntry:
    assert config.base_url is not None
    key = config.api_key
    headers = {} if key is None else {"x-goog-api-key": key.get_secret_value()}
    upstream = _upstream(name, settings, config, headers)
    return _remote(GeminiProvider(name, config.base_url, upstream, extra=config.extra), config)


def _plugin(name: str, settings: Settings, config: ProviderSettings) -> ProviderEntry:
    """A provider of another package, which has named what makes it."""
    (found,) = entry_points(group=PLUGINS, name=config.type)
    try:
        provider: Provider = found.load()(name, config)
    except ConfigurationError:
        raise
    except Exception as error:
        log.error("provider %s: %s", name, safe_traceback(error))
        what = f"the plug-in '{config.type}' ({found.value}) cannot make it: {type(error).__name__}"
        raise ConfigurationError(f"provider {name}: {what}") from None
    return _remote(provider, config)


def _upstream(
    name: str,
    settings: Settings,
    config: ProviderSettings,
    headers: Mapping[str, str],
    *,
    pings: bool = False,
) -> Upstream:
    proxy = config.proxy or settings.proxy
    ca_file = config.ca_file or settings.ca_file
    clocks = _clocks(settings, config)
    try:
        return Upstream(
            name, {**config.headers, **headers}, clocks, pings=pings, proxy=proxy, ca_file=ca_file
        )
    except ValueError as error:  # of a header, of the proxy, or of the ca_file
        raise ConfigurationError(f"provider {name}: {error}") from error


def _clocks(settings: Settings, config: ProviderSettings | None = None) -> Clocks:
    names = ((clock, f"{clock}_seconds") for clock in Clocks.__struct_fields__)
    return Clocks(**{clock: getattr(config, name, None) or getattr(settings, name) for clock, name in names})


def _remote(provider: Provider, config: ProviderSettings) -> ProviderEntry:
    return ProviderEntry(
        provider,
        models=config.models,
        any_model=not config.models,
        price_id=config.price_id,
        preferred=config.preferred,
        hidden=config.hidden,
        stream_seconds=config.stream_seconds,
    )


def _quirks(config: ProviderSettings) -> Quirks:
    """Those that are set, else those that are known of the server at this address."""
    if config.quirks is not None:
        return config.quirks.quirks()
    if config.azure:
        return OPENAI
    base_url = (config.base_url or "").rstrip("/")
    at = {known.openai_url or known.base_url: known.quirks for known in KNOWN}
    return at.get(base_url, Quirks())


# A new kind of provider is a function above, a row here, and a value of ``ProviderSettings.type``.
_ENTRIES = {
    "openai": _openai,
    "anthropic": _anthropic,
    "responses": _responses,
    "gemini": _gemini,
    "local": _local,
    "scripted": _scripted,
}
