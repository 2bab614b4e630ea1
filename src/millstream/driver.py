"""Transactions on the driver of the database itself, for the rows of streams.

SQLAlchemy makes the statements and the connections. What it does around each execution takes longer than
SQLite takes for the row (docs/decisions/0013-the-writer-on-the-driver.md).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, TypeAlias, cast

import sqlalchemy as sa
from sqlalchemy.engine import Dialect, Engine

Row: TypeAlias = Mapping[str, Any]


class Prepared:
    """A statement that is compiled once for each kind of database. ``names`` are its parameters."""

    def __init__(self, statement: sa.Executable, names: Iterable[str]) -> None:
        self._statement = statement
        self._names = list(names)
        self._compiled: dict[str, tuple[str, Callable[[Row], Any]]] = {}

    def compiled(self, dialect: Dialect) -> tuple[str, Callable[[Row], Any]]:
        """The text, and what makes a row into what the driver takes."""
        found = self._compiled.get(dialect.name)
        if found is None:
            compiled = self._statement.compile(  # type: ignore[attr-defined]
                dialect=dialect, column_keys=self._names
            )
            found = self._compiled[dialect.name] = (
                str(compiled),
                _in_order(getattr(compiled, "positiontup", None)),
            )
        return found


def _in_order(names: Sequence[str] | None) -> Callable[[Row], Any]:
    if names is None:  # the driver takes parameters by name
        return lambda row: row
    if len(names) < 2:
        return lambda row: tuple(row[name] for name in names)
    return itemgetter(*names)


class DriverConnection:
    """A connection of its own, outside the engine's pool, on which transactions are begun and ended by hand.
    Raises what the driver raises.
    """

    def __init__(self, engine: Engine) -> None:
        self._dialect = engine.dialect
        self.is_postgres = engine.dialect.name == "postgresql"
        connection = engine.raw_connection()
        self._connection = cast(Any, connection.dbapi_connection)
        connection.detach()
        self._pooled = connection  # which closes it, and tells the engine
        if self.is_postgres:
            self._connection.autocommit = True
        else:
            self._connection.isolation_level = None  # the driver begins nothing by itself
        self._cursor = self._connection.cursor()

    def begin(self) -> None:
        """In SQLite at once as a writer: who reads first and then writes may be refused without a wait."""
        self._cursor.execute("BEGIN" if self.is_postgres else "BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._cursor.execute("COMMIT")

    def rollback(self) -> None:
        # By the driver itself: psycopg then forgets what it prepared, of which a server that met an error has
        # skipped a part.
        self._connection.rollback()

    def close(self) -> None:
        # SQLite lets a file go only when no statement is left, and an error may keep this object for long.
        self._cursor.close()
        self._pooled.close()

    def run(self, statement: Prepared, rows: Sequence[Row]) -> int:
        """How many rows of the table that has inserted or changed."""
        text, in_order = statement.compiled(self._dialect)
        if len(rows) == 1:
            self._cursor.execute(text, in_order(rows[0]))
        else:
            self._cursor.executemany(text, [in_order(row) for row in rows])
        return int(self._cursor.rowcount)

    def first(self, statement: Prepared, row: Row) -> tuple[Any, ...] | None:
        """The first row that it finds."""
        text, in_order = statement.compiled(self._dialect)
        self._cursor.execute(text, in_order(row))
        found: tuple[Any, ...] | None = self._cursor.fetchone()
        return found

    def all(self, statement: Prepared, row: Row) -> list[tuple[Any, ...]]:
        """All rows that it finds."""
        text, in_order = statement.compiled(self._dialect)
        self._cursor.execute(text, in_order(row))
        found: list[tuple[Any, ...]] = self._cursor.fetchall()
        return found
