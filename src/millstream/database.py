"""The database: work that is done in it off the event loop.

SQLite in the data folder by default, PostgreSQL by URL. The engine is synchronous and runs in threads of
its own: one hop for a whole transaction, where an async driver hops for every statement of it
(docs/decisions/0003-synchronous-database-in-threads.md). The rows of streams go past SQLAlchemy to the driver
(docs/decisions/0013-the-writer-on-the-driver.md).
"""

import asyncio
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError

from millstream import private_files
from millstream.driver import DriverConnection
from millstream.driver_words import in_words
from millstream.errors import ConfigurationError, StoreAway, missing_extra, out_of_descriptors
from millstream.schema import REVISION
from millstream.threads import WorkThread

log = logging.getLogger("millstream.database")
Result = TypeVar("Result")

# The row's own fault; every other error of a driver says that the database cannot be had now.
REFUSED = (sa.exc.IntegrityError, sa.exc.DataError)

_MIGRATION_LOCK = 0x6D696C6C  # of PostgreSQL, a number that nothing else in the database locks

_ANSWER_SECONDS = 5.0
_REPORT_SECONDS = 30.0
_READY_SECONDS = 2.0
_CLOSE_SECONDS = 1.0


class DatabaseAway(StoreAway):
    """The database does not answer, takes no writes, or is damaged. The message is for the operator: it has
    the driver's word for what is wrong, and nothing of a row.
    """

    store = "the database"


class RowRefused(Exception):
    """The database does not want the row, and that is the row's own fault."""


class RowTaken(RowRefused):
    """Another row has already what only one may have."""


# For PostgreSQL: what it does not finish in this time it gives up itself.
_POSTGRES_FIXED = {"client_encoding": "utf8", "connect_timeout": 3, "tcp_user_timeout": 5_000}
_POSTGRES_OPTIONS = "-c statement_timeout=30000 -c lock_timeout=4000"
_FIXED_OPTION = re.compile("(?<![a-z_])(?:statement|lock)[_-]timeout")
_SQLITE_FILE = re.compile(r"sqlite(?:\+\w+)?:///([^?]+)")
_SQLITE_LOCKED_MILLISECONDS = 1500  # what a writer waits for another one


def migrate_alone(connection: Connection) -> None:
    """Waits until no other process migrates. Then none does before this transaction has ended."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def snapshot(connection: Connection) -> None:
    """All that this transaction reads from now on, its first statements, is of one moment."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    else:
        connection.exec_driver_sql("BEGIN")


class _Work:
    """Work in a thread, and since when it runs there. Nothing is done of it once it is ``abandoned``."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run
        self.started_at: float | None = None
        self.ended = False
        self.abandoned = False

    def __call__(self) -> Any:
        if self.abandoned:
            return None
        self.started_at = time.monotonic()
        try:
            return self._run()
        finally:
            self.ended = True


class Database:
    """Opens ``url``, creating an SQLite file and its folder, private to this user (SECURITY.md). Raises
    ``ConfigurationError``. ``own_folder`` says that the folder is meant for this database and nothing else.

    Every wait for it has a bound: who waits longer than ``answer_seconds`` gets ``DatabaseAway``, and a
    connection on which the database has been silent for as long is cut off, so that its thread comes back.
    """

    def __init__(
        self, url: str, *, own_folder: bool = False, answer_seconds: float = _ANSWER_SECONDS
    ) -> None:
        self._engine = _engine(url)
        self._own_folder = own_folder
        self._answer_seconds = answer_seconds
        # Writers wait for each other in any case; in one thread they do so without holding a connection.
        self._writer = WorkThread("millstream-write", lambda: DatabaseAway("it is closed"))
        self._by_hand: DriverConnection | None = None  # of the writing thread
        self._path = Path(str(self._engine.url.database)) if self.is_sqlite else None
        self._file: tuple[int, int] | None = None  # what is at that path: its device and number
        self._readers = ThreadPoolExecutor(2, "millstream-read")
        self._reports = ThreadPoolExecutor(1, "millstream-report")  # which hold up nobody at the door
        self._connections: set[Any] = set()
        sa.event.listen(self._engine, "connect", lambda connection, _: self._connections.add(connection))
        sa.event.listen(self._engine, "close", lambda connection, _: self._connections.discard(connection))
        sa.event.listen(self._engine, "close_detached", self._connections.discard)

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more work."""
        return self._writer.is_closed

    @property
    def is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    def migrate(self, *, makes_one: bool = True) -> None:
        """Brings the tables up to date, and files of SQLite that other users may read. Makes the tables where
        there are none, or raises ``ConfigurationError`` unless it ``makes_one``. Blocking: call it before the
        event loop runs.
        """
        found = None
        try:
            with self._engine.connect() as connection:
                tables = sa.inspect(connection).get_table_names()
                if "alembic_version" in tables:
                    found = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        except sa.exc.DBAPIError as error:
            raise ConfigurationError(
                f"cannot open the database {_shown(self._engine.url)}: {in_words(error)}"
            ) from error
        if found is None and not makes_one:
            raise ConfigurationError(f"{_shown(self._engine.url)} is no database of Millstream")
        self._mend_modes()  # only now: what is no database is not ours to touch
        self._file = self._file_now()
        if found == REVISION:
            return
        # Imported here: it takes a third of a second and is needed only when there is something to do.
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["engine"] = self._engine
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise ConfigurationError(
                "the database was made by a newer version of Millstream; use that one"
            ) from error
        except sa.exc.DBAPIError as error:
            raise ConfigurationError(f"cannot bring the database up to date: {in_words(error)}") from error

    def _file_now(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        with suppress(FileNotFoundError):
            found = self._path.stat()
            return found.st_dev, found.st_ino
        return None

    def _expect_its_file(self) -> None:
        """An open file is read and written, without an error, when another one has its name or none."""
        if self._file is not None and self._file_now() != self._file:
            raise DatabaseAway("its file was replaced or deleted; restart the server")

    def _mend_modes(self) -> None:
        if self._path is None:
            return
        file = self._path
        files = [file.with_name(file.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]
        mended, left = private_files.mend(files, file.parent, own_folder=self._own_folder)
        if mended:
            log.warning(
                "open to other users of this machine until now, and mended: %s; who has read the database "
                "can sign with the secret in it until you run: millstream secret rotate --now",
                ", ".join(map(str, mended)),
            )
        if left:
            log.warning(
                "open to other users of this machine, and not Millstream's to mend: %s; whoever reads or "
                "replaces the database can sign browser tokens",
                ", ".join(map(str, left)),
            )

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        """Runs ``work`` in a transaction; returns when it is committed. Raises ``DatabaseAway``."""
        return await self._write(partial(self.run, work))

    async def write_by_hand(self, work: Callable[[DriverConnection], Result]) -> Result:
        """The same on the driver itself. Raises ``DatabaseAway``, and ``RowRefused``."""
        return await self._write(partial(self.run_by_hand, work))

    async def _write(self, work: Callable[[], Result]) -> Result:
        written: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if written.done():
                return
            if error is None:
                written.set_result(result)
            else:
                written.set_exception(error)

        submitted = self.submit(work, done)
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await written
        except TimeoutError:
            raise DatabaseAway(f"no answer in {self._answer_seconds:g} s") from None
        finally:
            submitted.abandoned = True

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        """Runs ``work``, which is quick. Raises ``DatabaseAway``."""
        return await self._run(self._readers, work, self._answer_seconds)

    async def report(self, work: Callable[[Connection], Result]) -> Result:
        """Runs ``work``, which reads much. Reports wait for each other and hold up nobody else. Raises
        ``DatabaseAway``.
        """
        return await self._run(self._reports, work, _REPORT_SECONDS)

    async def ping(self) -> None:
        """Raises ``DatabaseAway`` where the database does not answer soon."""
        await self._run(self._readers, lambda c: c.execute(sa.text("SELECT 1")), _READY_SECONDS)

    def submit(
        self,
        work: Callable[[], Any],
        done: Callable[[Any, BaseException | None], object],
        context: Context | None = None,
    ) -> _Work:
        """Runs ``work`` in the writing thread and calls ``done``, in this thread, with what it returned or
        raised.
        """
        submitted = _Work(work)
        stop_looking = self._look_after(submitted, self._answer_seconds)

        def ended(result: Any, error: BaseException | None) -> None:
            stop_looking()
            done(result, error)

        self._writer.submit(submitted, ended, context)
        return submitted

    async def _run(
        self, executor: ThreadPoolExecutor, work: Callable[[Connection], Result], seconds: float
    ) -> Result:
        submitted = _Work(partial(self.run, work))
        try:
            future = asyncio.get_running_loop().run_in_executor(executor, submitted)
        except RuntimeError as error:
            raise DatabaseAway("it is closed") from error
        stop_looking = self._look_after(submitted, seconds, future.cancelled)
        # Whoever waited may have given up earlier.
        future.add_done_callback(lambda _: stop_looking() if submitted.ended else None)
        try:
            async with asyncio.timeout(seconds):
                found: Result = await future
                return found
        except TimeoutError:
            raise DatabaseAway(f"no answer in {seconds:g} s") from None

    def _look_after(
        self, work: _Work, seconds: float, gave_up: Callable[[], bool] = lambda: False
    ) -> Callable[[], None]:
        """Cuts off the database's connections when ``work`` runs for so long. Returns what ends that."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            if work.ended or (gave_up() and work.started_at is None):
                return
            running = 0.0 if work.started_at is None else time.monotonic() - work.started_at
            if running >= seconds:
                self.cut_off()
            timer = loop.call_later(max(seconds - running, _CLOSE_SECONDS), look)

        def stop_looking() -> None:
            timer.cancel()

        timer = loop.call_later(seconds, look)
        return stop_looking

    def run(self, work: Callable[[Connection], Result]) -> Result:
        """Runs ``work`` in a transaction, in this thread. Raises ``DatabaseAway``, and one of ``REFUSED``
        where the database does not want the row.
        """
        try:
            self._expect_its_file()
            with self._engine.begin() as connection:
                return work(connection)
        except REFUSED:
            raise
        except (sa.exc.DBAPIError, sa.exc.TimeoutError, OSError) as error:
            raise _away(error) from error

    def run_by_hand(self, work: Callable[[DriverConnection], Result]) -> Result:
        """The same on the driver itself, in the writing thread only. Raises ``DatabaseAway``, and
        ``RowRefused`` where the database does not want the row.
        """
        driver = self._engine.dialect.loaded_dbapi
        try:
            self._expect_its_file()
            connection = self._begin_by_hand()
            try:
                result = work(connection)
                connection.commit()
                return result
            except BaseException:
                self._undo(connection)
                raise
        except driver.IntegrityError as error:
            raise RowTaken(type(error).__name__) from error
        except (driver.DataError, OverflowError) as error:
            raise RowRefused(type(error).__name__) from error
        except (driver.Error, sa.exc.TimeoutError, OSError) as error:
            raise _away(error) from error

    def _begin_by_hand(self) -> DriverConnection:
        if self._by_hand is not None:
            try:
                self._by_hand.begin()
                return self._by_hand
            except (self._engine.dialect.loaded_dbapi.Error, OSError):
                if not self._by_hand.is_postgres:
                    raise
                # It has died since it was last used. Nothing was asked for on it, so another one may be.
                self._close_by_hand()
        connection = DriverConnection(self._engine)
        self._by_hand = connection
        connection.begin()
        return connection

    def _undo(self, connection: DriverConnection) -> None:
        try:
            connection.rollback()
        except (self._engine.dialect.loaded_dbapi.Error, OSError):
            self._close_by_hand()

    def _close_by_hand(self) -> None:
        connection, self._by_hand = self._by_hand, None
        if connection is not None:
            with suppress(Exception):  # it was closed by the other side
                connection.close()

    def cut_off(self) -> None:
        """Ends whatever waits for the database on a connection; new ones are made when they are needed."""
        for connection in list(self._connections):
            try:
                if self._engine.dialect.name == "sqlite":
                    connection.interrupt()
                else:
                    with socket.socket(fileno=os.dup(connection.fileno())) as end:
                        end.shutdown(socket.SHUT_RDWR)
            except Exception as error:  # it is closed already
                log.debug("cut off: %s", type(error).__name__)

    async def close_idle_connections(self) -> None:
        """Closes the connections that nobody uses just now. Python's driver of SQLite keeps, with each, up to
        200 references to what has long been used.
        """

        def close() -> None:
            self._close_by_hand()
            self._engine.dispose()

        closed = asyncio.Event()
        # In that thread, since SQLite may write its file when it is closed.
        self.submit(close, lambda *_: closed.set())
        await closed.wait()

    def close(self) -> None:
        """Gives what runs ``_CLOSE_SECONDS`` to end, and cuts it off then."""
        overdue = threading.Timer(_CLOSE_SECONDS, self.cut_off)
        overdue.start()
        self._writer.close()
        for executor in (self._readers, self._reports):
            executor.shutdown(cancel_futures=True)
        overdue.cancel()
        self._close_by_hand()
        self._engine.dispose()


def _away(error: Exception) -> DatabaseAway:
    # SQLite calls it a file that cannot be opened.
    return DatabaseAway("no file descriptor is left" if out_of_descriptors() else in_words(error))


def missing_file(url: str) -> Path | None:
    """The file of an SQLite database that is not there, or has nothing in it."""
    with suppress(ArgumentError, ValueError, RuntimeError):  # the last of a home that nobody knows
        parsed = _parsed(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            path = Path(parsed.database).expanduser()
            return None if path.exists() and (path.stat().st_size or not path.is_file()) else path
    return None


def _parsed(url: str) -> URL:
    """Raises ``ArgumentError``, or ``ValueError`` of a port that is no number."""
    parsed = make_url(re.sub("^postgres:", "postgresql:", url))  # what Heroku and others still call it
    if file := _SQLITE_FILE.match(url):  # which SQLAlchemy before 2.1 does not decode
        parsed = parsed.set(database=unquote(file[1]))
    return parsed


def _engine(url: str) -> Engine:
    try:
        parsed = _parsed(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "MILLSTREAM_DATABASE_URL is not a database URL; try sqlite:///millstream.db "
            "or postgresql://user@host/name, and write @ : in a password as %40 %3A"
        ) from None
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    elif parsed.get_backend_name() != "sqlite":
        raise ConfigurationError(f"databases are SQLite or PostgreSQL, not '{parsed.get_backend_name()}'")
    elif parsed.database and parsed.database != ":memory:" and "uri" not in parsed.query:
        parsed = parsed.set(database=str(_make_file(Path(parsed.database))))
    else:
        raise ConfigurationError("an SQLite database needs a file: sqlite:///path/to/file.db")
    try:
        is_sqlite = parsed.get_backend_name() == "sqlite"
        engine = sa.create_engine(
            parsed,
            pool_size=4,
            pool_pre_ping=not is_sqlite,
            pool_reset_on_return=None,  # transactions are ended by then, and a dead connection is no error
            pool_use_lifo=True,  # as few as can be, each of which has sums of its own
            hide_parameters=True,  # its errors are logged, and rows are nobody's business
            connect_args={} if is_sqlite else _postgres_options(parsed),
        )
    except ModuleNotFoundError as error:
        raise missing_extra("PostgreSQL", "postgres") from error
    if is_sqlite:
        sa.event.listen(engine, "connect", _configure_sqlite)
    else:
        # Before SQLAlchemy asks anything itself, which fails where texts are bytes.
        sa.event.listen(engine, "connect", _check_encoding, insert=True)
    return engine


def _postgres_options(url: URL) -> dict[str, Any]:
    """How PostgreSQL is connected, with the options that ``url`` or libpq's variable has. Raises
    ``ConfigurationError`` where the former are Millstream's to set.
    """
    options = " ".join(url.normalized_query.get("options", ()))
    others = {name for name, own in _POSTGRES_FIXED.items() if url.query.get(name, str(own)) != str(own)}
    if fixed := sorted({*others, *_FIXED_OPTION.findall(options)}):
        raise ConfigurationError(f"MILLSTREAM_DATABASE_URL: leave out {', '.join(fixed)}; Millstream sets it")
    from psycopg.pq import Conninfo  # here: it is an extra

    preset = next(known.val for known in Conninfo.get_defaults() if known.keyword == b"options")
    options = options or (preset or b"").decode()
    return {**_POSTGRES_FIXED, "options": f"{options} {_POSTGRES_OPTIONS}"}


def _shown(url: URL) -> str:
    """Where the database is, without the password and the options, which may have it too."""
    places = {name: value for name, value in url.query.items() if name in ("host", "port")}
    return url.set(drivername=url.get_backend_name(), query=places).render_as_string()


def _make_file(path: Path) -> Path:
    """Where the file really is: SQLite, too, puts the others beside it and not beside a link."""
    try:
        path = path.expanduser().resolve()
        private_files.make(path)
    except (OSError, RuntimeError) as error:  # the latter of links in a circle, and of an unknown home
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"the file {path} cannot be made: {reason}") from error
    return path


def _check_encoding(connection: Any, _record: object) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise ConfigurationError(
            f"the database {connection.info.dbname} keeps its texts in {encoding}, and has to in UTF8; make "
            "another one with: CREATE DATABASE millstream ENCODING 'UTF8' LOCALE 'C' TEMPLATE template0"
        )


def _configure_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")  # readers and the writer do not wait for each other
    cursor.execute("PRAGMA synchronous=NORMAL")  # in WAL safe against a crash of the process
    cursor.execute(f"PRAGMA busy_timeout={_SQLITE_LOCKED_MILLISECONDS}")
    cursor.close()
