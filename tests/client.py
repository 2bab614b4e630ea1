"""A client as a careful one would be written: it knows the last position it has seen whole, and comes back."""

import asyncio
import contextlib
import json
import random
import re
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp

POSITION = re.compile(r"(\d+)-(\d+)")


class Cut(Exception):
    """The connection is to be cut here."""


class Stream:
    """One answer as a client sees it, over as many connections as it takes."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self.session, self.url = session, url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {key}"}
        self.stream_id: str | None = None
        self.position: str | None = None
        self.pieces: list[str] = []
        self.positions: list[tuple[int, int]] = []
        self.end: dict[str, Any] | None = None  # the terminal frame
        self.connections = 0
        self.statuses: list[int] = []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    async def start(self, body: Mapping[str, object], cut_after: int | None = None) -> None:
        """Starts and reads, up to ``cut_after`` bytes."""
        call = self.session.post(f"{self.url}/v1/chat/stream", json=body, headers=self.headers)
        await self._read(call, cut_after)

    async def follow(self, url: str | None = None, cut_after: int | None = None) -> None:
        """One more connection, to ``url`` or where the others went."""
        at = f"{(url or self.url).rstrip('/')}/v1/streams/{self.stream_id}/events"
        headers = self.headers | ({"Last-Event-ID": self.position} if self.position else {})
        await self._read(self.session.get(at, headers=headers), cut_after)

    async def to_the_end(self, seconds: float = 60) -> None:
        """Comes back until there is a terminal frame."""
        async with asyncio.timeout(seconds):
            while self.end is None:
                with contextlib.suppress(aiohttp.ClientError):
                    await self.follow()
                if self.end is None:
                    await asyncio.sleep(random.uniform(0.05, 0.2))

    async def _read(
        self, call: AbstractAsyncContextManager[aiohttp.ClientResponse], cut_after: int | None
    ) -> None:
        self.connections += 1
        buffer, taken = b"", 0
        try:
            async with call as response:
                self.statuses.append(response.status)
                if response.status != 200:
                    return
                self.stream_id = response.headers.get("X-Stream-Id", self.stream_id)
                async for some in response.content.iter_any():
                    if cut_after is not None:
                        some = some[: cut_after - taken]
                    taken += len(some)
                    buffer += some
                    *frames, buffer = buffer.split(b"\n\n")
                    for frame in frames:
                        self._take(frame.decode())
                    if cut_after is not None and taken >= cut_after:
                        raise Cut
        except (Cut, aiohttp.ClientPayloadError):
            pass

    def _take(self, frame: str) -> None:
        lines = (line.partition(": ") for line in frame.split("\n") if not line.startswith(":"))
        fields = {name: value for name, _, value in lines}
        if "data" not in fields or fields["data"] == "[DONE]":
            return
        data = json.loads(fields["data"])
        match = POSITION.fullmatch(fields["id"])
        assert match is not None
        position = (int(match[1]), int(match[2]))
        if self.positions:
            epoch, seq = self.positions[-1]
            assert position in ((epoch, seq + 1), (epoch + 1, 1)), "an event is missing or came twice"
        else:
            assert position == (1, 1)
        self.positions.append(position)
        self.position = fields["id"]
        self.stream_id = data.get("stream_id", self.stream_id)
        self.pieces.append(data.get("delta", ""))
        if "error" in data or data["finish_reason"]:
            self.end = data
