"""A client at the ASGI level: it sees every message as it is sent and leaves when it wants to."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from starlette.types import Message, Receive, Scope, Send

Application: TypeAlias = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]


@dataclass
class Exchange:
    """One request and what came back for it, while it goes on."""

    app: Application
    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    root_path: str = ""

    def __post_init__(self) -> None:
        self.status: int | None = None
        self.response_headers: dict[str, str] = {}
        self.received = b""
        self.complete = asyncio.Event()
        self._changed = asyncio.Condition()
        self._left = asyncio.Event()
        self._body_sent = False

    async def __aenter__(self) -> Self:
        path, _, query = self.path.partition("?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": self.root_path,
            "query_string": query.encode(),
            "headers": [(k.lower().encode(), v.encode()) for k, v in self.headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        self.task = asyncio.create_task(self.app(scope, self._receive, self._send))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()
        async with asyncio.timeout(10):
            await self.task

    def leave(self) -> None:
        self._left.set()

    async def _receive(self) -> Message:
        if not self._body_sent:
            self._body_sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        waits = [asyncio.create_task(e.wait()) for e in (self._left, self.complete)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        async with self._changed:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.response_headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                self.received += message.get("body", b"")
                if not message.get("more_body"):
                    self.complete.set()
            self._changed.notify_all()

    async def until(self, condition: Callable[[Self], object], seconds: float = 10) -> None:
        """Waits until ``condition(self)`` holds."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def finished(self, seconds: float = 10) -> Self:
        async with asyncio.timeout(seconds):
            await self.complete.wait()
        return self

    @property
    def frames(self) -> list[Any]:
        """The data of the frames so far; ``[DONE]`` as it is."""
        found: list[Any] = []
        for block in self.received.decode().split("\n\n"):
            for line in block.split("\n"):
                if line.startswith("data: "):
                    data = line.removeprefix("data: ")
                    found.append(data if data == "[DONE]" else json.loads(data))
        return found

    @property
    def text(self) -> str:
        return "".join(f["delta"] for f in self.frames if f != "[DONE]" and "delta" in f)

    @property
    def json(self) -> Any:
        return json.loads(self.received)


def post(app: Application, path: str, body: object, key: str | None = None, **headers: str) -> Exchange:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Exchange(app, "POST", path, _with_key(headers, key), content)


def put(app: Application, path: str, body: object, key: str | None = None) -> Exchange:
    return Exchange(app, "PUT", path, _with_key({}, key), json.dumps(body).encode())


def get(app: Application, path: str, key: str | None = None, **headers: str) -> Exchange:
    return Exchange(app, "GET", path, _with_key(headers, key))


def patch(app: Application, path: str, body: object, key: str | None = None) -> Exchange:
    return Exchange(app, "PATCH", path, _with_key({}, key), json.dumps(body).encode())


def delete(app: Application, path: str, key: str | None = None) -> Exchange:
    return Exchange(app, "DELETE", path, _with_key({}, key))


def _with_key(headers: Mapping[str, str], key: str | None) -> dict[str, str]:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return headers | ({"authorization": f"Bearer {key}"} if key else {})
