"""The database: tables, and work done in them off the event loop.

SQLite in the data folder by default, PostgreSQL by URL. The engine is synchronous and runs in threads of
its own: one hop for a whole transaction, where an async driver hops for every statement of it
(docs/decisions/0003-synchronous-database-in-threads.md).
"""

import asyncio
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError

from millstream import private_files
from millstream.driver_words import in_words
from millstream.errors import ConfigurationError, StoreAway, missing_extra, out_of_descriptors
from millstream.usage import TOKEN_KINDS

log = logging.getLogger("millstream.database")
Result = TypeVar("Result")

metadata = sa.MetaData()

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("hint", sa.String(32), nullable=False),  # first and last characters, to recognise it by
    sa.Column("scopes", sa.String(64), nullable=False),  # separated by spaces
    sa.Column("created_at", sa.Float, nullable=False),  # Unix seconds, as all times here
    sa.Column("revoked_at", sa.Float, index=True),
)

# One row a worker, which raises ``beat`` as long as it lives. Another worker deletes a row whose beat stands
# still; so its streams are known to be orphans.
workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("beat", sa.BigInteger, nullable=False),
)

# What all workers of one installation sign with. The newest one whose time has come signs; every one is
# believed until it expires.
secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),  # "signing", and of those that came later "signing-…"
    sa.Column("value", sa.LargeBinary(64), nullable=False),
    sa.Column("signs_from", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float),  # null until another one replaces it
)

# One row a stream: what it is, what it used, where each number comes from.
streams = sa.Table(
    "streams",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner_id", sa.String(320), nullable=False),  # who may see it: a key, or an end user of it
    sa.Column("key_id", sa.String(32), nullable=False),  # who pays for it
    sa.Column("token_id", sa.String(32)),  # the browser token that it was started with
    sa.Column("user", sa.String(256)),
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("provider", sa.String(64), nullable=False),  # who was asked first
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("finish_reason", sa.String(24)),
    sa.Column("error_code", sa.String(32)),
    # With a default, so that workers of the version before a new kind can go on in one database.
    *(sa.Column(kind, sa.BigInteger, nullable=False, server_default="0") for kind in TOKEN_KINDS),
    sa.Column("usage_source", sa.String(24), nullable=False),
    sa.Column("cost_picodollars", sa.BigInteger),  # null where no price is known
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("first_event_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("corrected_at", sa.Float),  # when its producer's numbers replaced those of its last checkpoint
    # What its provider said of it, in its own words: how it ended, its usage object as JSON, its own price.
    sa.Column("provider_finish_reason", sa.String(64)),
    sa.Column("provider_usage", sa.Text),
    sa.Column("provider_cost_picodollars", sa.BigInteger),
    sa.Column("attempts", sa.Text),  # as JSON, where there were several
    sa.Column("worker_id", sa.String(32)),  # who runs it, then null
    sa.Column("idempotency_key", sa.String(128)),
    sa.Column("request_digest", sa.LargeBinary(32)),  # of the request, where it has an idempotency key
    sa.Column("thread_id", sa.String(128)),  # the conversation that it belongs to, as its client names it
    sa.Index("streams_by_key", "key_id", "created_at"),
    sa.Index("streams_by_time", "created_at"),
    sa.Index("streams_running", "worker_id"),
    sa.Index(
        "streams_open_by_owner",
        "owner_id",
        sqlite_where=sa.text("worker_id IS NOT NULL"),
        postgresql_where=sa.text("worker_id IS NOT NULL"),
    ),
    sa.Index(
        "streams_by_idempotency_key",
        "owner_id",
        "idempotency_key",
        unique=True,
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    ),
    sa.Index(
        "streams_by_thread",
        "owner_id",
        "thread_id",
        "created_at",
        sqlite_where=sa.text("thread_id IS NOT NULL"),
        postgresql_where=sa.text("thread_id IS NOT NULL"),
    ),
)

# What is on its way to an exporter: a row that is written with the settlement, and deleted when it is
# delivered.
exports = sa.Table(
    "exports",
    metadata,
    sa.Column("exporter", sa.String(32), primary_key=True),
    sa.Column("stream_id", sa.String(64), primary_key=True),
    sa.Column("is_correction", sa.Boolean, primary_key=True),
    sa.Column("settled_at", sa.Float, nullable=False),
    sa.Column("due_at", sa.Float),  # null where the receiver refused it: it waits for an operator
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("sent_at", sa.Float),  # since when it may have arrived, though no answer said so
    sa.Column("last_error", sa.String(256)),
    sa.Column("replaced", sa.Text),  # as JSON: the numbers of the stream before its correction
    sa.Index("exports_due", "exporter", "due_at"),
)

REVISION = "0009"  # the newest migration

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


# For PostgreSQL: what it does not finish in this time it gives up itself.
_POSTGRES_OPTIONS = {
    "connect_timeout": 3,
    "tcp_user_timeout": 5_000,
    "options": "-c statement_timeout=30000 -c lock_timeout=4000",
}
_SQLITE_LOCKED_MILLISECONDS = 1500  # what a writer waits for another one


def migrate_alone(connection: Connection) -> None:
    """Waits until no other process migrates. Then none does before this transaction has ended."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


class Prepared:
    """A statement that is compiled once. Rows go to the driver as they are: to look a statement up and to
    convert its parameters takes SQLAlchemy as long as SQLite takes to run it.
    """

    def __init__(self, statement: sa.Insert | sa.Update, names: Iterable[str]) -> None:
        self._statement = statement
        self._names = list(names)
        self._compiled: dict[str, tuple[str, Sequence[str] | None]] = {}

    def run(self, connection: Connection, rows: Iterable[Mapping[str, Any]]) -> int:
        """How many rows of the table that has inserted or changed."""
        text, order = self._for(connection)
        if order is None:  # the driver takes parameters by name
            return connection.exec_driver_sql(text, list(rows)).rowcount
        return connection.exec_driver_sql(text, [tuple(row[name] for name in order) for row in rows]).rowcount

    def _for(self, connection: Connection) -> tuple[str, Sequence[str] | None]:
        name = connection.dialect.name
        if name not in self._compiled:
            compiled = self._statement.compile(dialect=connection.dialect, column_keys=self._names)
            self._compiled[name] = (str(compiled), getattr(compiled, "positiontup", None))
        return self._compiled[name]


class _Work:
    """Work in a thread, and since when it runs there."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run
        self.started_at: float | None = None
        self.ended = False

    def __call__(self) -> Any:
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
        self._writer = ThreadPoolExecutor(1, "millstream-write")
        self._readers = ThreadPoolExecutor(2, "millstream-read")
        self._reports = ThreadPoolExecutor(1, "millstream-report")  # which hold up nobody at the door
        self._connections: set[Any] = set()
        sa.event.listen(self._engine, "connect", lambda connection, _: self._connections.add(connection))
        sa.event.listen(self._engine, "close", lambda connection, _: self._connections.discard(connection))

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

    def _mend_modes(self) -> None:
        if self._engine.dialect.name != "sqlite":
            return
        file = Path(str(self._engine.url.database))
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
        return await self._run(self._writer, work, self._answer_seconds)

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

    def submit(self, work: Callable[[], None], done: Callable[[BaseException | None], object]) -> None:
        """Runs ``work`` in the writing thread and calls ``done``, in this thread, with what it raised."""
        future = self._start(self._writer, _Work(work), self._answer_seconds)
        future.add_done_callback(
            lambda future: done(DatabaseAway("it is closed") if future.cancelled() else future.exception())
        )

    async def _run(
        self, executor: ThreadPoolExecutor, work: Callable[[Connection], Result], seconds: float
    ) -> Result:
        future = self._start(executor, _Work(partial(self.run, work)), seconds)
        try:
            async with asyncio.timeout(seconds):
                found: Result = await future
                return found
        except TimeoutError:
            raise DatabaseAway(f"no answer in {seconds:g} s") from None

    def _start(self, executor: ThreadPoolExecutor, work: _Work, seconds: float) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(executor, work)
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            if work.ended or (future.cancelled() and work.started_at is None):
                return
            running = 0.0 if work.started_at is None else time.monotonic() - work.started_at
            if running >= seconds:
                self.cut_off()
            timer = loop.call_later(max(seconds - running, _CLOSE_SECONDS), look)

        def stop_looking(_: object) -> None:
            if work.ended:  # whoever waited may have given up earlier
                timer.cancel()

        timer = loop.call_later(seconds, look)
        future.add_done_callback(stop_looking)
        return future

    def run(self, work: Callable[[Connection], Result]) -> Result:
        """Runs ``work`` in a transaction, in this thread. Raises ``DatabaseAway``, and one of ``REFUSED``
        where the database does not want the row.
        """
        try:
            with self._engine.begin() as connection:
                return work(connection)
        except REFUSED:
            raise
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            # SQLite calls it a file that cannot be opened.
            words = "no file descriptor is left" if out_of_descriptors() else in_words(error)
            raise DatabaseAway(words) from error

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
        # In that thread, since SQLite may write its file when it is closed.
        await asyncio.get_running_loop().run_in_executor(self._writer, self._engine.dispose)

    def close(self) -> None:
        """Gives what runs ``_CLOSE_SECONDS`` to end, and cuts it off then."""
        overdue = threading.Timer(_CLOSE_SECONDS, self.cut_off)
        overdue.start()
        for executor in (self._writer, self._readers, self._reports):
            executor.shutdown(cancel_futures=True)
        overdue.cancel()
        self._engine.dispose()


def missing_file(url: str) -> Path | None:
    """The file of an SQLite database that is not there, or has nothing in it."""
    with suppress(ArgumentError, ValueError):
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            path = Path(parsed.database)
            return None if path.exists() and (path.stat().st_size or not path.is_file()) else path
    return None


def _engine(url: str) -> Engine:
    try:
        # What Heroku and others still call it.
        parsed = make_url(re.sub("^postgres:", "postgresql:", url))
    except (ArgumentError, ValueError):  # the latter of a port that is no number
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
            hide_parameters=True,  # its errors are logged, and rows are nobody's business
            connect_args={} if is_sqlite else _POSTGRES_OPTIONS,
        )
    except ModuleNotFoundError as error:
        raise missing_extra("PostgreSQL", "postgres") from error
    if is_sqlite:
        sa.event.listen(engine, "connect", _configure_sqlite)
    return engine


def _shown(url: URL) -> str:
    """Where the database is, without the password and the options, which may have it too."""
    places = {name: value for name, value in url.query.items() if name in ("host", "port")}
    return url.set(drivername=url.get_backend_name(), query=places).render_as_string()


def _make_file(path: Path) -> Path:
    """Where the file really is: SQLite, too, puts the others beside it and not beside a link."""
    try:
        path = path.resolve()
        private_files.make(path)
    except (OSError, RuntimeError) as error:  # links that lead in a circle are a RuntimeError
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"the file {path} cannot be made: {reason}") from error
    return path


def _configure_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")  # readers and the writer do not wait for each other
    cursor.execute("PRAGMA synchronous=NORMAL")  # in WAL safe against a crash of the process
    cursor.execute(f"PRAGMA busy_timeout={_SQLITE_LOCKED_MILLISECONDS}")
    cursor.close()
