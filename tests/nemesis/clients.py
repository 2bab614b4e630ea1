"""Clients: each has a plan, does what it says against any worker, and notes every frame that it gets."""

import asyncio
import json
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import aiohttp

from nemesis.plans import MODEL, ClientPlan, prompt_of
from nemesis.records import Cancel, Client, Connection, Frame, Probe
from nemesis.servers import Worker

PATIENCE_SECONDS = 110.0  # after which a client that still has no end gives up
START_TRIES = 12
_POSITION = re.compile(r"(\d+)-(\d+)(\.[\w-]+)?")
_MAX_FRAMES = 5000


class _Left(Exception):
    """The client leaves here."""


class Crowd:
    """Where the clients are: which workers there are, which keys, and what they have noted."""

    def __init__(
        self, seed: int, workers: list[Worker], key: str, other_key: str, session: aiohttp.ClientSession
    ) -> None:
        self.seed, self.workers, self.session = seed, workers, session
        self.headers = {"Authorization": f"Bearer {key}"}
        self.other = {"Authorization": f"Bearer {other_key}"}
        self.records: list[Client] = []
        self.probes: list[Probe] = []
        self.bodies: list[str] = []
        self.live: list[Client] = []  # with a stream that has not ended

    async def client(self, plan: ClientPlan) -> None:
        """One client, to its end."""
        chance = random.Random(f"{self.seed}/client/{plan.number}")
        await _ROLES[plan.kind](self, plan, chance)

    def record(self, plan: ClientPlan) -> Client:
        client = Client(plan, started_at=time.monotonic())
        self.records.append(client)
        return client

    def somewhere(self, chance: random.Random) -> Worker:
        return chance.choice(self.workers)

    def body(self, plan: ClientPlan, marker: str) -> dict[str, Any]:
        return {
            "model": MODEL,
            "user": marker,
            "messages": [{"role": "user", "content": prompt_of(marker)}],
            "on_disconnect": plan.policy,
        }

    # -- one connection ---------------------------------------------------------------------

    async def connect(
        self,
        client: Client,
        worker: Worker,
        *,
        url: str | None = None,
        body: Mapping[str, Any] | None = None,
        frames: int | None = None,
        seconds: float | None = None,
        pause: Callable[[], float] | None = None,
    ) -> Connection:
        """Starts with ``body``, or follows; leaves after ``frames`` or ``seconds``."""
        after = client.frames[-1].position if client.frames and body is None else None
        connection = Connection(worker.number, time.monotonic(), follows=body is None, after=after)
        client.connections.append(connection)
        headers = dict(self.headers)
        if client.key and body is not None:
            headers["Idempotency-Key"] = client.key
        if after is not None:
            headers["Last-Event-ID"] = client.frames[-1].id
        if body is not None:
            call = self.session.post(f"{worker.url}/v1/chat/stream", json=body, headers=headers)
        elif url is not None:
            only = {name: value for name, value in headers.items() if name == "Last-Event-ID"}
            call = self.session.get(f"{worker.url}{url}", headers=only)
        else:
            call = self.session.get(f"{worker.url}/v1/streams/{client.stream_id}/events", headers=headers)
        try:
            async with asyncio.timeout(seconds):
                async with call as response:
                    await self._read(client, connection, response, frames, pause)
        except (TimeoutError, _Left):
            connection.how = "left"
        except (aiohttp.ClientError, OSError):
            connection.how = "broken"
        connection.ended_at = time.monotonic()
        return connection

    async def _read(
        self,
        client: Client,
        connection: Connection,
        response: aiohttp.ClientResponse,
        frames: int | None,
        pause: Callable[[], float] | None,
    ) -> None:
        connection.status = response.status
        if response.status == 204:
            connection.how = "empty"
            return
        if response.status != 200:
            connection.code = await self.refusal(response)
            connection.how = "refused"
            return
        client.stream_id = response.headers.get("X-Stream-Id", client.stream_id)
        if client not in self.live:
            self.live.append(client)
        buffer = b""
        async for some in response.content.iter_any():
            buffer += some
            *whole, buffer = buffer.split(b"\n\n")
            for frame in whole:
                self._take(client, frame.decode())
                connection.frames += 1
                if frames is not None and connection.frames >= frames:
                    raise _Left
            if pause is not None:
                await asyncio.sleep(pause())
        connection.how = "whole" if client.end is not None else "cut"
        if buffer.strip() and not buffer.startswith((b"retry:", b":")):
            client.malformed.append(f"the response ends within a frame: {buffer[:80]!r}")

    async def refusal(self, response: aiohttp.ClientResponse) -> str | None:
        """The code in an error's body, which is kept."""
        text = await response.text()
        self.bodies.append(text)
        with suppress(ValueError, KeyError, TypeError):
            return str(json.loads(text)["error"]["code"])
        return None

    def _take(self, client: Client, text: str) -> None:
        now = time.monotonic()
        lines = [line for line in text.split("\n") if line and not line.startswith(":")]
        fields = dict(line.partition(": ")[::2] for line in lines)
        if "data" not in fields:
            return
        if client.end is not None and fields["data"] != "[DONE]":
            client.after_end.append(text[:200])
            return
        if fields["data"] == "[DONE]":
            if client.end is None or "error" in client.end:
                client.malformed.append("[DONE] without a finish")
            return
        found = _POSITION.fullmatch(fields.get("id", ""))
        try:
            data = json.loads(fields["data"])
        except ValueError:
            data = None
        if found is None or not isinstance(data, dict):
            client.malformed.append(f"no frame: {text[:80]}")
            return
        ends = "error" in data or bool(data.get("finish_reason"))
        position = (int(found[1]), int(found[2]))
        if len(client.frames) < _MAX_FRAMES:
            client.frames.append(
                Frame(position, now, data.get("delta", ""), data if ends else None, found[0])
            )
        if "error" in data:
            self.bodies.append(json.dumps(data))
        client.stream_id = data.get("stream_id", client.stream_id)

    # -- several ----------------------------------------------------------------------------

    async def start(self, client: Client, chance: random.Random, **more: Any) -> bool:
        """Starts a stream, with as many tries as it takes; whether there is one. Without an idempotency key
        every try is a start of its own, with its own marker."""
        plan = client.plan
        for attempt in range(START_TRIES):
            if not (client.key and client.marker):
                client.marker = f"n{plan.number}.{attempt}"
            worker = self.workers[plan.worker] if attempt == 0 else self.somewhere(chance)
            connection = await self.connect(client, worker, body=self.body(plan, client.marker), **more)
            if client.stream_id is not None:
                return True
            if connection.how == "left":
                client.outcome = "left"
                return False
            if connection.how == "refused" and connection.code not in ("overloaded", "draining"):
                client.outcome = "refused"
                return False
            await asyncio.sleep(chance.uniform(0.2, 1.0) * 1.3**attempt)
            if client.key is None:
                # What the lost answer was of is a record of its own.
                lost, client.connections = client.connections, []
                self.records.append(
                    Client(
                        plan,
                        client.marker,
                        started_at=client.started_at,
                        connections=lost,
                        outcome="unstarted",
                    )
                )
        client.outcome = "unstarted"
        return False

    async def to_the_end(
        self, client: Client, chance: random.Random, *, url: str | None = None, cuts: tuple[int, ...] = ()
    ) -> None:
        """Comes back until there is an end, leaving after so many frames of the first connections."""
        limit = client.started_at + PATIENCE_SECONDS
        tries = 0
        while client.end is None and client.outcome == "open":
            if time.monotonic() > limit:
                client.outcome = "lost"
                break
            frames = cuts[tries] if tries < len(cuts) else None
            last = await self.connect(client, self.somewhere(chance), url=url, frames=frames)
            tries += 1
            if last.status == 410:
                client.outcome = "gone"
            elif last.status in (401, 403, 404):
                client.outcome = "no-stream"
            elif last.status == 204:
                client.outcome = "no-end"
            elif client.end is None:
                await asyncio.sleep(chance.uniform(0.05, 0.5))
        self.close(client)

    def close(self, client: Client) -> None:
        if client.end is not None:
            client.outcome = "ended"
        client.done_at = time.monotonic()
        if client in self.live:
            self.live.remove(client)

    async def cancel(self, client: Client, worker: Worker) -> None:
        cancel = Cancel(worker.number, time.monotonic())
        client.cancels.append(cancel)
        url = f"{worker.url}/v1/streams/{client.stream_id}/cancel"
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(15):
                async with self.session.post(url, headers=self.headers) as answer:
                    cancel.status = answer.status
                    if answer.status != 200:
                        await self.refusal(answer)
        cancel.answered_at = time.monotonic()

    async def probe(
        self, what: str, method: str, url: str, worker: Worker, stream_id: str | None = None, **more: Any
    ) -> Probe:
        probe = Probe(what, worker.number, time.monotonic(), None, stream_id=stream_id)
        try:
            async with asyncio.timeout(20):
                async with self.session.request(method, f"{worker.url}{url}", **more) as answer:
                    probe.status, probe.body = answer.status, (await answer.text())[:2000]
        except (aiohttp.ClientError, OSError, TimeoutError):
            pass
        probe.ended_at = time.monotonic()
        self.probes.append(probe)
        self.bodies.append(probe.body)
        return probe


# -- what each kind does ---------------------------------------------------------------------------


async def _reader(crowd: Crowd, plan: ClientPlan, chance: random.Random) -> None:
    client = crowd.record(plan)
    if await crowd.start(client, chance):
        await crowd.to_the_end(client, chance)
    crowd.close(client)


async def _leaver(crowd: Crowd, plan: ClientPlan, chance: random.Random) -> None:
    client = crowd.record(plan)
    started = await crowd.start(client, chance, seconds=plan.patience + 0.01)
    if started and client.end is None:
        client.outcome = "left"
    crowd.close(client)


async def _dropper(crowd: Crowd, plan: ClientPlan, chance: random.Random) -> None:
    client = crowd.record(plan)
    if await crowd.start(client, chance, frames=plan.cuts[0]):
        await crowd.to_the_end(client, chance, cuts=plan.cuts[1:])
    crowd.close(client)


async def _canceller(crowd: Crowd, plan: ClientPlan, chance: random.Random) -> None:
    client = crowd.record(plan)

    async def stop() -> None:
        limit = time.monotonic() + PATIENCE_SECONDS
        while client.stream_id is None and client.outcome == "open" and time.monotonic() < limit:
            await asyncio.sleep(0.02)
        await asyncio.sleep(plan.patience)
        for _ in range(chance.choice((1, 1, 2))):
            if client.stream_id is not None:
                await crowd.cancel(client, crowd.somewhere(chance))

    stopping = asyncio.create_task(stop())
    if await crowd.start(client, chance):
        await crowd.to_the_end(client, chance)
    crowd.close(client)
    await stopping


async def _second(crowd: Crowd, plan: ClientPlan, chance: random.Random) -> None:
    """Follows a stream from its start, beside whoever started it."""
    client = crowd.record(plan)

    async def join() -> None:
        limit = time.monotonic() + PATIENCE_SECONDS
        while client.stream_id is None and client.outcome == "open" and time.monotonic() < limit:
            await asyncio.sleep(0.02)
        if client.stream_id is None:
            return
        other = crowd.record(plan)
        other.marker, other.stream_id = client.marker, client.stream_id
        await crowd.to_the_end(other, chance)

    joining = asyncio.create_task(join())
    if await crowd.start(client, chance):
        await crowd.to_the_end(client, chance)
    crowd.close(client)
    await joining


async def _slow(crowd: Crowd, plan: ClientPlan, chance: random.Random) -> None:
    client = crowd.record(plan)
    if await crowd.start(client, chance, pause=lambda: chance.uniform(0, 0.3)):
        await crowd.to_the_end(client, chance)
    crowd.close(client)


async def _whole(crowd: Crowd, plan: ClientPlan, chance: random.Random) -> None:
    client = crowd.record(plan)
    client.marker = f"n{plan.number}.0"
    worker = crowd.workers[plan.worker]
    connection = Connection(worker.number, time.monotonic())
    client.connections.append(connection)
    body = crowd.body(plan, client.marker)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            async with crowd.session.post(
                f"{worker.url}/v1/chat", json=body, headers=crowd.headers
            ) as answer:
                connection.status = answer.status
                if answer.status == 200:
                    client.whole = await answer.json()
                    client.stream_id = answer.headers.get("X-Stream-Id")
                    connection.how = "whole"
                else:
                    connection.code = await crowd.refusal(answer)
                    connection.how, client.outcome = "refused", "refused"
    except (aiohttp.ClientError, OSError, TimeoutError):
        client.outcome = "unstarted"
    connection.ended_at = time.monotonic()
    crowd.close(client)


async def _repeater(crowd: Crowd, plan: ClientPlan, chance: random.Random) -> None:
    """Starts that race each other with one idempotency key, and one more after the end."""
    again = (plan, *[plan] * chance.randint(1, 2))

    async def one(delay: float, mine: random.Random) -> None:
        client = crowd.record(plan)
        client.key, client.marker = f"key-{crowd.seed}-{plan.number}", f"n{plan.number}.0"
        await asyncio.sleep(delay)
        client.started_at = time.monotonic()
        if await crowd.start(client, mine):
            await crowd.to_the_end(client, mine)
        crowd.close(client)

    delays = [chance.choice((0.0, 0.01, 0.3)) for _ in again]
    seeds = [random.Random(chance.random()) for _ in again]
    await asyncio.gather(*(one(delay, mine) for delay, mine in zip(delays, seeds, strict=True)))
    await one(0, chance)


async def _ticket(crowd: Crowd, plan: ClientPlan, chance: random.Random) -> None:
    """Starts without reading, then follows with the ticket of the URL, as a browser's EventSource does."""
    client = crowd.record(plan)
    url: str | None = None
    for attempt in range(START_TRIES):
        client.marker = f"n{plan.number}.{attempt}"
        worker = crowd.somewhere(chance)
        call = crowd.session.post(
            f"{worker.url}/v1/streams", json=crowd.body(plan, client.marker), headers=crowd.headers
        )
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(30), call as answer:
                if answer.status == 201:
                    started = await answer.json()
                    client.stream_id, url = started["stream_id"], started["events_url"]
                    break
                crowd.bodies.append(await answer.text())
        await asyncio.sleep(chance.uniform(0.2, 1.0) * 1.3**attempt)
        crowd.records.append(Client(plan, client.marker, started_at=client.started_at, outcome="unstarted"))
    if client.stream_id is None:
        client.outcome = "unstarted"
    else:
        await crowd.to_the_end(client, chance, url=url, cuts=plan.cuts[:1])
    crowd.close(client)


async def _foreigner(crowd: Crowd, plan: ClientPlan, chance: random.Random) -> None:
    """Asks for a stream of another key, in every way there is."""
    await asyncio.sleep(plan.patience)
    known = [client.stream_id for client in crowd.records[-50:] if client.stream_id is not None]
    if not known:
        return
    stream_id = chance.choice(known)
    at = f"/v1/streams/{stream_id}"
    for method, url in (("GET", at), ("GET", f"{at}/events"), ("POST", f"{at}/cancel")):
        worker = crowd.somewhere(chance)
        await crowd.probe("foreign", method, url, worker, stream_id, headers=crowd.other)


_JUNK: tuple[bytes, ...] = (
    b"",
    b"{",
    b"[]",
    b"\xff\xfe\x00",
    b"[" * 5000,
    b'{"messages": []}',
    b'{"messages": [{"role": "user"}]}',
    b'{"messages": [{"role": "user", "content": "x"}], "n": 2}',
    b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}], "api_base": "http://x"}',
    b'{"messages": [{"role": "nobody", "content": "x"}], "model": "m"}',
)


async def _junk(crowd: Crowd, plan: ClientPlan, chance: random.Random) -> None:
    worker = crowd.somewhere(chance)
    what = chance.choice(_JUNK)
    headers = crowd.headers | {"Content-Type": "application/json"}
    await crowd.probe("junk", "POST", "/v1/chat/stream", worker, data=what, headers=headers)
    odd = chance.choice(
        ("/v1/streams/nobody", "/v1/streams/%00/events", "/v1/nothing", "/v1/streams/str_x/events")
    )
    await crowd.probe("junk", "GET", odd, worker, headers=crowd.headers)
    position = chance.choice(("x", "1-", "-1", "9" * 30, "1-99999999"))
    headers = crowd.headers | {"Last-Event-ID": position}
    await crowd.probe("junk", "GET", "/v1/streams/str_unknown/events", worker, headers=headers)


_ROLES: dict[str, Callable[[Crowd, ClientPlan, random.Random], Any]] = {
    "reader": _reader,
    "leaver": _leaver,
    "dropper": _dropper,
    "canceller": _canceller,
    "second": _second,
    "slow": _slow,
    "whole": _whole,
    "repeater": _repeater,
    "ticket": _ticket,
    "foreigner": _foreigner,
    "junk": _junk,
}
