"""The tally: what a stream has used so far, from the best source there is, and what that costs."""

import logging
from collections.abc import Sequence

import msgspec

from millstream import tokens
from millstream.errors import safe_traceback
from millstream.prices import Tariff
from millstream.prompt import Message
from millstream.streams.parts import Assembler
from millstream.usage import UNKNOWN, Charge, Usage

log = logging.getLogger("millstream.streams")

NOTHING = Usage(0, 0, "counted")


class Tally:
    """Counts what ``assembler`` has assembled in answer to ``messages``, with the vocabulary ``encoding``,
    and prices it as ``tariff`` says for the moment at which it was asked.
    """

    __slots__ = (
        "_asked_at",
        "_assembler",
        "_encoding",
        "_messages",
        "_noted",
        "_prompt_tokens",
        "_stream_id",
        "_tariff",
    )

    def __init__(
        self,
        stream_id: str,
        assembler: Assembler,
        messages: Sequence[Message],
        encoding: str,
        tariff: Tariff | None,
        asked_at: float,
    ) -> None:
        self._stream_id = stream_id
        self._asked_at = asked_at
        self._assembler = assembler
        self._messages = messages
        self._encoding = encoding
        self._tariff = tariff
        self._prompt_tokens: int | None = None
        self._noted = 0  # events that the last checkpoint has counted

    def expects(self, prompt_tokens: int) -> None:
        """The prompt was counted already."""
        self._prompt_tokens = prompt_tokens

    def answered_by(self, encoding: str, tariff: Tariff | None) -> None:
        """Another deployment answers than was asked first."""
        self._encoding, self._tariff = encoding, tariff

    @property
    def has_grown(self) -> bool:
        """Whether something was produced since the last checkpoint."""
        return self._assembler.produced > self._noted

    def mark_checkpoint(self) -> None:
        """What was produced so far counts as checkpointed."""
        self._noted = self._assembler.produced

    async def usage(self, *, accepted: bool) -> Usage:
        """Usage so far. A provider that did not accept the request bills nothing for it."""
        finish, running = self._assembler.finish, self._assembler.usage
        final = finish.usage if finish is not None else None
        produced = self._assembler.produced > 0
        for usage in (final, None if self._assembler.usage_is_stale else running):
            # A provider that counts nothing for something has not counted.
            if usage is not None and (usage.completion_tokens or not produced):
                counted = usage.prompt_tokens or self._assembler.report is None
                return usage if counted else await self._with_prompt(usage)
        if not accepted and not produced:
            return NOTHING
        try:
            tokenizer = await tokens.load(self._encoding)
            completion = await self._assembler.generated.total(tokenizer)
            prompt = running.prompt_tokens if running is not None else 0
            prompt = prompt or await self._prompt(tokenizer)
        except Exception as error:  # a stream that cannot be counted has to be settled all the same
            log.error("stream %s cannot be counted: %s", self._stream_id, safe_traceback(error))
            return running or NOTHING
        if running is not None:
            return msgspec.structs.replace(
                running,
                prompt_tokens=prompt,
                completion_tokens=completion,
                reasoning_tokens=min(running.reasoning_tokens, completion),
                source="counted",
                tokenizer=self._encoding,
            )
        return Usage(prompt, completion, "counted", tokenizer=self._encoding)

    async def _with_prompt(self, usage: Usage) -> Usage:
        """``usage`` of a provider that counts no prompt, with ours: the weaker source names the whole."""
        try:
            prompt = await self._prompt(await tokens.load(self._encoding))
        except Exception as error:  # as above
            log.error("stream %s cannot be counted: %s", self._stream_id, safe_traceback(error))
            return usage
        return msgspec.structs.replace(
            usage, prompt_tokens=prompt, source="counted", tokenizer=self._encoding
        )

    async def _prompt(self, tokenizer: tokens.Tokenizer) -> int:
        if self._prompt_tokens is None:
            self._prompt_tokens = await tokens.count_prompt(tokenizer, self._messages)
        return self._prompt_tokens

    def last_known(self) -> Usage:
        """The provider's last running count, without counting any text."""
        return self._assembler.usage or NOTHING

    def charge(self, usage: Usage) -> Charge:
        """What ``usage`` costs, and what is charged for it, by the prices of the moment it was asked for."""
        if self._tariff is None:
            return UNKNOWN
        return self._tariff.charge(usage, self._asked_at, self._assembler.tier)

    @property
    def marks_up(self) -> bool:
        """Whether whoever asked is charged another sum than what it costs."""
        return self._tariff is not None and self._tariff.marks_up
