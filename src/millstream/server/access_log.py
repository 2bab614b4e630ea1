"""The access log of uvicorn, without credentials."""

import logging
import re
from collections.abc import Generator
from contextlib import contextmanager

_TICKET = re.compile(r"(?<=[?&]ticket=)[^&\s]+")


class HideTickets(logging.Filter):
    """Tickets are credentials, though short-lived ones."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                _TICKET.sub("…", argument) if isinstance(argument, str) else argument
                for argument in record.args
            )
        return True


@contextmanager
def hidden_tickets() -> Generator[None]:
    """To be held while requests are served."""
    logger, hide = logging.getLogger("uvicorn.access"), HideTickets()
    logger.addFilter(hide)
    try:
        yield
    finally:
        logger.removeFilter(hide)
