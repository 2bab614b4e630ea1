"""The access log of uvicorn, without credentials."""

import logging
from collections.abc import Generator
from contextlib import contextmanager

from millstream.server.credentials import without_credentials


class HideCredentials(logging.Filter):
    """Tickets are credentials, though short-lived ones, and clients put keys into URLs by mistake."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                without_credentials(argument) if isinstance(argument, str) else argument
                for argument in record.args
            )
        return True


@contextmanager
def hidden_credentials() -> Generator[None]:
    """To be held while requests are served."""
    logger, hide = logging.getLogger("uvicorn.access"), HideCredentials()
    logger.addFilter(hide)
    try:
        yield
    finally:
        logger.removeFilter(hide)
