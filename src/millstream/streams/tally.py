"""The tally: what a stream has used so far, from the best source there is, and what that costs."""

import logging
from collections.abc import Sequence
from decimal import Decimal

import msgspec

from millstream import tokens
from millstream.errors import safe_traceback
from millstream.prices import Price
from millstream.prompt import Message
from millstream.streams.parts import Assembler
from millstream.usage import Usage

log = logging.getLogger("millstream.streams")

NOTHING = Usage(0, 0, "counted")


class Tally:
    """Counts what ``assembler`` has assembled in answer to ``messages``, with the vocabulary ``encoding``."""

    __slots__ = (
        "_assembler",
        "_encoding",
        "_messages",
        "_noted",
        "_price",
        "_prompt_tokens",
        "_stream_id",
    )

    def __init__(
        self,
        stream_id: str,
        assembler: Assembler,
        messages: Sequence[Message],
        encoding: str,
        price: Price | None,
    ) -> None:
        self._stream_id = stream_id
        self._assembler = assembler
        self._messages = messages
        self._encoding = encoding
        self._price = price
        self._prompt_tokens: int | None = None
        self._noted = 0  # events that the last checkpoint has counted

    def answered_by(self, encoding: str, price: Price | None) -> None:
        """Another deployment answers than was asked first."""
        self._encoding, self._price = encoding, price

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
            )
        return Usage(prompt, completion, "counted")

    async def _with_prompt(self, usage: Usage) -> Usage:
        """``usage`` of a provider that counts no prompt, with ours: the weaker source names the whole."""
        try:
            prompt = await self._prompt(await tokens.load(self._encoding))
        except Exception as error:  # as above
            log.error("stream %s cannot be counted: %s", self._stream_id, safe_traceback(error))
            return usage
        return msgspec.structs.replace(usage, prompt_tokens=prompt, source="counted")

    async def _prompt(self, tokenizer: tokens.Tokenizer) -> int:
        if self._prompt_tokens is None:
            self._prompt_tokens = await tokens.count_prompt(tokenizer, self._messages)
        return self._prompt_tokens

    def last_known(self) -> Usage:
        """The provider's last running count, without counting any text."""
        return self._assembler.usage or NOTHING

    def cost(self, usage: Usage) -> Decimal | None:
        """In US dollars; None where the model's price is not known."""
        return None if self._price is None else self._price.cost(usage)
