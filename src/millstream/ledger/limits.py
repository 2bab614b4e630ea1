"""Limits in the ledger's own transactions: what starts reserves, what ends gives back.

A counter is a row: how much of a window is used, and how much is reserved by streams that run. A stream's row
keeps what it holds, so whoever settles it gives that back in the same transaction, and nothing has to be
reconciled. In one transaction every counter is read once and written once.
"""

import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from msgspec import Struct
from msgspec.structs import replace

from millstream.driver import DriverConnection, Prepared
from millstream.errors import BudgetExceeded, MillstreamError, RateLimited, TooManyStreams
from millstream.limits import (
    Applied,
    Counter,
    Demand,
    Hold,
    Limit,
    Standing,
    What,
    in_words,
    limit_shown,
    shown,
)
from millstream.schema import counters, key_limits, streams

_TOKENS_AND_DOLLARS: tuple[What, What] = ("tokens", "usd")
_CLOCK_SECONDS = 10.0  # for how long one look at the database's clock holds
# Counters are kept so long after their window: longer than any stream that began in it.
KEPT_SECONDS = 86_400.0

_ADD = Prepared(
    sa.text(
        "INSERT INTO counters (id, ends_at, used, reserved) VALUES (:id, :ends_at, :used, :reserved) "
        "ON CONFLICT (id) DO UPDATE SET used = counters.used + excluded.used, "
        "reserved = counters.reserved + excluded.reserved"
    ),
    ["id", "ends_at", "used", "reserved"],
)
_FIND = Prepared(
    sa.select(counters.c.used, counters.c.reserved).where(counters.c.id == sa.bindparam("id", type_=sa.Text)),
    ["id"],
)
_FIND_ALL = Prepared(  # PostgreSQL's, in one round trip
    sa.text("SELECT id, used, reserved FROM counters WHERE id = ANY(:ids)"), ["ids"]
)
# PostgreSQL's; SQLite has one writer anyway. Who reads a counter to add to it does so alone.
_LOCK = Prepared(
    sa.text(
        "SELECT count(pg_advisory_xact_lock(h)) FROM "
        "(SELECT DISTINCT hashtextextended(s, 0) AS h FROM unnest(CAST(:subjects AS text[])) AS s "
        "ORDER BY 1) AS ordered"
    ),
    ["subjects"],
)
_NOW = Prepared(sa.text("SELECT extract(epoch FROM clock_timestamp())"), [])
_ROW = sa.select(
    streams.c.held, streams.c.prompt_tokens + streams.c.completion_tokens, streams.c.price_picodollars
).where(streams.c.id == sa.bindparam("stream_id", type_=sa.String))
_RUNNING = Prepared(_ROW.where(streams.c.status == sa.literal_column("'running'")), ["stream_id"])
_RUNNING_ALONE = Prepared(
    _ROW.where(streams.c.status == sa.literal_column("'running'")).with_for_update(), ["stream_id"]
)
_RUNNING_AMONG = Prepared(
    sa.text(
        "SELECT id, held FROM streams WHERE id = ANY(:ids) AND status = 'running' ORDER BY id FOR UPDATE"
    ),
    ["ids"],
)
_INTERRUPTED = Prepared(
    _ROW.where(
        streams.c.status == sa.literal_column("'interrupted'"), streams.c.corrected_at.is_(None)
    ).with_for_update(),
    ["stream_id"],
)
_SET_HELD = Prepared(
    sa.update(streams).where(streams.c.id == sa.bindparam("stream_id", type_=sa.String)), ["held"]
)
_AMOUNT = Prepared(
    sa.select(key_limits.c.amount).where(
        *(
            key_limits.c[name] == sa.bindparam(name, type_=key_limits.c[name].type)
            for name in ("key_id", "what", "per", "model", "each_user")
        )
    ),
    ["key_id", "what", "per", "model", "each_user"],
)
_PRUNE = Prepared(
    sa.delete(counters).where(counters.c.ends_at < sa.bindparam("before", type_=sa.BigInteger)), ["before"]
)


def _elapsed() -> float:
    """Seconds by a clock that nobody sets and that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Clock:
    """The database's time, in Unix seconds. PostgreSQL is asked now and then; SQLite's is the time of this
    machine at the start of the process and what has passed since. A wall clock that is set moves neither.
    """

    def __init__(self) -> None:
        self._offset = time.time() - _elapsed()
        self._asked_at: float | None = None

    def now(self, connection: DriverConnection) -> float:
        elapsed = _elapsed()
        if connection.is_postgres and (self._asked_at is None or elapsed - self._asked_at > _CLOCK_SECONDS):
            (found,) = connection.first(_NOW, {}) or (0,)
            self._offset, self._asked_at = float(found) - elapsed, elapsed
        return self._offset + elapsed


class Books:
    """The counters of one transaction. To be made before anything else in it; ``write`` at its end."""

    def __init__(self, connection: DriverConnection, clock: Clock, subjects: Iterable[str]) -> None:
        self._connection = connection
        if connection.is_postgres and (ordered := sorted(set(subjects))):
            connection.first(_LOCK, {"subjects": ordered})
        self._now = clock.now(connection)
        self._known: dict[str, list[int]] = {}  # used and reserved, with what this transaction adds
        self._added: dict[str, tuple[Counter, list[int]]] = {}

    # -- streams ----------------------------------------------------------------------------

    def reserve(self, demand: Demand) -> Hold:
        """For a stream that starts. Raises ``RateLimited``, ``BudgetExceeded`` or ``TooManyStreams`` where a
        limit does not allow it; then nothing is reserved.
        """
        found = [applied.counter(self._now) for applied in demand.applied]
        self._learn(found)
        granted = dict(zip(_TOKENS_AND_DOLLARS, demand.wanted, strict=True))
        least = dict(zip(_TOKENS_AND_DOLLARS, demand.least, strict=True))
        for applied, counter in zip(demand.applied, found, strict=True):
            left, needed = self._left(counter), least.get(counter.what, 1)
            if needed and left < needed:
                raise refusal(applied, self.standing(counter), needed)
            if counter.what in granted:
                granted[counter.what] = min(granted[counter.what], max(0, left))
        hold = Hold(tuple(found), granted["tokens"], granted["usd"])
        for counter in found:
            if counter.what == "requests":
                self._add(counter, used=1)
            else:
                self._add(counter, reserved=_held(hold, counter.what))
        return hold

    def extend(self, stream_id: str, tokens: int, picodollars: int) -> Hold | None:
        """For a stream that runs: up to so many in all, as far as its budgets have them left. What it holds
        now; None where it does not run any more.
        """
        row = self._connection.first(self._running, {"stream_id": stream_id})
        if row is None or row[0] is None:
            return None
        hold = Hold.of(row[0])
        budgets = [counter for counter in hold.counters if counter.is_budget]
        self._learn(budgets)
        more = {"tokens": max(0, tokens - hold.tokens), "usd": max(0, picodollars - hold.picodollars)}
        for counter in budgets:
            if (left := self._left_now(counter)) is not None:
                more[counter.what] = min(more[counter.what], max(0, left))
        if not hold.has_tokens:
            more["tokens"] = 0
        if not hold.has_dollars:
            more["usd"] = 0
        # In what is counted by the minute, too, so that the settlement gives back what was taken.
        for counter in hold.counters:
            if counter.what in more:
                self._add(counter, reserved=more[counter.what])
        hold = Hold(hold.counters, hold.tokens + more["tokens"], hold.picodollars + more["usd"])
        self._connection.run(_SET_HELD, [{"held": hold.json(), "stream_id": stream_id}])
        return hold

    def release(self, settlements: Sequence[dict[str, Any]]) -> None:
        """For streams that are settled next with these values. Nothing of those that run no more."""
        values_of: dict[str, dict[str, Any]] = {}
        for values in settlements:
            values_of.setdefault(values["stream_id"], values)  # of several ends the first holds
        for stream_id, held in self._held_by(list(values_of)):
            hold, values = Hold.of(held), values_of[stream_id]
            if values["price_picodollars"] is None:
                self._note_estimate(stream_id, hold, values)
            for counter in hold.counters:
                if counter.what != "requests":
                    used = _used(values, counter.what, hold.picodollars)
                    self._add(counter, used=used, reserved=-_held(hold, counter.what))

    def _note_estimate(self, stream_id: str, hold: Hold, values: dict[str, Any]) -> None:
        """In what it held, where a correction finds what was counted as used."""
        counted = replace(hold, picodollars=_used(values, "usd", hold.picodollars))
        if counted != hold and any(counter.what == "usd" for counter in hold.counters):
            self._connection.run(_SET_HELD, [{"held": counted.json(), "stream_id": stream_id}])

    def _held_by(self, stream_ids: list[str]) -> list[tuple[str, str]]:
        """What those of the streams hold that run."""
        found = running_among(self._connection, stream_ids)
        return [(stream_id, held) for stream_id, held in found if held is not None]

    def correct(self, settlements: Sequence[dict[str, Any]]) -> None:
        """For streams that others have settled from a checkpoint, before these values replace its numbers."""
        values_of: dict[str, dict[str, Any]] = {}
        for values in settlements:
            values_of.setdefault(values["stream_id"], values)  # of several the first holds
        for values in values_of.values():
            self._correct(values)

    def _correct(self, values: dict[str, Any]) -> None:
        row = self._connection.first(_INTERRUPTED, {"stream_id": values["stream_id"]})
        if row is None or row[0] is None:
            return
        hold, tokens, picodollars = Hold.of(row[0]), row[1], row[2]
        before = {"tokens": tokens, "usd": _spent(picodollars, tokens, hold.picodollars)}
        for counter in hold.counters:
            if counter.what in before:
                used = _used(values, counter.what, hold.picodollars)
                self._add(counter, used=used - before[counter.what])

    def standing(self, counter: Counter) -> Standing:
        left = max(0, self._left(counter))
        return Standing(counter.what, counter.per, counter.amount, left, _resets(counter, self._now))

    def standings(self, hold: Hold) -> tuple[Standing, ...]:
        """How the limits of a stream stand that was just started."""
        return tuple(map(self.standing, hold.counters))

    def write(self) -> None:
        """In one order everywhere: two workers that wait for each other's rows would be a deadlock."""
        rows = [
            {"id": identity, "ends_at": counter.ends_at, "used": used, "reserved": reserved}
            for identity, (counter, (used, reserved)) in sorted(self._added.items())
            if used or reserved
        ]
        if rows:
            self._connection.run(_ADD, rows)

    # -- counters ---------------------------------------------------------------------------

    @property
    def _running(self) -> Prepared:
        return _RUNNING_ALONE if self._connection.is_postgres else _RUNNING

    def _learn(self, wanted: Sequence[Counter]) -> None:
        new = [counter.id for counter in wanted if counter.id not in self._known]
        if not new:
            return
        for identity in new:
            used, reserved = self._added[identity][1] if identity in self._added else (0, 0)
            self._known[identity] = [used, reserved]
        if self._connection.is_postgres:
            found = self._connection.all(_FIND_ALL, {"ids": new})
        else:
            rows = ((identity, self._connection.first(_FIND, {"id": identity})) for identity in new)
            found = [(identity, *row) for identity, row in rows if row is not None]
        for identity, used, reserved in found:
            self._known[identity][0] += used
            self._known[identity][1] += reserved

    def _left(self, counter: Counter) -> int:
        used, reserved = self._known[counter.id]
        return counter.amount - used - reserved

    def _left_now(self, counter: Counter) -> int | None:
        """As the limit is now, which may have been changed since the stream began; None where it is gone."""
        if not counter.of_key:
            return self._left(counter)
        key_id, slash, _ = counter.subject.partition("/")
        limit = {"key_id": key_id, "what": counter.what, "per": counter.per, "model": counter.model or ""}
        row = self._connection.first(_AMOUNT, {**limit, "each_user": bool(slash)})
        return None if row is None else self._left(replace(counter, amount=row[0]))

    def _add(self, counter: Counter, *, used: int = 0, reserved: int = 0) -> None:
        _, added = self._added.setdefault(counter.id, (counter, [0, 0]))
        for totals in (added, self._known.get(counter.id)):
            if totals is not None:
                totals[0] += used
                totals[1] += reserved


def running_among(connection: DriverConnection, stream_ids: list[str]) -> list[tuple[str, str | None]]:
    """Those of the streams that run, with what they hold. In PostgreSQL in one round trip, and nobody else
    ends them before this transaction does.
    """
    if not stream_ids:
        return []
    if connection.is_postgres:
        return [(one, held) for one, held in connection.all(_RUNNING_AMONG, {"ids": stream_ids})]
    rows = ((one, connection.first(_RUNNING, {"stream_id": one})) for one in stream_ids)
    return [(one, row[0]) for one, row in rows if row is not None]


def _held(hold: Hold, what: What) -> int:
    match what:
        case "tokens":
            return hold.tokens
        case "usd":
            return hold.picodollars
        case _:
            return 1


def _used(values: dict[str, Any], what: What, picodollars: int) -> int:
    """An unknown price of some tokens is not 0: then what the standard tier takes counts as used, or what was
    reserved where nobody knows that either.
    """
    tokens = int(values["prompt_tokens"] + values["completion_tokens"])
    match what:
        case "tokens":
            return tokens
        case "usd":
            return _spent(values["budgeted_picodollars"], tokens, picodollars)
        case _:
            return 0


def _spent(cost: int | None, tokens: int, reserved: int) -> int:
    if cost is not None:
        return cost
    return reserved if tokens else 0


def refusal(applied: Applied, standing: Standing, needed: int) -> MillstreamError:
    """Why a stream is not started."""
    limit = applied.limit
    whose = "this user" if "/" in applied.subject else "this key"
    of_model = f" of {limit.model}" if limit.model else ""
    amount = in_words(limit.what, limit.amount)
    if limit.what == "streams":
        end_one = "; end one" if limit.amount else ""
        return TooManyStreams(limit.amount, f"{whose} may have {amount}{of_model} open{end_one}")
    per = "in all" if limit.per == "total" else f"a {limit.per}"
    message = f"{whose} may have {amount}{of_model} {per}"
    needs = f", and this needs {in_words(limit.what, needed)}"
    if needed > limit.amount:
        message += f"{needs}: it never fits; ask for less, or have the limit raised"
    else:
        message += f"; {in_words(limit.what, standing.left)} are left"
        message += "" if limit.what == "requests" else needs
        if standing.resets_in_seconds is not None:
            message += f"; the next {limit.per} begins in {standing.resets_in_seconds} s"
    if limit.is_budget:
        return BudgetExceeded(message, standing)
    return RateLimited(message, standing, needed=needed)


class Reading(Struct, frozen=True):
    """A limit, and how much of its present window is used and reserved."""

    limit: Limit
    used: int
    reserved: int
    resets_in_seconds: int | None

    def shown(self) -> dict[str, str | int | bool | None]:
        """As it is told."""
        what, left = self.limit.what, max(0, self.limit.amount - self.used - self.reserved)
        amounts = {"used": self.used, "reserved": self.reserved, "left": left}
        return {
            **limit_shown(self.limit),
            **{name: shown(what, amount) for name, amount in amounts.items()},
            "resets_in_seconds": self.resets_in_seconds,
        }


def read(clock: Clock, applied: Sequence[Applied], connection: DriverConnection) -> list[Reading]:
    """How these limits stand now."""
    now = clock.now(connection)
    found = []
    for one in applied:
        counter = one.counter(now)
        used, reserved = connection.first(_FIND, {"id": counter.id}) or (0, 0)
        found.append(Reading(one.limit, used, reserved, _resets(counter, now)))
    return found


def prune(clock: Clock, connection: DriverConnection) -> int:
    """Deletes the counters of windows that are long over; how many."""
    return connection.run(_PRUNE, [{"before": int(clock.now(connection) - KEPT_SECONDS)}])


def _resets(counter: Counter, now: float) -> int | None:
    """Seconds until the next window begins, at least 1."""
    return None if counter.ends_at is None else max(1, math.ceil(counter.ends_at - now))
