"""``millstream serve``: the worker process, from its socket to its last settled row."""

import asyncio
import errno
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from msgspec import Struct
from rich.console import Console
from rich.markup import escape

from millstream.database import DatabaseAway
from millstream.errors import ConfigurationError
from millstream.providers.known import KNOWN
from millstream.server.app import Millstream, create_app
from millstream.server.direct import Door
from millstream.server.process import collector, logs
from millstream.server.process.acceptor import Acceptor
from millstream.server.process.connections import Bounds, Connections
from millstream.server.process.http import Connection as HttpConnection
from millstream.server.process.supervisor import CANNOT_WORK, Supervisor
from millstream.server.routes import pages
from millstream.settings import Settings
from millstream.version import __version__

log = logging.getLogger("millstream.server")

# How long a client that died without a word keeps its connection (spec/protocol.md §9: at most 10 s).
_KEEPALIVE_IDLE_SECONDS = 4
_KEEPALIVE_EVERY_SECONDS = 2
_UNACKNOWLEDGED_MILLISECONDS = 8000

_REVOKE_SECONDS = 0.5
_LEAVE_SECONDS = 10.0  # from the end of the drain to the end of the process
_BACKLOG = 4096
_DESCRIPTORS = 1 << 20  # a worker asks for no more
_MODELS_SHOWN = 6
_KEYS_SHOWN = 3
_FINISH_SECONDS = 4  # what requests get to end by themselves, after the drain
_HURRIED_SECONDS = 1  # the same where somebody hurries
_READ_SECONDS = 1  # what clients then get to read how they ended
_DEMOS = {"local": "a demo model on this machine: fluent, often wrong", "scripted": "a script, no model"}


def serve(settings: Settings, *, show_key: bool = False, temporary_key: bool = False) -> None:
    """Serves until a signal; a second signal hurries. With ``show_key`` the first key is made and printed,
    where there is none. Raises ``ConfigurationError``.
    """
    if settings.workers > 1 and settings.journal_url.startswith("memory:"):
        raise ConfigurationError(
            f"{settings.workers} workers need a shared journal: set MILLSTREAM_JOURNAL_URL to a Redis, "
            "such as redis://localhost:6379/0"
        )
    if settings.workers > 1 and temporary_key:
        raise ConfigurationError(
            f"--temporary-key is for one worker; make a key with: {settings.key_command}"
        )
    with _listen(settings.host, settings.port) as listener:
        if settings.workers == 1:
            _work(None, settings, listener, _Banner(show_key, temporary_key))
        else:
            logs.configure(settings.log_level, settings.log_format, access=settings.access_log)
            work = partial(_work, settings=settings, listener=listener)
            first = partial(work, banner=_Banner(show_key))
            Supervisor(work, first, settings.workers, listener.close).run()


class _Banner(Struct, frozen=True):
    """What the worker that prints the banner shows in it: the first key, or else a temporary one."""

    show_key: bool
    temporary_key: bool = False


def _work(
    ready: Connection | None,
    settings: Settings,
    listener: socket.socket,
    banner: _Banner | None = None,
) -> None:
    """One worker. Reports to ``ready`` where it is one of several: then the signals of the terminal are for
    the process that started it."""
    if ready is not None:
        os.setsid()
    try:
        _run(ready, settings, listener, banner)
    except ConfigurationError as error:
        if ready is None:
            raise
        print(f"millstream: {error}", file=sys.stderr)
        raise SystemExit(CANNOT_WORK) from None


def _run(
    ready: Connection | None, settings: Settings, listener: socket.socket, banner: _Banner | None
) -> None:
    logs.configure(settings.log_level, settings.log_format, access=settings.access_log)
    millstream = Millstream(settings)
    app = create_app(millstream)
    config = uvicorn.Config(
        Door(app, settings.root_path),
        interface="asgi3",  # uvicorn takes what is no coroutine function for ASGI 2
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",  # _Server enters it: uvicorn would log a traceback of what the operator can mend
        log_config=None,
        access_log=settings.access_log,
        server_header=False,
        proxy_headers=False,  # nothing here depends on where a request says it comes from
        date_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_FINISH_SECONDS + _READ_SECONDS + 1,
    )
    connections = Connections(_raise_descriptors(), Bounds.for_bodies(settings.max_body_bytes))
    server = _Server(config, connections, millstream, app, listener, banner, ready)
    server.run(sockets=[listener])


def _raise_descriptors() -> int:
    """Raises the limit of descriptors as far as this process may; how many it may have open then."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (_DESCRIPTORS if limit == resource.RLIM_INFINITY else limit for limit in limits)
    wanted = max(soft, min(hard, _DESCRIPTORS))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, limits[1]))
    except (OSError, ValueError):  # macOS has a limit of its own
        return soft
    return wanted


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigurationError(f"--host {host} is not an address of this machine") from error
    listener = socket.socket(family, kind, proto)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit these from their listener. They notice a client that vanished: in silence by
    # the probes, while sending by the time its system has not acknowledged anything.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        tcp = socket.IPPROTO_TCP
        listener.setsockopt(tcp, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_SECONDS)
        listener.setsockopt(tcp, socket.TCP_KEEPINTVL, _KEEPALIVE_EVERY_SECONDS)
        listener.setsockopt(tcp, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MILLISECONDS)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {port} is in use; take another one with MILLSTREAM_PORT={port % 65535 + 1}, which "
                "`make run` takes too, or with --port; 0 takes a free one"
            ) from error
        raise ConfigurationError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return listener


def _exit_after(seconds: float) -> None:
    """Ends the process then, whatever hangs in it. What is not settled by that time others settle, from its
    last checkpoint.
    """

    def exit_now() -> None:
        log.critical(
            "the worker did not end in %g s and is stopped; open rows will be settled later", seconds
        )
        os._exit(1)

    overdue = threading.Timer(seconds, exit_now)
    overdue.daemon = True
    overdue.start()


class _Server(uvicorn.Server):
    """uvicorn with a beginning that says where it is and an end that loses nothing."""

    def __init__(
        self,
        config: uvicorn.Config,
        connections: Connections,
        millstream: Millstream,
        app: FastAPI,
        listener: socket.socket,
        banner: _Banner | None,
        ready: Connection | None,
    ) -> None:
        super().__init__(config)
        self._connections = connections
        self._banner = banner
        self._ready = ready
        self._millstream = millstream
        self._app = app
        self._listener = listener
        self._temporary_key_id: str | None = None
        self._stopped_by: int | None = None  # the first signal
        self._hurry = asyncio.Event()
        self._is_drained = False
        self._opening: asyncio.Task[Any] | None = None  # the start, while it can be given up
        self._collecting: asyncio.Task[None] | None = None
        self._lifespan = AsyncExitStack()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal."""
        self._loop = asyncio.get_running_loop()
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
            signal.signal(signal.SIGHUP, self._hang_up)
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises ``ConfigurationError`` where the operator has to mend something, whichever part says so."""
        task = self._opening = asyncio.current_task()
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(self._millstream.running_in(self._app))
                self._opening = None
                await self._serve_from_now_on()
                self._lifespan = stack.pop_all()
        except DatabaseAway as error:
            raise ConfigurationError(f"the database does not work: {error}") from error
        except asyncio.CancelledError:
            if not self.should_exit or task is None:
                raise
            task.uncancel()
        finally:
            self._opening = None

    async def _serve_from_now_on(self) -> None:
        # First what may fail: who is let in is answered.
        key = None if self._banner is None else await self._known_key(self._banner)
        await super().startup(sockets=[])
        most = self._connections.most_a_turn
        self.servers = [cast("asyncio.Server", Acceptor(self._listener, self._make_protocol, most))]
        if key is not None:
            self._announce(key)
        if self._ready is not None:
            self._ready.send("ready")
            self._follow_parent()
        # Every generator of ours is closed by whoever reads it, so the loop need not keep a list of them. One
        # that a plugin lets go of is still closed by the loop's finalizer.
        sys.set_asyncgen_hooks(firstiter=None)
        collector.freeze()
        self._collecting = asyncio.create_task(
            collector.collect_after_rushes(self._millstream), name="collector"
        )

    def _make_protocol(self) -> asyncio.Protocol:
        return HttpConnection(self._connections, self.config, self.server_state, self.lifespan.state)

    def _follow_parent(self) -> None:
        """A worker whose supervisor was killed would serve on unseen."""
        parent = multiprocessing.parent_process()
        if parent is not None:
            asyncio.get_running_loop().add_reader(parent.sentinel, self._supervisor_died, parent.sentinel)

    def _supervisor_died(self, sentinel: int) -> None:
        asyncio.get_running_loop().remove_reader(sentinel)
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not calling super(): it would raise the signal again at the end, instead of exit code 0.
        if not self.should_exit:
            self.should_exit, self._stopped_by = True, sig
            self._loop.call_soon_threadsafe(self._give_up_the_start)
        else:
            self._loop.call_soon_threadsafe(self._hurry_up)

    def _hang_up(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:  # a shell sends it once more than the terminal that closes: nobody hurries
            self.handle_exit(sig, frame)

    def _give_up_the_start(self) -> None:
        if self._opening is not None:
            self._opening.cancel()

    def _hurry_up(self) -> None:
        self._hurry.set()
        self.force_exit = self._is_drained

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Streams first (uvicorn would wait for them without end), then connections, then stores."""
        drain_seconds = self._millstream.settings.drain_seconds
        _exit_after(drain_seconds + _LEAVE_SECONDS)
        streams = self._millstream.streams
        if self._ready is not None:
            for server in self.servers:
                server.close()  # the other workers take what comes from now on
        if len(streams) and drain_seconds > 0 and not self._hurry.is_set():
            self._say_what_is_waited_for(len(streams), drain_seconds)
        drain = asyncio.create_task(streams.drain(drain_seconds))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        drain.cancel()
        await asyncio.gather(drain, hurry, return_exceptions=True)
        await streams.drain(0)
        if self._collecting is not None:
            self._collecting.cancel()
        if self._temporary_key_id is not None:
            with suppress(DatabaseAway, TimeoutError):
                async with asyncio.timeout(_REVOKE_SECONDS):
                    await self._millstream.keys.revoke(self._temporary_key_id)
        self._is_drained = True
        ending = asyncio.create_task(self._end_requests(), name="end of requests")
        await super().shutdown(sockets)
        ending.cancel()
        if left := self._cancel_requests():  # somebody hurries
            await asyncio.wait(left, timeout=_READ_SECONDS)
        await self._lifespan.aclose()

    async def _end_requests(self) -> None:
        """Those that have no answer after a while are told that the server stops; the others are cut."""
        await asyncio.sleep(_HURRIED_SECONDS if self._hurry.is_set() else _FINISH_SECONDS)
        self._cancel_requests()
        await asyncio.sleep(_READ_SECONDS)
        for connection in list(self.server_state.connections):
            cast("HttpConnection", connection).abort()

    def _cancel_requests(self) -> list[asyncio.Task[None]]:
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        return tasks

    def _say_what_is_waited_for(self, streams: int, seconds: float) -> None:
        log.info(
            "waiting for %d stream%s, at most %g s; %s",
            streams,
            "" if streams == 1 else "s",
            seconds,
            "press Ctrl-C again to hurry" if self._stopped_by == signal.SIGINT else "a second signal hurries",
        )

    @property
    def _url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def _announce(self, key: str) -> None:
        """The banner: where, with which key, which models, and why not others."""
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"[bold]Millstream[/bold] {__version__}  [bold cyan]{self._url}[/bold cyan]\n{key}")
        if not pages.is_built():
            console.print("  chat    the chat page is not built: make web")
        self._announce_models(console)
        console.print("  stop    Ctrl-C")
        console.file.flush()

    async def _known_key(self, banner: _Banner) -> str:
        """The lines about a key: one that works, or what is known of those that were made before."""
        keys = self._millstream.keys
        known = await keys.all()
        yours = _some([key.name for key in known if key.revoked_at is None], _KEYS_SHOWN)
        # What is printed into a file or a pipe may be kept, by a journal say, and read by many.
        secret = await keys.ensure_first() if banner.show_key else None
        note = "shown this once; it may do everything"
        if secret is None and banner.temporary_key:
            key, secret = await keys.create("temporary", ["chat", "usage"])
            self._temporary_key_id = key.id
            note = "until the server stops" + (f"; yours work too: {yours}" if yours else "")
        if secret is not None:
            chat = f"\n  chat    {self._url}/#key={secret}" if pages.is_built() else ""
            return f"  key     [bold]{secret}[/bold]  ({escape(note)}){chat}"
        make = self._millstream.settings.key_command
        if yours:
            said = f"yours: {yours}; their secrets were shown when they were made; another: {make}"
        elif known:
            said = f"all are revoked; make one with: {make}"
        else:
            said = f"there is none; make one with: {make}, or start with --show-key"
        return f"  key     {escape(said)}"

    def _announce_models(self, console: Console) -> None:
        """One line a provider, with the default in its own, and one for those that are not ready."""
        service = self._millstream.llm_service
        by_provider: dict[str, list[str]] = {}
        for model, provider in service.models.items():
            by_provider.setdefault(provider, []).append(model)
        unset = {name for name, why in service.unready.items() if why.endswith("is not set")}
        others = f"set {KNOWN[0].variable} or another provider's variable for others"
        only_demos = bool(unset) and by_provider.keys() <= _DEMOS.keys()
        for provider, models in by_provider.items():
            names = _some(models, _MODELS_SHOWN)
            notes = [_DEMOS[provider]] if provider in _DEMOS else []
            if service.default_model in models and len(service.models) > 1:
                notes.append(f"the default is {service.default_model}")
            if only_demos:
                notes.append(others)
            note = f"  ({'; '.join(notes)})" if notes else ""
            console.print(f"  models  {escape(f'{provider}: {names}{note}')}")
        if not by_provider:
            console.print(f"  models  none yet{f'  ({others})' if only_demos else ''}")
        unready = ", ".join(f"{name} ({why})" for name, why in service.unready.items() if name not in unset)
        if unready:
            console.print(f"  [yellow]unready {escape(unready)}[/yellow]")


def _some(names: Sequence[str], most: int) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
