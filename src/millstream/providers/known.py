"""Known providers: what makes each of them ready by itself, and what it does differently, as data.

Facts are from the providers' own references; ``docs/reference/providers.md`` is made from this page. A new
provider that speaks OpenAI's Chat Completions is one row. Every quirk can be set for a server that nobody
here knows, in its section of the settings.
"""

from collections.abc import Mapping

from msgspec import Struct


class Quirks(Struct, frozen=True):
    """What a server that speaks OpenAI's Chat Completions does differently from OpenAI's description of it.

    ``stream_options`` whether it takes that field, by which usage is asked for; ``renamed`` fields of a
    request that have another name there; ``refused`` fields of a request, a part or a tool that it
    refuses, which are left out; ``developer_role`` whether it knows messages of that role, which are
    ``system`` elsewhere, and several at the beginning one; ``text_parts`` whether a message may have its
    text in parts, which are one elsewhere; ``user_after_tool`` whether a user may speak behind results of
    tools, else the assistant does between; ``short_call_ids`` whether it takes ids of tool calls of nine
    letters and digits only; ``longest_call_id`` how many characters such an id may have;
    ``reasoning_field`` its name for the reasoning of earlier answers, None where it refuses that;
    ``extra_content`` whether it takes back what it has sent in that field; ``ends`` finish reasons in
    words of its own -> ours, or ``failed``; ``cached_at`` where in its usage object the cached tokens are
    (``a.b``); ``models_path`` where it lists its models, below its base URL; ``reasoning_beside`` whether
    its completion tokens are without the reasoning where it gives no total; ``pings`` whether it
    documents comments or empty events as signs of life while there is nothing to say.
    """

    stream_options: bool = True
    renamed: Mapping[str, str] = {}
    refused: tuple[str, ...] = ()
    developer_role: bool = False
    text_parts: bool = True
    user_after_tool: bool = True
    short_call_ids: bool = False
    longest_call_id: int | None = None
    reasoning_field: str | None = "reasoning_content"
    extra_content: bool = True
    ends: Mapping[str, str] = {}
    cached_at: str | None = None
    models_path: str = "models"
    reasoning_beside: bool = False
    pings: bool = False


class KnownProvider(Struct, frozen=True):
    """A provider that is ready as soon as ``variable`` has its key, or ``url_variable`` another server's URL.

    ``type`` is the protocol it is asked in; ``openai_url`` is where a provider that has one of its own speaks
    OpenAI's as well, with the ``quirks``. ``price_id`` is its id in genai-prices, ``preferred`` are its
    models to take as the default, best first, ``hidden`` parts of names of models that cannot chat.
    """

    name: str
    variable: str
    base_url: str
    price_id: str
    url_variable: str | None = None
    preferred: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    quirks: Quirks = Quirks()
    type: str = "openai"
    openai_url: str | None = None


# What OpenAI has besides, which is refused by whoever takes no field that it does not know.
_OPENAIS = (
    "moderation", "prompt_cache_breakpoint", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "safety_identifier", "verbosity",
)  # fmt: skip

# OpenAI has renamed the field, and takes metadata of what it stores only; Azure follows it. Anthropic's marks
# of the cache are refused by whoever takes no field that it does not know.
OPENAI = Quirks(
    renamed={"max_tokens": "max_completion_tokens"},
    refused=("metadata", "top_k", "cache_control"),
    developer_role=True,
    longest_call_id=40,
    reasoning_field=None,
    extra_content=False,
)

# Parts of names of models that answer no chat, whoever serves them: such a model is never the default.
NOT_CHAT = (
    "whisper", "transcri", "tts", "speech", "embed", "rerank", "moderation", "guard", "dall-e", "imagen",
    "stable-diffusion", "sdxl", "flux", "sora", "veo", "bge-", "e5-", "gte-", "clip", "parakeet", "kokoro",
    "ocr", "upscal",
)  # fmt: skip

# Not chat models, though OpenAI lists them beside those.
_NOT_CHAT_AT_OPENAI = (
    "audio", "codex", "dall-e", "embedding", "image", "instruct", "moderation", "realtime", "search",
    "sora", "transcribe", "tts", "whisper", "babbage", "davinci", "deep-research",
)  # fmt: skip

KNOWN = (
    KnownProvider(
        "openai",
        "OPENAI_API_KEY",
        "https://api.openai.com/v1",
        "openai",
        url_variable="OPENAI_BASE_URL",
        preferred=("gpt-5-mini", "gpt-4.1-mini", "gpt-4o-mini"),
        hidden=_NOT_CHAT_AT_OPENAI,
        quirks=OPENAI,
    ),
    KnownProvider(
        "anthropic",
        "ANTHROPIC_API_KEY",
        "https://api.anthropic.com/v1",
        "anthropic",
        url_variable="ANTHROPIC_BASE_URL",
        preferred=("claude-haiku-5-5", "claude-haiku-4-5", "claude-haiku-4-5-20251001"),
        type="anthropic",
    ),
    KnownProvider(
        "gemini",
        "GEMINI_API_KEY",
        "https://generativelanguage.googleapis.com",
        "google",
        url_variable="GEMINI_BASE_URL",
        preferred=("gemini-2.5-flash", "gemini-2.0-flash"),
        hidden=("embedding", "imagen", "veo", "tts", "image", "live", "aqa", "audio"),
        quirks=Quirks(refused=("seed", "metadata", "user", "top_k", *_OPENAIS), reasoning_field=None),
        type="gemini",
        openai_url="https://generativelanguage.googleapis.com/v1beta/openai",
    ),
    KnownProvider(
        "groq",
        "GROQ_API_KEY",
        "https://api.groq.com/openai/v1",
        "groq",
        hidden=("whisper", "tts", "guard", "orpheus"),
        quirks=Quirks(
            refused=("metadata", "top_k", "cache_control", *_OPENAIS),
            reasoning_field=None,
            extra_content=False,
        ),
    ),
    KnownProvider(
        "openrouter",
        "OPENROUTER_API_KEY",
        "https://openrouter.ai/api/v1",
        "openrouter",
        # https://openrouter.ai/docs/api-reference/streaming: comments, so that the connection is not given up
        quirks=Quirks(reasoning_field="reasoning", extra_content=False, pings=True),
    ),
    KnownProvider(
        "mistral",
        "MISTRAL_API_KEY",
        "https://api.mistral.ai/v1",
        "mistral",
        preferred=("mistral-small-latest", "mistral-medium-latest"),
        hidden=("embed", "moderation", "ocr", "transcribe", "voxtral-mini-tts"),
        # https://docs.mistral.ai/api: fields that it does not know are refused, as are ids of tool calls that
        # are not like its own; usage comes unasked
        quirks=Quirks(
            stream_options=False,
            renamed={"seed": "random_seed"},
            refused=(
                *("user", "reasoning_effort", "metadata", "top_k", "cache_control"),
                *("logprobs", "top_logprobs", "service_tier"),
                *_OPENAIS,
            ),
            user_after_tool=False,
            short_call_ids=True,
            reasoning_field=None,
            extra_content=False,
        ),
    ),
    KnownProvider(
        "deepseek",
        "DEEPSEEK_API_KEY",
        "https://api.deepseek.com/v1",
        "deepseek",
        # https://api-docs.deepseek.com/quick_start/rate_limit: comments while a request waits;
        # https://api-docs.deepseek.com/guides/thinking_mode: reasoning is wanted back in tool loops
        quirks=Quirks(
            refused=("metadata", "user", "seed", "top_k"), text_parts=False, extra_content=False, pings=True
        ),
    ),
    KnownProvider(
        "together",
        "TOGETHER_API_KEY",
        "https://api.together.xyz/v1",
        "together",
        hidden=("embed", "rerank", "whisper", "guard", "flux", "stable-diffusion", "bge-", "m2-bert"),
    ),
    KnownProvider(
        "xai",
        "XAI_API_KEY",
        "https://api.x.ai/v1",
        "x-ai",
        hidden=("image", "imagine", "video"),
        # https://docs.x.ai/docs/guides/reasoning: counted apart from the completion
        quirks=Quirks(
            refused=("metadata", "top_k"), reasoning_field=None, extra_content=False, reasoning_beside=True
        ),
    ),
    KnownProvider(
        "moonshot",
        "MOONSHOT_API_KEY",
        "https://api.moonshot.ai/v1",
        "moonshotai",
        # https://platform.moonshot.ai/docs: a thinking model wants its reasoning back in tool loops
        quirks=Quirks(refused=("metadata", "seed", "top_k"), extra_content=False),
    ),
)
