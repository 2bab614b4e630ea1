"""Known providers: what makes each of them ready by itself, as data.

Facts are from the providers' own references. A new provider that speaks OpenAI's Chat Completions is one row.
"""

from msgspec import Struct

# Not chat models, though OpenAI lists them beside those.
_NOT_CHAT = (
    "audio", "codex", "dall-e", "embedding", "image", "instruct", "moderation", "realtime", "search",
    "sora", "transcribe", "tts", "whisper", "babbage", "davinci", "deep-research",
)  # fmt: skip


class KnownProvider(Struct, frozen=True):
    """A provider that is ready as soon as ``variable`` has its key, or ``url_variable`` another server's URL.

    ``price_id`` is its id in genai-prices, ``preferred`` are its models to take as the default, best first,
    ``hidden`` parts of names of models that cannot chat.
    """

    name: str
    variable: str
    base_url: str
    price_id: str
    url_variable: str | None = None
    preferred: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


KNOWN = (
    KnownProvider(
        "openai",
        "OPENAI_API_KEY",
        "https://api.openai.com/v1",
        "openai",
        url_variable="OPENAI_BASE_URL",
        preferred=("gpt-5-mini", "gpt-4.1-mini", "gpt-4o-mini"),
        hidden=_NOT_CHAT,
    ),
    KnownProvider("groq", "GROQ_API_KEY", "https://api.groq.com/openai/v1", "groq"),
    KnownProvider("openrouter", "OPENROUTER_API_KEY", "https://openrouter.ai/api/v1", "openrouter"),
    KnownProvider("mistral", "MISTRAL_API_KEY", "https://api.mistral.ai/v1", "mistral"),
    KnownProvider("deepseek", "DEEPSEEK_API_KEY", "https://api.deepseek.com/v1", "deepseek"),
    KnownProvider("together", "TOGETHER_API_KEY", "https://api.together.xyz/v1", "together"),
    KnownProvider("xai", "XAI_API_KEY", "https://api.x.ai/v1", "x-ai"),
)
