"""Mutants: the product with one thing broken, each of which the checker has to find.

    python -m nemesis.mutants            all of them; exit code 1 where one was not found
    python -m nemesis.mutants repeat     some, by name

A mutant is a patch that is applied inside the server's process, before it serves: every server of a run is started
by this module (``--serve``), which nothing of the product knows of.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Mutant:
    """``breaks`` is the invariant under which it has to be found, in a run with these counts."""

    breaks: str
    patch: Callable[[], None]
    set_up: str = "single"
    streams: int = 45
    seconds: float = 8.0
    faults: int = 0
    only: tuple[str, ...] = ()


MUTANTS: dict[str, Mutant] = {}


def mutant(breaks: str, **more: Any) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def add(patch: Callable[[], None]) -> Callable[[], None]:
        MUTANTS[patch.__name__.replace("_", "-")] = Mutant(breaks, patch, **more)
        return patch

    return add


def now_and_then(every: int) -> Callable[[], bool]:
    """True once in so many calls."""
    calls = 0

    def now() -> bool:
        nonlocal calls
        calls += 1
        return calls % every == 0

    return now


# -- I1 ----------------------------------------------------------------------------------------------------------


@mutant("I1")
def drop_a_settlement() -> None:
    from millstream.ledger import Ledger

    settle, now = Ledger.settle, now_and_then(9)

    async def dropped(self: Ledger, settlement: Any) -> None:
        if not now():
            await settle(self, settlement)

    Ledger.settle = dropped  # type: ignore[method-assign]


@mutant("I1")
def settle_twice() -> None:
    import sqlalchemy as sa

    from millstream.ledger import Ledger
    from millstream.schema import streams

    settle, now = Ledger.settle, now_and_then(9)

    async def doubled(self: Ledger, settlement: Any) -> None:
        await settle(self, settlement)
        if now():
            again = sa.update(streams).where(streams.c.id == settlement.stream_id)
            again = again.values(status=settlement.status)
            await self._db.write(lambda connection: connection.execute(again))

    Ledger.settle = doubled  # type: ignore[method-assign]


@mutant("I1")
def call_without_a_row() -> None:
    from millstream.ledger import Ledger

    opened, now = Ledger.open, now_and_then(9)

    async def forgotten(self: Ledger, opening: Any) -> None:
        if not now():
            await opened(self, opening)

    Ledger.open = forgotten  # type: ignore[method-assign]


@mutant("I1")
def call_the_provider_twice() -> None:
    from millstream.providers.openai import OpenAIProvider

    stream, now = OpenAIProvider.stream, now_and_then(9)

    async def again(self: OpenAIProvider, prompt: Any, model: str) -> AsyncGenerator[Any]:
        if now():
            async for _ in stream(self, prompt, model):
                break
        async for batch in stream(self, prompt, model):
            yield batch

    OpenAIProvider.stream = again  # type: ignore[method-assign]


@mutant("I1", faults=2, only=("kill",), seconds=20, streams=140)
def leave_orphans() -> None:
    from millstream.ledger.leases import Leases

    async def none(self: Leases) -> int:
        return 0

    Leases.remove_expired = none  # type: ignore[method-assign]


# -- I2 ----------------------------------------------------------------------------------------------------------


@mutant("I2")
def count_one_too_many() -> None:
    from millstream.tokens import GrowingCount

    total = GrowingCount.total

    async def more(self: GrowingCount, tokenizer: Any) -> int:
        return await total(self, tokenizer) + 1

    GrowingCount.total = more  # type: ignore[method-assign]


@mutant("I2")
def bill_the_last_running_count() -> None:
    from millstream.providers import openai

    finish = openai.Reading._finish  # noqa: SLF001  # it breaks in

    def stale(self: Any, produced: list[Any]) -> None:
        import msgspec

        self._report_is_stale = False
        finish(self, produced)
        if (usage := produced[-1].usage) is not None:
            less = msgspec.structs.replace(usage, completion_tokens=usage.completion_tokens - 1)
            produced[-1] = msgspec.structs.replace(produced[-1], usage=less)

    openai.Reading._finish = stale  # type: ignore[method-assign]  # noqa: SLF001


@mutant("I2")
def charge_the_prompt_twice() -> None:
    from millstream.prices import Rates

    cost = Rates.cost

    def dear(self: Rates, usage: Any) -> Any:
        found = cost(self, usage)
        return None if found is None else found + usage.prompt_tokens * self.input / 1_000_000

    Rates.cost = dear  # type: ignore[method-assign]


@mutant("I2")
def settle_other_than_was_told() -> None:
    import msgspec

    from millstream.ledger import Ledger

    settle = Ledger.settle

    async def other(self: Ledger, settlement: Any) -> None:
        usage = msgspec.structs.replace(settlement.usage, source="counted")
        await settle(self, msgspec.structs.replace(settlement, usage=usage))

    Ledger.settle = other  # type: ignore[method-assign]


# -- I3 ----------------------------------------------------------------------------------------------------------


def _encode(change: Callable[[bytes], bytes], every: int) -> None:
    """Changes what the dialect makes of some batches."""
    from millstream.dialects.native import NativeDialect

    encode, now = NativeDialect.encode, now_and_then(every)

    def changed(self: NativeDialect, info: Any, batch: Any, before: Any) -> bytes:
        frames = encode(self, info, batch, before)
        return change(frames) if now() else frames

    NativeDialect.encode = changed  # type: ignore[method-assign]


@mutant("I3")
def skip_an_event() -> None:
    def skip(frames: bytes) -> bytes:
        first, _, rest = frames.partition(b"\n\n")
        return rest if b'"delta":" ' in first else frames

    _encode(skip, 7)


@mutant("I3")
def repeat_an_event() -> None:
    def repeat(frames: bytes) -> bytes:
        first, end, _ = frames.partition(b"\n\n")
        return first + end + frames if b'"delta":" ' in first else frames

    _encode(repeat, 7)


@mutant("I3")
def lose_a_word() -> None:
    """The position stays, the word does not."""

    def lose(frames: bytes) -> bytes:
        head, delta, rest = frames.partition(b'{"delta":" ')
        return head + b'{"delta":"' + rest if delta else frames

    _encode(lose, 7)


@mutant("I3", set_up="fleet", streams=60)
def lose_a_part_of_a_replica() -> None:
    from msgspec.structs import replace

    from millstream.events import TextDelta
    from millstream.journals.redis import replicas

    module: Any = replicas
    real, now = module.from_json, now_and_then(5)

    def holed(data: bytes) -> Any:
        events = real(data)
        if now():
            events = [replace(event, text="") if isinstance(event, TextDelta) else event for event in events]
        return events

    module.from_json = holed


# -- I4 ----------------------------------------------------------------------------------------------------------


@mutant("I4")
def say_more_after_the_end() -> None:
    def more(frames: bytes) -> bytes:
        if b"[DONE]" not in frames:
            return frames
        return frames + b'id: 1-9999\ndata: {"delta":"","finish_reason":"stop"}\n\n'

    _encode(more, 1)


@mutant("I4")
def take_a_cut_for_an_end() -> None:
    from millstream.providers import openai

    end = openai.Reading.end

    def good(self: Any) -> Any:
        self._is_whole = True
        return end(self)

    openai.Reading.end = good  # type: ignore[method-assign]
    from millstream.providers.upstream import Upstream

    events = Upstream.events

    async def quiet(self: Upstream, *asked: Any) -> AsyncGenerator[Any]:
        with suppress(Exception):
            async for found in events(self, *asked):
                yield found

    Upstream.events = quiet  # type: ignore[method-assign, assignment]


@mutant("I4")
def leaving_is_cancelling() -> None:
    """Also where the policy says that the stream goes on."""
    from millstream.streams.audience import Audience

    def left(self: Any, seconds: float = 0) -> None:
        if not (self._dismissed or self._readers or self._workers or seconds):
            self._on_empty()

    Audience._reader_left = left  # type: ignore[method-assign]  # noqa: SLF001  # it breaks in


# -- I5, I6, I8 --------------------------------------------------------------------------------------------------


@mutant("I5", streams=60)
def leave_the_provider_connected() -> None:
    """A stream that is cancelled ends, and its provider is read on."""
    from millstream.providers.openai import OpenAIProvider

    stream = OpenAIProvider.stream
    kept: set[Any] = set()

    async def read_on(self: OpenAIProvider, prompt: Any, model: str) -> AsyncGenerator[Any]:
        queue: asyncio.Queue[Any] = asyncio.Queue()

        async def read() -> None:
            try:
                async for batch in stream(self, prompt, model):
                    queue.put_nowait(batch)
                queue.put_nowait(None)
            except Exception as error:
                queue.put_nowait(error)

        task = asyncio.create_task(read())
        kept.add(task)
        while (batch := await queue.get()) is not None:
            if isinstance(batch, Exception):
                raise batch
            yield batch

    OpenAIProvider.stream = read_on  # type: ignore[method-assign]


@mutant("I6")
def leak_descriptors() -> None:
    from millstream.streams.producer import Producer

    run = Producer.run

    async def leaking(self: Producer) -> None:
        os.dup(0)
        await run(self)

    Producer.run = leaking  # type: ignore[method-assign]


@mutant("I6", set_up="fleet")
def keep_streams_in_redis() -> None:
    from millstream.journals.redis.outbox import Outbox

    due = Outbox._due  # noqa: SLF001  # it breaks in

    async def for_ever(self: Any, stream_id: str, copy: Any, room: int) -> Any:
        return [c for c in await due(self, stream_id, copy, room) if c.words[0] != "EXPIRE"]

    Outbox._due = for_ever  # type: ignore[method-assign]  # noqa: SLF001


@mutant("I8")
def hoard_memory() -> None:
    from millstream.streams.producer import Producer

    run = Producer.run
    hoard: list[bytes] = []

    async def hoarding(self: Producer) -> None:
        hoard.append(os.urandom(1 << 16) * 64)
        await run(self)

    Producer.run = hoarding  # type: ignore[method-assign]


# -- I9, I10 -----------------------------------------------------------------------------------------------------


@mutant("I9")
def log_the_key() -> None:
    import logging

    from millstream.auth import Keys

    verify = Keys.verify

    async def loud(self: Keys, secret: str) -> Any:
        logging.getLogger("millstream.auth").warning("a request with %s", secret)
        return await verify(self, secret)

    Keys.verify = loud  # type: ignore[method-assign]


@mutant("I9")
def log_the_prompt() -> None:
    import logging

    from millstream.streams.registry import Streams

    start = Streams.start

    async def loud(self: Streams, principal: Any, ask: Any, *more: Any, **named: Any) -> Any:
        logging.getLogger("millstream.streams").warning("asked: %s", ask.prompt.messages[0].text)
        return await start(self, principal, ask, *more, **named)

    Streams.start = loud  # type: ignore[method-assign]


@mutant("I9")
def pass_on_the_providers_words() -> None:
    from millstream.errors import UpstreamError
    from millstream.providers import openai, upstream

    def loud(name: str, detail: object, **_: object) -> UpstreamError:
        return UpstreamError(f"provider '{name}' said {detail}")

    modules: tuple[Any, ...] = (openai, upstream)
    for module in modules:
        assert module.failure
        module.failure = loud


@mutant("I10", streams=120)
def own_everything() -> None:
    from millstream.auth import Principal

    Principal.owns = lambda self, owner_id: True  # type: ignore[method-assign]


# -- I11, I12 ----------------------------------------------------------------------------------------------------


@mutant("I11", streams=60)
def hold_up_the_loop() -> None:
    from millstream.streams.upkeep import Upkeep

    async def busy(self: Upkeep) -> None:
        time.sleep(1.6)

    Upkeep._expire = busy  # type: ignore[method-assign]  # noqa: SLF001  # it breaks in


@mutant("I12", streams=120)
def fail_on_bad_input() -> None:
    from millstream.server.routes import chat

    def broken(*_: Any) -> Any:
        raise KeyError("body")

    module: Any = chat
    real = module.read_body

    async def read(request: Any, model: Any, limit: int) -> Any:
        try:
            return await real(request, model, limit)
        except Exception:
            return broken()

    module.read_body = read


# -- in the server's process -------------------------------------------------------------------------------------


def set_clock(path: Path) -> None:
    """Has ``time.time`` be wrong by as many seconds as the file says, from now on."""
    real, looked_at, wrong_by = time.time, 0.0, 0.0

    def wrong() -> float:
        nonlocal looked_at, wrong_by
        now = time.monotonic()
        if now - looked_at > _LOOK_SECONDS:
            looked_at = now
            with suppress(OSError, ValueError):  # it is being written
                wrong_by = float(path.read_text(encoding="utf-8"))
        return real() + wrong_by

    time.time = wrong


def serve(name: str, arguments: Sequence[str]) -> None:
    """``millstream``, as the mutant of that name or as it is."""
    set_clock(Path(os.environ["NEMESIS_CLOCK"]))
    from millstream.cli import main as millstream

    if name in MUTANTS:
        MUTANTS[name].patch()
    sys.argv = ["millstream", *arguments]
    millstream()


# -- finding them ------------------------------------------------------------------------------------------------


def main(names: Sequence[str]) -> int:
    """Runs the nemesis against each mutant, and against the product as it is."""
    from nemesis.run import Options, run, summary  # the servers need nothing of it

    unknown = sorted(set(names) - {*MUTANTS, "none"})
    if unknown:
        print(f"there is no mutant {unknown[0]}; there are: {', '.join(MUTANTS)}")
        return 2
    missed: list[str] = []
    for name in names or ("none", *MUTANTS):
        it = MUTANTS.get(name, Mutant("", lambda: None))
        options = Options(
            set_up="fleet" if it.set_up == "fleet" else "single",
            streams=it.streams,
            seconds=it.seconds,
            faults=it.faults,
            only=it.only,
            seed=7,
            mutant=name if it.breaks else "",
            quiet=True,
        )
        outcome = asyncio.run(run(options))
        found = [violation for violation in outcome.violations if violation.invariant == it.breaks]
        caught = bool(found) if it.breaks else not outcome.violations
        print(
            f"{'found ' if caught else 'MISSED'}  {it.breaks or 'none':<4} {name:<32} {next(iter(found), '')}"
        )
        if not caught:
            missed.append(name)
            print(summary(outcome, options))
        sys.stdout.flush()
    print(f"missed: {', '.join(missed)}" if missed else "all were found")
    return 1 if missed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main(sys.argv[1:]))
