"""Who answers: the settings -> the providers, with their prices."""

from collections.abc import Mapping
from pathlib import Path

from millstream.catalog import LLMService, ProviderEntry
from millstream.errors import ConfigurationError
from millstream.prices import FlatPrice, Prices
from millstream.providers import Provider
from millstream.providers.local import LocalProvider, weights
from millstream.providers.openai import OpenAIProvider
from millstream.providers.scripted import ScriptedProvider
from millstream.providers.upstream import Clocks, Upstream
from millstream.settings import ProviderSettings, Settings


def llm_service(settings: Settings, given: Mapping[str, Provider]) -> LLMService:
    """The providers of the settings and those ``given``; without any, a model on this machine or a script.
    Raises ``ConfigurationError``.
    """
    entries = {
        name: _ENTRIES[config.type](name, settings, config) for name, config in settings.providers.items()
    }
    entries |= {name: ProviderEntry(provider) for name, provider in given.items()}
    unready = dict(settings.unready_providers)
    if not entries:
        try:
            entries["local"] = ProviderEntry(LocalProvider(weights()))
        except ConfigurationError as error:
            unready["local"] = str(error)
            entries["scripted"] = ProviderEntry(ScriptedProvider(), any_model=False)
    prices = {
        name: FlatPrice(price.input, price.output, price.cached_input)
        for name, price in settings.prices.items()
    }
    service = LLMService(entries, default_model=settings.default_model, prices=Prices(prices))
    service.unready |= unready
    return service


def _scripted(name: str, settings: Settings, config: ProviderSettings) -> ProviderEntry:
    return ProviderEntry(ScriptedProvider(), models=config.models)


def _local(name: str, settings: Settings, config: ProviderSettings) -> ProviderEntry:
    path = Path(config.path) if config.path else weights()
    return ProviderEntry(LocalProvider(path))


def _openai(name: str, settings: Settings, config: ProviderSettings) -> ProviderEntry:
    assert config.base_url is not None
    headers = dict(config.headers)
    if config.api_key is not None:
        secret = config.api_key.get_secret_value()
        headers |= {"api-key": secret} if config.azure else {"Authorization": f"Bearer {secret}"}
    clocks = Clocks(settings.connect_seconds, settings.first_byte_seconds, settings.idle_seconds)
    official = config.azure or config.base_url.startswith("https://api.openai.com/")
    provider = OpenAIProvider(
        name,
        config.base_url,
        Upstream(name, headers, clocks),
        max_tokens_field="max_completion_tokens" if official else "max_tokens",
        extra=config.extra,
    )
    return ProviderEntry(
        provider,
        models=config.models,
        any_model=not config.models,
        price_id=config.price_id,
        preferred=config.preferred,
        hidden=config.hidden,
    )


# A new kind of provider is a function above, a row here, and a value of ``ProviderSettings.type``.
_ENTRIES = {"openai": _openai, "local": _local, "scripted": _scripted}
