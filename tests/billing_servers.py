"""Services that are told of settled streams, on real sockets: Stripe with its rules, and one that notes what it gets.

Stripe's rules are those of its documentation: https://docs.stripe.com/api/billing/meter-event/create and
https://docs.stripe.com/billing/subscriptions/usage-based/recording-usage-api. That a known identifier is
refused, and in which words, is what its users report.
"""

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import NamedTuple
from urllib.parse import parse_qs

SECRET = "sk_test_fake"
DAY = 86_400.0


class Asked(NamedTuple):
    """A request that reached a service."""

    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    """``drops`` closes the connection instead."""

    status: int = 200
    value: object = None
    headers: tuple[str, ...] = ()
    drops: bool = False


class Service:
    """Answers every request by ``answer``, and keeps what came in ``asked``."""

    def __init__(self, answer: Callable[[Asked], Answer] = lambda asked: Answer()) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.url = ""
        self.seconds = 0.0  # until an answer
        self.keeps_requests = True

    def take(self, asked: Asked) -> Answer:
        if self.keeps_requests:
            self.asked.append(asked)
        return self.answer(asked)

    def answered(self, asked: Asked) -> None:
        """The answer has been sent."""


class Stripe(Service):
    """Meter events. ``books`` has what was counted, by identifier, each time that it was; ``clock`` says when.

    With ``faults`` it breaks at random: before it counts, or after it has, with an error or without an answer.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, faults: Random | None = None) -> None:
        super().__init__(self._answer)
        self.clock = clock
        self.books: dict[str, list[tuple[str, int, int]]] = {}
        self.known: dict[str, float] = {}
        self.per_second = 1000
        self.statuses: Counter[int] = Counter()
        self.most_at_once = 0  # of one customer
        self._faults = faults
        self._calls: deque[float] = deque()
        self._busy: Counter[str] = Counter()

    @property
    def counted(self) -> dict[str, int]:
        """The sum of what was counted under each identifier."""
        return {identifier: sum(value for _, value, _ in events) for identifier, events in self.books.items()}

    def answered(self, asked: Asked) -> None:
        self._busy[_field(asked, "payload[stripe_customer_id]")] -= 1

    def _answer(self, asked: Asked) -> Answer:
        self._busy[_field(asked, "payload[stripe_customer_id]")] += 1
        chance = 1.0 if self._faults is None else self._faults.random()
        if chance < 0.01:
            answer = Answer(drops=True) if chance < 0.005 else _refusal(500, "something broke")
        else:
            answer = self._rules(asked)
            if chance > 0.99 and self._faults is not None:
                answer = Answer(drops=True) if chance < 0.995 else _refusal(500, "something broke")
        self.statuses[0 if answer.drops else answer.status] += 1
        return answer

    def _rules(self, asked: Asked) -> Answer:
        now = time.monotonic()
        while self._calls and self._calls[0] <= now - 1:
            self._calls.popleft()
        if len(self._calls) >= self.per_second:
            return _refusal(429, "too many requests", "rate_limit")
        self._calls.append(now)
        if asked.headers.get("authorization") != f"Bearer {SECRET}":
            return _refusal(401, "Invalid API Key provided")
        identifier, customer = _field(asked, "identifier"), _field(asked, "payload[stripe_customer_id]")
        value, timestamp = _field(asked, "payload[value]"), int(_field(asked, "timestamp"))
        self.most_at_once = max(self.most_at_once, self._busy[customer])
        if self._busy[customer] > 1:
            return _refusal(429, "one call per customer and meter at a time", "lock_timeout")
        if not value.removeprefix("-").isdigit():
            return _refusal(400, f"{value} is no whole number")
        if not customer.startswith("cus_"):
            return _refusal(400, f"No such customer: {customer}")
        if not 0 < len(identifier) <= 100:
            return _refusal(400, "the identifier is longer than 100 characters")
        if not -35 * DAY <= timestamp - self.clock() <= 300:
            return _refusal(400, "the timestamp is not within the past 35 days or the next 5 minutes")
        if self.clock() - self.known.get(identifier, -DAY) < DAY:
            return _refusal(400, f"An event already exists with identifier {identifier}.")
        self.known[identifier] = self.clock()
        self.books.setdefault(identifier, []).append((customer, int(value), timestamp))
        return Answer(200, {"object": "billing.meter_event", "identifier": identifier})


def _field(asked: Asked, name: str) -> str:
    return parse_qs(asked.body.decode())[name][0]


def _refusal(status: int, message: str, code: str | None = None) -> Answer:
    error = {"type": "invalid_request_error", "message": message, **({"code": code} if code else {})}
    return Answer(status, {"error": error})


@asynccontextmanager
async def serving(service: Service) -> AsyncGenerator[Service]:
    """The service at its ``url``."""

    writers: set[asyncio.StreamWriter] = set()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writers.add(writer)
        tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lines = [line.partition(":") for line in head.splitlines()[1:] if line]
                headers = {name.lower(): value.strip() for name, _, value in lines}
                asked = Asked(headers, await reader.readexactly(int(headers["content-length"])))
                answer = service.take(asked)
                try:
                    if service.seconds:
                        await asyncio.sleep(service.seconds)
                    if answer.drops:
                        return
                    body = b"" if answer.value is None else json.dumps(answer.value).encode()
                    fields = [f"HTTP/1.1 {answer.status} X", f"content-length: {len(body)}", *answer.headers]
                    writer.write("\r\n".join(fields).encode() + b"\r\n\r\n" + body)
                finally:
                    service.answered(asked)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            writers.discard(writer)
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    service.url = f"http://127.0.0.1:{port}/events"
    try:
        yield service
    finally:
        server.close()
        for writer in list(writers):
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the transports say that they are closed
