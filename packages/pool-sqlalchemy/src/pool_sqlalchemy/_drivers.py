"""What differs between the drivers: which manager opens their connections, and what SQLAlchemy must find on one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pool_core import ConnectionManager

__all__ = ["DRIVERS", "Driver", "driver_of"]


class Driver:
    """One of SQLAlchemy's async dialects, and the adapter that has its connections."""

    dialect: ClassVar[str]
    module: ClassVar[str]
    manager_class: ClassVar[str]
    extra: ClassVar[str]
    strict = False  # the reset drops prepared statements

    def manager(self, cargs: Sequence[Any], cparams: Mapping[str, Any]) -> ConnectionManager[Any]:
        """Make the manager for the arguments with which SQLAlchemy would call the driver's connect.

        Raises:
            ImportError: the adapter is not installed.
        """
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as cause:
            raise ImportError(
                f'{self.dialect}:// needs {self.module.replace("_", "-")}: pip install "pool-core[{self.extra}]"'
            ) from cause
        made: ConnectionManager[Any] = getattr(module, self.manager_class)(*cargs, **cparams)
        return made

    def check(self, conn: Any) -> None:
        """Refuse a connection of a user's own pool that SQLAlchemy could not work with. Raises ValueError."""

    def checked_out(self, conn: Any) -> None:
        """Prepare a connection for SQLAlchemy."""

    def checked_in(self, conn: Any, adapted: Any) -> None:
        """Undo what ``checked_out`` did, and what SQLAlchemy would wrongly remember."""


class Asyncpg(Driver):
    dialect, module, manager_class, extra = (
        "postgresql+asyncpg",
        "pool_postgres",
        "PostgresConnectionManager",
        "postgres",
    )
    # SQLAlchemy's prepared statements, which it keeps beside each connection, know the number of the lease in which they
    # were made, and pool-postgres counts on with each reset. During SQLAlchemy's leases the number is this one.
    _LEASE: ClassVar = -1

    def __init__(self) -> None:
        self._number: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def manager(self, cargs: Sequence[Any], cparams: Mapping[str, Any]) -> ConnectionManager[Any]:
        of_dialect = ("prepared_statement_cache_size", "prepared_statement_name_func", "async_fallback")
        return super().manager(cargs, {name: value for name, value in cparams.items() if name not in of_dialect})

    def checked_out(self, conn: Any) -> None:
        self._number[conn] = conn._pool_release_ctr
        conn._pool_release_ctr = self._LEASE

    def checked_in(self, conn: Any, adapted: Any) -> None:
        conn._pool_release_ctr = self._number.pop(conn, 0)
        if self.strict and adapted._prepared_statement_cache is not None:
            adapted._prepared_statement_cache.clear()
        # The pool's reset ends an open transaction; with pool_reset_on_return=None SQLAlchemy would not know.
        adapted._transaction = None
        if hasattr(adapted, "_started"):  # SQLAlchemy 2.0
            adapted._started = False


class Psycopg(Driver):
    dialect, module, manager_class, extra = "postgresql+psycopg", "pool_psycopg", "PsycopgConnectionManager", "psycopg"

    def check(self, conn: Any) -> None:
        _refuse_autocommit(self.dialect, conn.autocommit)


class Aiomysql(Driver):
    dialect, module, manager_class, extra = "mysql+aiomysql", "pool_mysql", "MySQLConnectionManager", "mysql"

    def check(self, conn: Any) -> None:
        from pymysql.constants import CLIENT

        _refuse_autocommit(self.dialect, conn.get_autocommit())
        if not conn.client_flag & CLIENT.FOUND_ROWS:
            raise ValueError(
                "the pool's manager lacks a flag that SQLAlchemy's ORM needs to count the rows an UPDATE has matched: "
                "write MySQLConnectionManager(..., client_flag=pymysql.constants.CLIENT.FOUND_ROWS)"
            )


class Aiosqlite(Driver):
    dialect, module, manager_class, extra = "sqlite+aiosqlite", "pool_sqlite", "SqliteConnectionManager", "sqlite"


DRIVERS = {kind.dialect: kind for kind in (Asyncpg, Psycopg, Aiomysql, Aiosqlite)}
_ALIASES = {"mariadb+aiomysql": Aiomysql, "postgresql+psycopg_async": Psycopg}


def driver_of(dialect: str) -> Driver:
    """Return the driver of a dialect, as ``postgresql+asyncpg``.

    Raises:
        ValueError: there is none.
    """
    kind = DRIVERS.get(dialect) or _ALIASES.get(dialect)
    if kind is None:
        raise ValueError(
            f"no adapter has connections for {dialect}://: write one of {', '.join(f'{name}://' for name in DRIVERS)}"
        )
    return kind()


def _refuse_autocommit(dialect: str, autocommit: object) -> None:
    if autocommit:
        raise ValueError(
            f"the pool's manager connects with autocommit=True, and SQLAlchemy's {dialect} begins its transactions "
            "without: leave autocommit out, and give the engine isolation_level='AUTOCOMMIT' if you want that"
        )
