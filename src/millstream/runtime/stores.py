"""Where streams live: the settings -> an event log."""

from millstream.errors import ConfigurationError
from millstream.logs import EventLog
from millstream.logs.memory import MemoryLog
from millstream.settings import Settings


def event_log(settings: Settings) -> EventLog:
    """Raises ``ConfigurationError``. Blocking, for the start: a Redis is asked whether it will do."""
    scheme = settings.log_url.partition(":")[0]
    if scheme == "memory":
        return MemoryLog(window_seconds=settings.resume_window_seconds, max_bytes=settings.log_max_bytes)
    if scheme not in ("redis", "rediss", "unix", "valkey"):
        raise ConfigurationError(
            f"MILLSTREAM_LOG_URL: '{scheme}' is not a log; use memory: or redis://host:6379/0"
        )
    try:
        # Imported here: redis is an extra.
        from millstream.logs.redis import RedisLog
    except ModuleNotFoundError as error:
        raise ConfigurationError("the Redis log needs an extra: pip install 'millstream[redis]'") from error
    found = RedisLog(
        settings.log_url.replace("valkey://", "redis://", 1),
        window_seconds=settings.resume_window_seconds,
        lifetime_seconds=settings.stream_seconds,
        max_bytes=settings.log_max_bytes,
    )
    found.check()
    return found
