"""The database: tables, and work done in them off the event loop.

SQLite in the data folder by default, PostgreSQL by URL. The engine is synchronous and runs in threads of
its own: one hop for a whole transaction, where an async driver hops for every statement of it
(docs/decisions/0003-synchronous-database-in-threads.md).
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError

from millstream.errors import ConfigurationError
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

# What all workers of one installation sign with.
secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.LargeBinary(64), nullable=False),
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
    sa.Column("provider", sa.String(64), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("finish_reason", sa.String(24)),
    sa.Column("error_code", sa.String(32)),
    *(sa.Column(kind, sa.BigInteger, nullable=False) for kind in TOKEN_KINDS),
    sa.Column("usage_source", sa.String(24), nullable=False),
    sa.Column("cost_picodollars", sa.BigInteger),  # null where no price is known
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("first_event_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("worker_id", sa.String(32)),  # who runs it, then null
    sa.Column("idempotency_key", sa.String(128)),
    sa.Column("request_digest", sa.LargeBinary(32)),  # of the request, where it has an idempotency key
    sa.Index("streams_by_key", "key_id", "created_at"),
    sa.Index("streams_by_time", "created_at"),
    sa.Index("streams_running", "worker_id"),
    sa.Index(
        "streams_by_idempotency_key",
        "owner_id",
        "idempotency_key",
        unique=True,
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    ),
)

_REVISION = "0002"  # the newest migration

# Errors that say that the database cannot be had now; others say that it does not want this row.
AWAY = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)

# For PostgreSQL, so that a database which hangs is one that is away.
_POSTGRES_OPTIONS = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "options": "-c statement_timeout=10000",
}


class Prepared:
    """A statement that is compiled once. Rows go to the driver as they are: to look a statement up and to
    convert its parameters takes SQLAlchemy as long as SQLite takes to run it.
    """

    def __init__(self, statement: sa.Insert | sa.Update, names: Iterable[str]) -> None:
        self._statement = statement
        self._names = list(names)
        self._compiled: dict[str, tuple[str, Sequence[str] | None]] = {}

    def run(self, connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
        text, order = self._for(connection)
        if order is None:  # the driver takes parameters by name
            connection.exec_driver_sql(text, list(rows))
        else:
            connection.exec_driver_sql(text, [tuple(row[name] for name in order) for row in rows])

    def _for(self, connection: Connection) -> tuple[str, Sequence[str] | None]:
        name = connection.dialect.name
        if name not in self._compiled:
            compiled = self._statement.compile(dialect=connection.dialect, column_keys=self._names)
            self._compiled[name] = (str(compiled), getattr(compiled, "positiontup", None))
        return self._compiled[name]


class Database:
    """Opens ``url``, creating the folder of an SQLite file. Raises ``ConfigurationError``."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        # Writers wait for each other in any case; in one thread they do so without holding a connection.
        self._writer = ThreadPoolExecutor(1, "millstream-write")
        self._readers = ThreadPoolExecutor(2, "millstream-read")

    def migrate(self) -> None:
        """Brings the tables up to date. Blocking: call it before the event loop runs."""
        try:
            with self._engine.connect() as connection:
                tables = sa.inspect(connection).get_table_names()
                if "alembic_version" in tables:
                    found = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
                    if found == _REVISION:
                        return
        except sa.exc.DBAPIError as error:
            raise ConfigurationError(
                f"cannot open the database {self._engine.url.render_as_string()}: {type(error.orig).__name__}"
            ) from error
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

    async def write(self, work: Callable[[Connection], Result]) -> Result:
        """Runs ``work`` in a transaction of its own; returns when it is committed."""
        return await self._run(self._writer, work)

    def submit(self, work: Callable[[], None], done: Callable[[BaseException | None], object]) -> None:
        """Runs ``work`` in the writing thread, and after it ``done`` with what it raised."""

        def run() -> None:
            try:
                work()
            except BaseException as error:
                done(error)
            else:
                done(None)

        self._writer.submit(run)

    async def read(self, work: Callable[[Connection], Result]) -> Result:
        return await self._run(self._readers, work)

    async def ping(self) -> None:
        """Raises one of ``AWAY`` where the database does not answer."""
        await self.read(lambda connection: connection.execute(sa.text("SELECT 1")))

    async def _run(self, executor: ThreadPoolExecutor, work: Callable[[Connection], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(executor, self.run, work)

    def run(self, work: Callable[[Connection], Result]) -> Result:
        """The same in the calling thread."""
        with self._engine.begin() as connection:
            return work(connection)

    async def close_idle_connections(self) -> None:
        """Closes the connections that nobody uses just now. Python's driver of SQLite keeps, with each, up to
        200 references to what has long been used.
        """
        # In that thread, since SQLite may write its file when it is closed.
        await asyncio.get_running_loop().run_in_executor(self._writer, self._engine.dispose)

    def close(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        self._engine.dispose()


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(
            "MILLSTREAM_DATABASE_URL is not a database URL; try sqlite:///millstream.db "
            "or postgresql://user@host/name"
        ) from error
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    elif parsed.get_backend_name() != "sqlite":
        raise ConfigurationError(f"databases are SQLite or PostgreSQL, not '{parsed.get_backend_name()}'")
    elif parsed.database and parsed.database != ":memory:":
        _make_folder(Path(parsed.database).parent)
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
        raise ConfigurationError("PostgreSQL needs an extra: pip install 'millstream[postgres]'") from error
    if is_sqlite:
        sa.event.listen(engine, "connect", _configure_sqlite)
    return engine


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"the folder {folder} cannot be made: {error.strerror}") from error


def _configure_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")  # readers and the writer do not wait for each other
    cursor.execute("PRAGMA synchronous=NORMAL")  # in WAL safe against a crash of the process
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()
