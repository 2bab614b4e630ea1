"""Errors at the start that the operator can mend: one line in uvicorn's log instead of a traceback."""

import logging


class OneLine(logging.Filter):
    """Starlette gives a server the traceback of a lifespan that failed as text, which uvicorn logs."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._sentence = str(error)

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage().rstrip()
        if text.startswith("Traceback") and text.endswith(self._sentence):
            record.msg, record.args = f"Millstream cannot start: {self._sentence}", None
        return True


def say_in_one_line(error: Exception) -> None:
    """To be called before ``error`` is raised out of a lifespan. The process is about to end then; where it
    goes on, the last such error is the one that is looked for."""
    logger = logging.getLogger("uvicorn.error")
    for earlier in [known for known in logger.filters if isinstance(known, OneLine)]:
        logger.removeFilter(earlier)
    logger.addFilter(OneLine(error))
