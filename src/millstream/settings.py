"""Every setting, read once: environment over ``millstream.toml`` over defaults.

The only module that reads the environment, but for the two variables of ``millstream chat``.
"""

import json
import os
import re
import shlex
import tomllib
from decimal import Decimal
from importlib.metadata import entry_points
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from millstream.errors import ConfigurationError
from millstream.events import FinishReason
from millstream.providers.known import KNOWN, Quirks
from millstream.usage import SUMMED_KINDS
from millstream.version import DOCS

TOML_FILE = "millstream.toml"

# What Kubernetes sets in every pod beside a service that is called millstream, or millstream-something.
_KUBERNETES = re.compile(
    r"MILLSTREAM_([A-Z0-9]+_)*"
    r"(SERVICE_(HOST=|PORT[_=])|PORT_\d+_(TCP|UDP|SCTP)[_=]|PORT=(tcp|udp|sctp)://)"
)

# Not below a path that is one of Millstream's own: nobody could tell whether the proxy has taken it away.
_ROOT_PATH = re.compile(r"(?!/(?:v1|assets)(?:/|$))(?:/[\w.~-]+)*", re.ASCII)
_ORIGIN = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LAST_PORT = 65_535
_OF_CHAT = {"MILLSTREAM_URL", "MILLSTREAM_KEY"}  # what `millstream chat` reads

# Of a provider's request: without them answers could not be told apart or metered.
_OURS = {"contents", "input", "messages", "model", "n", "stream", "stream_options"}

PROVIDER_TYPES = ("openai", "anthropic", "responses", "gemini", "local", "scripted")
PLUGINS = "millstream.providers"  # the group of entry points in which a package names its providers

_REMOTE = ("openai", "anthropic", "responses", "gemini")  # types of providers that are asked over HTTP


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _from_home(path: Path) -> Path:
    """``~`` is the user's home: no shell reads what is in the file, and not all that is in a variable."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: it is not known where that home is") from None


HomePath = Annotated[Path, AfterValidator(_from_home)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Proxy = Annotated[str, Field(pattern="^(environment|https?://.+)$")]
_CA_FILE = "a PEM file with certificates that are trusted besides the system's"
_PROXY = "`environment` for `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, or a proxy's URL"


class QuirkSettings(_Section):
    """What a server does differently: ``[providers.<name>.quirks]`` in the file."""

    stream_options: bool = Field(
        default=True, description="whether it takes that field, by which usage is asked for"
    )
    renamed: dict[str, str] = Field(
        default={}, description="fields of a request that have another name there"
    )
    refused: tuple[str, ...] = Field(
        default=(), description="fields of a request, a part or a tool that it refuses: they are left out"
    )
    developer_role: bool = Field(
        default=False,
        description="whether it knows messages of that role; elsewhere they are `system`, and one",
    )
    text_parts: bool = Field(
        default=True, description="whether a message may have its text in several parts; else they are one"
    )
    user_after_tool: bool = Field(
        default=True,
        description="whether a user may speak behind results of tools; else the assistant says a word",
    )
    short_call_ids: bool = Field(
        default=False, description="it takes ids of tool calls of nine letters and digits only"
    )
    longest_call_id: int | None = Field(
        default=None, ge=37, description="how many characters an id of a tool call may have"
    )
    reasoning_field: str = Field(
        default="reasoning_content",
        description="its name for the reasoning of earlier answers; empty where it refuses that",
    )
    extra_content: bool = Field(
        default=True, description="whether it takes back what it has sent in that field"
    )
    ends: dict[str, FinishReason | Literal["failed"]] = Field(
        default={}, description="finish reasons in words of its own -> ours, or `failed`"
    )
    cached_at: str | None = Field(
        default=None, description="where its usage has the cached tokens, such as `a.b`"
    )
    models_path: str = Field(default="models", description="where it lists its models, below its base URL")
    reasoning_beside: bool = Field(
        default=False, description="its completion tokens are without the reasoning, and it gives no total"
    )
    pings: bool = Field(
        default=False, description="comments and empty events are signs of life while it has nothing to say"
    )

    def quirks(self) -> Quirks:
        return Quirks(**self.model_dump() | {"reasoning_field": self.reasoning_field or None})


class ProviderSettings(_Section):
    """A provider: ``[providers.<name>]`` in the file."""

    type: str = Field(
        default="openai",
        description="`openai` is every server that speaks OpenAI's Chat Completions, `anthropic` one that "
        "speaks Anthropic's Messages, `responses` one that speaks OpenAI's Responses, `gemini` Gemini's own "
        "API; others are `local`, `scripted` and those of installed plug-ins",
    )
    base_url: str | None = Field(
        default=None, description="up to and with `/v1`; for `gemini` without `/v1beta`"
    )
    api_key: SecretStr | None = Field(default=None, description="sent to that server only")
    azure: bool = Field(default=False, description="send the key as Azure wants it, in `api-key`")
    headers: dict[str, str] = Field(default={}, description="more headers for every request")
    models: tuple[str, ...] = Field(default=(), description="its models; without, it is asked for them")
    extra: dict[str, Any] = Field(
        default={}, description="merged into every request's body, object by object, except `n` and `stream`"
    )
    price_id: str | None = Field(default=None, description="its id in genai-prices, for list prices")
    path: HomePath | None = Field(default=None, description="of a GGUF file, for `local`")
    preferred: tuple[str, ...] = Field(default=(), description="models to take as the default, best first")
    hidden: tuple[str, ...] = Field(default=(), description="parts of model names not to list")
    proxy: Proxy | None = Field(default=None, description=f"{_PROXY}; else what `MILLSTREAM_PROXY` says")
    ca_file: HomePath | None = Field(default=None, description=f"{_CA_FILE}; else `MILLSTREAM_CA_FILE`")
    connect_seconds: Seconds | None = Field(default=None, description="else `MILLSTREAM_CONNECT_SECONDS`")
    first_byte_seconds: Seconds | None = Field(
        default=None, description="else `MILLSTREAM_FIRST_BYTE_SECONDS`"
    )
    first_content_seconds: Seconds | None = Field(
        default=None, description="else `MILLSTREAM_FIRST_CONTENT_SECONDS`"
    )
    idle_seconds: Seconds | None = Field(default=None, description="else `MILLSTREAM_IDLE_SECONDS`")
    stream_seconds: Seconds | None = Field(
        default=None,
        description="longest time of an answer, if that is less than `MILLSTREAM_STREAM_SECONDS`",
    )
    quirks: QuirkSettings | None = Field(default=None, description="what it does differently, see below")
    options: dict[str, Any] = Field(default={}, description="what a plug-in wants to know")

    @field_validator("type")
    @classmethod
    def _is_a_type(cls, given: str) -> str:
        plugins = entry_points(group=PLUGINS).names
        if given not in PROVIDER_TYPES and given not in plugins:
            known = ", ".join([*PROVIDER_TYPES, *sorted(plugins)])
            raise ValueError(f"there is no type '{given}': it is one of {known}; is its plug-in installed?")
        return given

    @model_validator(mode="after")
    def _has_address(self) -> "ProviderSettings":
        if self.type in _REMOTE and not (self.base_url or "").startswith(("http://", "https://")):
            raise ValueError(f"a provider of type '{self.type}' needs a base_url with http:// or https://")
        if ours := sorted(_OURS & self.extra.keys()):
            raise ValueError(f"extra cannot set {', '.join(ours)}: Millstream does")
        return self


# An answer of over a million dollars (``usage.MAX_DOLLARS``) has no price.
Rate = Annotated[Decimal, Field(ge=0, le=10_000)]
Markup = Annotated[Decimal, Field(ge=0, le=100)]


class _OptionalRates(_Section):
    cached_input: Rate | None = Field(default=None, description="else `input`")
    cache_write: Rate | None = Field(default=None, description="else `input`")
    cache_write_1h: Rate | None = Field(
        default=None, description="of what a cache keeps for an hour; else `cache_write`"
    )
    reasoning: Rate | None = Field(default=None, description="else `output`")
    audio_input: Rate | None = Field(default=None, description="else a prompt with sound has no known price")
    audio_output: Rate | None = Field(
        default=None, description="else an answer with sound has no known price"
    )
    image_input: Rate | None = Field(default=None, description="else `input`")
    image_output: Rate | None = Field(
        default=None, description="else an answer with pictures has no known price"
    )
    request: Rate | None = Field(
        default=None, description="US dollars for an answer; `above` and `tiers` have the same by default"
    )


class RateSettings(_OptionalRates):
    """Rates in US dollars per million tokens."""

    input: Rate
    output: Rate


class RateAboveSettings(RateSettings):
    """Rates for all tokens of a stream whose prompt has more than so many."""

    tokens: Annotated[int, Field(ge=1)]


class PriceSettings(_OptionalRates):
    """A model's prices in US dollars per million tokens: ``[prices."<model>"]`` in the file."""

    input: Rate | None = Field(
        default=None, description="what its tokens cost; without, another section's or the list price holds"
    )
    output: Rate | None = Field(default=None, description="belongs to `input`")
    above: tuple[RateAboveSettings, ...] = Field(
        default=(), description="rates for long prompts: `[{tokens = 200000, input = …, output = …}]`"
    )
    tiers: dict[str, RateSettings] = Field(
        default={},
        description="rates of service tiers that the provider names, such as `flex`, `batch`; "
        "with some, any other has no known price, without, the section holds in all",
    )
    version: str = Field(
        default="", max_length=64, description="is noted with every stream, such as `2026-07`"
    )
    markup: Markup | None = Field(
        default=None, description="what is charged, as a multiple of the cost; else `MILLSTREAM_MARKUP`"
    )
    charged: RateSettings | None = Field(
        default=None, description="rates of what is charged, instead of a mark-up"
    )

    @model_validator(mode="after")
    def _is_whole(self) -> "PriceSettings":
        if (self.input is None) != (self.output is None):
            raise ValueError("input and output belong together")
        of_cost = (*_OptionalRates.model_fields, "above", "tiers")
        if self.input is None and any(getattr(self, name) for name in of_cost):
            raise ValueError("without input and output there is nothing else of the cost to set")
        if self.input is None and self.markup is None and self.charged is None:
            raise ValueError("has to have input and output, a markup, or what is charged")
        return self


class DeploymentSettings(_Section):
    """One of several that a model's name stands for."""

    model: str = Field(description="a model, with its provider's name or without")
    weight: int = Field(default=1, ge=1, le=1000, description="its share of the streams")


class ModelSettings(_Section):
    """A name of your own for one model or several: ``[models.<name>]`` in the file."""

    deployments: tuple[str | DeploymentSettings, ...] = Field(
        min_length=1, description="models, each a name or `{model = …, weight = …}`"
    )
    fallbacks: tuple[str, ...] = Field(
        default=(), description="models to ask where none of those answers, in order"
    )
    attempts: int = Field(
        default=3, ge=1, le=10, description="how often it is tried, before the first content only"
    )
    attempt_seconds: Seconds = Field(
        default=10, description="how long after the start a last attempt may begin"
    )
    hedge_seconds: Seconds | None = Field(
        default=None,
        description="after how long without content another is asked as well, which may cost twice",
    )

    @model_validator(mode="after")
    def _has_another(self) -> "ModelSettings":
        others = len(self.deployments) + len(self.fallbacks) - 1
        if self.hedge_seconds is not None and not (others and self.attempts > 1):
            raise ValueError("hedge_seconds needs a second model to ask, and at least two attempts")
        return self


_EXPORTER_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
EXPORTED_VALUES = (*SUMMED_KINDS, "cost_picodollars", "price_picodollars", "streams")


class ExporterSettings(_Section):
    """Where settled streams are sent: ``[exporters.<name>]`` in the file."""

    type: Literal["stripe", "cloudevents", "webhook"] = Field(
        description="`stripe` is Stripe's meter events, `cloudevents` every service that takes CloudEvents "
        "over HTTP, such as OpenMeter, `webhook` a server of yours"
    )
    url: str | None = Field(
        default=None, description="where to send them; for `stripe` Stripe's own by default"
    )
    secret: SecretStr | None = Field(
        default=None,
        description="Stripe's API key; the bearer token of `cloudevents`, if it needs one; what signs a "
        "webhook, `whsec_` and 24 to 64 bytes in base64. Several are separated by commas: all of them sign",
    )
    event_name: str | None = Field(
        default=None,
        max_length=100,
        description="of Stripe's meter; the type of `cloudevents`, else `millstream.stream`",
    )
    value: tuple[str, ...] = Field(
        default=(),
        description="for `stripe`, what the meter counts: the sum of "
        + ", ".join(f"`{name}`" for name in EXPORTED_VALUES)
        + "; with a minus before it, one is taken away",
    )
    customer: Literal["key", "owner", "user"] = Field(
        default="user", description="who pays: the stream's `user`, its key by its id, or the `owner` of that"
    )
    customers: dict[str, str] = Field(
        default={},
        description="the service's name for each of them; without it, their own. An empty one is not "
        "billed, and a stream of one that is not listed is kept as failed",
    )
    source: str = Field(default="millstream", min_length=1, description="the source of `cloudevents`")
    batch: int = Field(default=100, ge=1, le=1000, description="most `cloudevents` in a request")
    per_second: Annotated[float, Field(gt=0, le=100_000)] | None = Field(
        default=None, description="most streams that a worker sends in a second; for `stripe` 500 by default"
    )
    headers: dict[str, str] = Field(default={}, description="more headers for every request")
    proxy: Proxy | None = Field(default=None, description=f"{_PROXY}; else what `MILLSTREAM_PROXY` says")
    ca_file: HomePath | None = Field(default=None, description=f"{_CA_FILE}; else `MILLSTREAM_CA_FILE`")

    @field_validator("value")
    @classmethod
    def _is_counted(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if name.removeprefix("-") not in EXPORTED_VALUES:
                raise ValueError(f"'{name}' is not counted: it is one of {', '.join(EXPORTED_VALUES)}")
        return given

    @model_validator(mode="after")
    def _is_whole(self) -> "ExporterSettings":
        if self.type == "stripe":
            if self.secret is None or self.event_name is None or not self.value:
                raise ValueError("an exporter of type 'stripe' needs a secret, an event_name and a value")
        elif self.url is None:
            raise ValueError(f"an exporter of type '{self.type}' needs a url")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError("its url has to begin with http:// or https://")
        if self.type == "webhook" and self.secret is None:
            raise ValueError("an exporter of type 'webhook' needs a secret, which signs")
        return self


_PREFIX = "MILLSTREAM_"
_RENAMED = {"log_url": "journal_url", "log_max_bytes": "journal_max_bytes"}  # since 0.1; gone with 0.3
_SIGNING_SECRET_BYTES = 32  # RFC 7518 §3.2: as many as the hash has


class Settings(BaseSettings):
    """Set by ``MILLSTREAM_<NAME>`` or in ``millstream.toml``; providers also by their usual variables. Both
    are read when ``Settings`` is made, and what is given to it wins. ``Settings.load`` does the same and says
    what is wrong in one line.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,  # secrets may be among it
    )

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=_LAST_PORT, description="port to listen on; 0 takes a free one")
    data_dir: HomePath = Field(default=Path("millstream-data"), description="folder of the SQLite database")
    recordings_dir: HomePath | None = Field(
        default=None,
        description="folder of the answers that `millstream record` has written and `replay/<name>` plays; "
        "else `recordings` in the data folder",
    )
    database_url: str | None = Field(
        default=None,
        description="`sqlite:///file` or `postgresql://…`; else a file in the data folder",
    )
    signing_secret: SecretStr | None = Field(
        default=None,
        description="signs browser tokens and tickets instead of the secret in the database; at least 32 "
        "bytes. Several are separated by commas: the first signs, all are believed",
    )
    journal_url: str = Field(
        default="memory:",
        description="where streams live: `memory:`, or `redis://host:6379/0` for several workers",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="the least that `serve` writes to its standard error; `info` has a line a stream",
    )
    log_format: Literal["text", "json"] = Field(default="text", description="of what it writes there")
    access_log: bool = Field(default=False, description="also a line a request")
    workers: int = Field(
        default=1, ge=1, le=256, description="processes that serve; over 1 with a shared journal only"
    )
    root_path: str | None = Field(
        default=None,
        description="path below which a proxy serves this, such as `/ai`; addresses in answers begin with "
        "it. For `serve` and `create_app`",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="other origins whose pages may call, separated by commas, each with its whole host; `*` "
        "for all. For `serve` and "
        "`create_app`: an application of yours adds its own `CORSMiddleware`",
    )
    require_provider: bool | None = Field(
        default=None,
        description="refuse to start without a provider, instead of serving a small local model or a script. "
        "Without it: unless this runs in a terminal",
    )
    chaos: bool | None = Field(
        default=None,
        description="whether models that fail on purpose (`chaos/cut@40`) can be named, by every key. "
        "Without it: where a script would be served if there were no provider",
    )
    default_model: str | None = Field(default=None, description="for requests that name none")
    max_body_bytes: int = Field(default=4 << 20, ge=1024, description="longest request body")
    max_streams: int = Field(default=10_000, ge=1, description="most streams that run at a time")
    max_readers: int = Field(
        default=1_000,
        ge=1,
        description="most connections of a worker on which one key or end user follows streams",
    )
    max_lag_seconds: Seconds = Field(
        default=0.1,
        description="how late the event loop may be, on average over a second, until starts are refused",
    )
    stream_seconds: Seconds = Field(default=900, description="longest time a stream may take")
    connect_seconds: Seconds = Field(default=10, description="to get a connection to a provider")
    first_byte_seconds: Seconds = Field(default=120, description="from a request to a provider's first byte")
    first_content_seconds: Seconds = Field(
        default=300,
        description="from there to its first word, thought or tool call: models may think in silence",
    )
    idle_seconds: Seconds = Field(default=60, description="longest silence of a provider between two of them")
    proxy: Proxy | None = Field(
        default=None, description=f"for requests to providers: {_PROXY}; without, they are asked directly"
    )
    ca_file: HomePath | None = Field(default=None, description=f"{_CA_FILE}, for providers and their proxies")
    drain_seconds: float = Field(
        default=10, ge=0, le=3600, description="what running streams get at shutdown"
    )
    resume_window_seconds: Seconds = Field(default=300, description="how long a finished stream is kept")
    journal_max_bytes: int = Field(
        default=512 << 20, ge=1 << 20, description="most memory that finished streams are kept in"
    )
    retention_days: float | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="how long the row of a stream is kept, with its receipt; the sums of its hour stay. "
        "Without it: for ever",
    )
    providers: dict[str, ProviderSettings] = Field(default={}, description="more providers, by name")
    markup: Markup = Field(
        default=Decimal(1), description="what is charged for a stream, as a multiple of what it costs"
    )
    prices: dict[str, PriceSettings] = Field(default={}, description="prices, by model")
    models: dict[str, ModelSettings] = Field(default={}, description="names of your own for models, by name")
    exporters: dict[str, ExporterSettings] = Field(
        default={}, description="where settled streams are sent, by name"
    )
    unready_providers: dict[str, str] = Field(default={}, exclude=True, repr=False)
    unused_proxy: str | None = Field(default=None, exclude=True, repr=False)  # the variable that names one
    old_names: dict[str, str] = Field(
        default={}, exclude=True, repr=False
    )  # that were used -> what they are now

    @model_validator(mode="before")
    @classmethod
    def _takes_old_names(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Those of the last version, which are told at the start. A setting's own name wins."""
        used: dict[str, str] = {}
        for old, new in _RENAMED.items():
            variable = f"{_PREFIX}{old.upper()}"
            values = [given.pop(old, None), os.environ.get(variable)]
            value = next((value for value in values if value is not None), None)
            if value is not None:
                given.setdefault(new, value)
                used[variable] = f"{_PREFIX}{new.upper()}"
        return given | {"old_names": used}

    @field_validator("root_path")
    @classmethod
    def _is_a_path(cls, given: str | None) -> str | None:
        if given and not _ROOT_PATH.fullmatch(given):
            raise ValueError("a path such as /ai, without a slash at its end, and none below /v1 or /assets")
        return given

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, given: object) -> object:
        """Also as JSON."""
        if isinstance(given, str):
            given = json.loads(given) if given.lstrip().startswith("[") else given.split(",")
        if not isinstance(given, (list, tuple)):
            raise ValueError("has to be origins, separated by commas: https://a.example,https://b.example")
        return tuple(_origin(origin) for one in given if (origin := str(one).strip()))

    @field_validator("exporters")
    @classmethod
    def _has_names(cls, given: dict[str, ExporterSettings]) -> dict[str, ExporterSettings]:
        """They are in every row that waits."""
        for wrong in (name for name in given if not _EXPORTER_NAME.fullmatch(name)):
            raise ValueError(f"'{wrong}' is no name: up to 32 of a to z, 0 to 9, - and _")
        return given

    @field_validator("signing_secret")
    @classmethod
    def _cannot_be_guessed(cls, given: SecretStr | None) -> SecretStr | None:
        if any(len(secret) < _SIGNING_SECRET_BYTES for secret in _separated(given)):
            least = f"a signing secret has at least {_SIGNING_SECRET_BYTES} bytes"
            raise ValueError(f"{least}; make one with: openssl rand -hex 32")
        return given

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        assert isinstance(env_settings, EnvSettingsSource)
        env_settings.env_vars = {
            name: value
            for name, value in env_settings.env_vars.items()
            if not _is_of_kubernetes(name.upper(), value)
        }
        toml = InitSettingsSource(settings_cls, _from_file())
        return init_settings, env_settings, toml, _ProviderVariables(settings_cls)

    @model_validator(mode="after")
    def _knows_every_variable(self) -> "Settings":
        names = [*type(self).model_fields, *_RENAMED]
        known = {f"{_PREFIX}{name.upper()}" for name in names} | _OF_CHAT
        for name, value in os.environ.items():
            ours = name.startswith(_PREFIX) and not _is_of_kubernetes(name, value)
            if ours and name.partition("__")[0] not in known:
                raise ValueError(f"there is no setting {name}; see {DOCS}/reference/settings.md")
        return self

    @classmethod
    def load(cls, **overrides: Any) -> "Settings":
        """Raises ``ConfigurationError`` with one line that names the setting."""
        try:
            return cls(**overrides)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = ".".join(map(str, first["loc"]))
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigurationError(f"setting {name}: {message}" if name else message) from None
        except SettingsError as error:
            field = re.search(r'field "(\w+)"', str(error))
            name = f"MILLSTREAM_{field[1].upper()}" if field else "a MILLSTREAM_ variable"
            raise ConfigurationError(f"{name} is not valid JSON; see {DOCS}/reference/settings.md") from None
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{TOML_FILE} cannot be read: {error}") from None

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{quote(str(self.data_dir / 'millstream.db'))}"

    @property
    def resolved_recordings_dir(self) -> Path:
        return self.recordings_dir or self.data_dir / "recordings"

    @property
    def key_command(self) -> str:
        # From the same working folder, with the same environment.
        default = self.data_dir == type(self).model_fields["data_dir"].default
        elsewhere = "" if default or self.database_url else f" --data-dir {shlex.quote(str(self.data_dir))}"
        return f"millstream keys create --name me{elsewhere}"

    @property
    def signing_secrets(self) -> tuple[bytes, ...]:
        return _separated(self.signing_secret)

    @property
    def database_has_own_folder(self) -> bool:
        return self.database_url is None  # the data folder is there for the database


class _ProviderVariables(PydanticBaseSettingsSource):
    """The providers whose usual variables are set, apart from those that are set in another way: a variable's
    key goes to the variable's provider and nowhere else.
    """

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False  # there is none of a single field: __call__ has them all

    def __call__(self) -> dict[str, Any]:
        found, unready = _from_environment(os.environ)
        set_otherwise = self.current_state.get("providers") or {}
        return {
            "providers": {name: found[name] for name in found if name not in set_otherwise},
            "unready_providers": {name: why for name, why in unready.items() if name not in set_otherwise},
            "unused_proxy": None if self.current_state.get("proxy") else _proxy_variable(os.environ),
        }


def _is_of_kubernetes(name: str, value: str | None) -> bool:
    """One of these has the name of a setting; a port that is no more than wrong is none of them."""
    return _KUBERNETES.match(f"{name}={value}") is not None


def _origin(given: str) -> str:
    """As browsers send it: in small letters, without a slash at its end or the port that its scheme has."""
    if given == "*":
        return given
    origin = _ORIGIN.fullmatch(given.rstrip("/").lower())
    if origin is None or int(origin[3] or 0) > _LAST_PORT:
        raise ValueError(
            f"'{given}' is no origin of a page: that is http:// or https://, a whole host in ASCII, without "
            "a wildcard, and maybe a port, such as https://a.example; or * for all pages"
        )
    scheme, host, port = origin.groups()
    if host.startswith("["):
        host = f"[{IPv6Address(host[1:-1])}]"
    has_port = port is not None and int(port) != _DEFAULT_PORTS[scheme]
    return f"{scheme}://{host}:{int(port)}" if has_port else f"{scheme}://{host}"


def _from_file() -> dict[str, Any]:
    """What is in ``millstream.toml``. One that is a folder, or a link to nowhere, raises ``OSError``, too."""
    if not os.path.lexists(TOML_FILE):
        return {}
    with Path(os.path.realpath(TOML_FILE)).open("rb") as file:
        return tomllib.load(file)


def _separated(given: SecretStr | None) -> tuple[bytes, ...]:
    if given is None:
        return ()
    return tuple(secret.strip().encode() for secret in given.get_secret_value().split(","))


def _from_environment(
    environ: "os._Environ[str]",
) -> tuple[dict[str, ProviderSettings], dict[str, str]]:
    """The known providers whose variables are set, and why the others are not there."""
    found: dict[str, ProviderSettings] = {}
    unready: dict[str, str] = {}
    for known in KNOWN:
        key = environ.get(known.variable) or None
        base_url = environ.get(known.url_variable or "") or None
        if key is None and base_url is None:
            unready[known.name] = f"{known.variable} is not set"
            continue
        found[known.name] = _checked(
            known.url_variable if base_url and known.url_variable else known.variable,
            type=known.type,
            base_url=base_url or known.base_url,
            api_key=key,
            price_id=known.price_id if base_url in (None, known.base_url) else None,
            preferred=known.preferred if base_url is None else (),
            hidden=known.hidden if base_url is None else (),
        )
    endpoint = environ.get("AZURE_OPENAI_ENDPOINT")
    azure_key = environ.get("AZURE_OPENAI_API_KEY")
    if endpoint and azure_key:
        found["azure"] = _checked(
            "AZURE_OPENAI_ENDPOINT",
            base_url=f"{endpoint.rstrip('/')}/openai/v1",
            api_key=azure_key,
            azure=True,
            price_id="azure",
        )
    return found, unready


def _proxy_variable(environ: "os._Environ[str]") -> str | None:
    names = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")
    return next((name for name in names if environ.get(name)), None)


def _checked(variable: str, **values: Any) -> ProviderSettings:
    try:
        return ProviderSettings(**values)
    except ValidationError:
        raise ConfigurationError(f"{variable} has to be a URL with http:// or https://") from None
