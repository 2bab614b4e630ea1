"""Several worker processes behind one listening socket, and the process that looks after them.

A worker that dies is replaced. SIGTERM or SIGINT drains all and ends; a second one hurries. SIGHUP replaces
the workers one after the other, each only when its successor serves: a rolling restart.
"""

import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType

from millstream.errors import ConfigurationError

log = logging.getLogger("millstream.server")

CANNOT_WORK = 2  # the exit code

_spawn = multiprocessing.get_context("spawn")
_RESTART_SECONDS = (0.5, 10.0)
_STEADY_SECONDS = 30.0  # a worker that lived for so long was well
_LOOK_SECONDS = 1.0  # should the end of a worker have been missed


class _Worker:
    def __init__(self, target: Callable[[Connection], None], started_at: float) -> None:
        self.started_at = started_at
        self.ready = False
        self.pipe, theirs = _spawn.Pipe(duplex=False)
        self.process: SpawnProcess = _spawn.Process(target=target, args=(theirs,), daemon=False)
        self.process.start()
        theirs.close()

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process.is_alive() and self.process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def listen(self) -> None:
        """It says so once when it serves; then the pipe is of no more use."""
        with suppress(EOFError):
            self.pipe.recv()
            self.ready = True
        self.pipe.close()


class Supervisor:
    """Runs ``count`` workers, of which the very first is ``first`` and all others are ``target``. Each gets a
    pipe to report to when it serves, and exits with ``CANNOT_WORK`` where the operator has to mend something,
    which it has said. ``close`` is called when no more connections are to be taken.
    """

    def __init__(
        self,
        target: Callable[[Connection], None],
        first: Callable[[Connection], None],
        count: int,
        close: Callable[[], None],
    ) -> None:
        self._target = target
        self._first = first
        self._count = count
        self._close = close
        self._asked = 0  # to stop, by signals
        self._asked_by: int = signal.SIGTERM  # the last one
        self._told = 0  # how often the workers were
        self._workers: list[_Worker] = []
        self._leaving: list[_Worker] = []
        self._roll: list[_Worker] = []  # still to be replaced
        self._restart_at = 0.0
        self._delay = _RESTART_SECONDS[0]
        # Written to by the signal handlers, so that the loop wakes up.
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)

    def run(self) -> None:
        """Returns when all workers have ended after a signal. Raises ``ConfigurationError`` where the first
        one does not get to serve.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        first = self._start(self._first)
        while not first.ready and first.process.is_alive() and not self._asked:
            self._wait()
        if not first.ready and not self._asked:
            first.process.join()
            if first.process.exitcode == CANNOT_WORK:
                raise SystemExit(CANNOT_WORK)  # it has said why
            raise ConfigurationError("the server did not start; its log says why")
        while not (self._asked and not self._alive()):
            if self._told < self._asked:
                self._told = self._asked
                self._close()
                for worker in self._alive():
                    worker.stop(self._asked_by)
            elif not self._asked:
                self._keep_up()
            self._wait()

    def _start(self, target: Callable[[Connection], None]) -> _Worker:
        worker = _Worker(target, time.monotonic())
        self._workers.append(worker)
        return worker

    def _alive(self) -> list[_Worker]:
        return [worker for worker in (*self._workers, *self._leaving) if worker.process.is_alive()]

    def _keep_up(self) -> None:
        """As many workers as there should be, and a successor for the one that is next to leave."""
        now = time.monotonic()
        dead = [worker for worker in self._workers if not worker.process.is_alive()]
        for worker in dead:
            self._workers.remove(worker)
            log.error("worker %s ended with %s", worker.process.pid, worker.process.exitcode)
            if now - worker.started_at > _STEADY_SECONDS:
                self._delay = _RESTART_SECONDS[0]
            self._restart_at = now + self._delay
            self._delay = min(2 * self._delay, _RESTART_SECONDS[1])
        self._leaving = [worker for worker in self._leaving if worker.process.is_alive()]
        self._roll = [worker for worker in self._roll if worker in self._workers]
        if now < self._restart_at:
            return
        while len(self._workers) < self._count and not self._asked:
            self._start(self._target)
        if self._roll and not self._leaving and not self._asked:
            if len(self._workers) == self._count:
                self._start(self._target)
            elif all(worker.ready for worker in self._workers):
                old = self._roll.pop(0)
                self._workers.remove(old)
                self._leaving.append(old)
                old.stop()

    def _wait(self) -> None:
        """Until something has happened to a worker, or a signal has come."""
        pipes = {w.pipe: w for w in self._alive() if not w.pipe.closed}
        sentinels = [worker.process.sentinel for worker in self._alive()]
        for happened in wait([*pipes, *sentinels, self._wake], _LOOK_SECONDS):
            if happened is self._wake:
                with suppress(BlockingIOError):
                    self._wake.recv(4096)
            elif isinstance(happened, Connection):
                pipes[happened].listen()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._roll = list(self._workers)
        else:
            self._asked += 1
            self._asked_by = number
        with suppress(BlockingIOError):
            self._waker.send(b"!")
