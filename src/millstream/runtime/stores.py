"""Where streams live: the settings -> a journal."""

from millstream.errors import ConfigurationError, missing_extra
from millstream.journals import Journal
from millstream.journals.memory import MemoryJournal
from millstream.settings import Settings


def journal(settings: Settings) -> Journal:
    """Raises ``ConfigurationError``. Blocking, for the start: a Redis is asked whether it will do."""
    scheme = settings.journal_url.partition(":")[0]
    if scheme == "memory":
        return MemoryJournal(
            window_seconds=settings.resume_window_seconds, max_bytes=settings.journal_max_bytes
        )
    if scheme not in ("redis", "rediss", "unix", "valkey"):
        raise ConfigurationError(
            f"MILLSTREAM_JOURNAL_URL: '{scheme}' is not a journal; use memory: or redis://host:6379/0"
        )
    try:
        # Imported here: redis is an extra.
        from millstream.journals.redis import RedisJournal
    except ModuleNotFoundError as error:
        raise missing_extra("the Redis journal", "redis") from error
    found = RedisJournal(
        settings.journal_url.replace("valkey://", "redis://", 1),
        window_seconds=settings.resume_window_seconds,
        lifetime_seconds=settings.stream_seconds,
        max_bytes=settings.journal_max_bytes,
    )
    found.check()
    return found
