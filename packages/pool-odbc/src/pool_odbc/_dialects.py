"""What differs between database systems: chosen by what the driver says it is connected to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyodbc
from pool_core import Verdict
from pool_core import adapters as base

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "DEFAULT",
    "MYSQL",
    "POSTGRES",
    "SQLITE",
    "SQL_SERVER",
    "Dialect",
    "changes_session",
    "dialect_of",
    "native_of",
    "passes",
    "state_of",
]

# --- statements -------------------------------------------------------------------------------------------------------

_QUOTED: Final = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/", re.DOTALL)
# What begins with one of these words changes data or reads it, and nothing of the session but the transaction.
_PLAIN: Final = re.compile(
    r"(?:(?:SELECT|INSERT|UPDATE|DELETE|MERGE|REPLACE|WITH|VALUES|EXPLAIN|DESCRIBE|SHOW|TABLE|ANALYZE|OPTIMIZE"
    r"|COMMIT|ROLLBACK|SAVEPOINT|RELEASE\s+SAVEPOINT|BEGIN|START\s+TRANSACTION|END"
    r"|TRUNCATE|CREATE|ALTER|DROP|GRANT|REVOKE|COMMENT)\b|PRAGMA\s+[\w.]+\s*\Z)",
    re.IGNORECASE,
)
# Also in a statement that begins so: a variable that is set, temporary things, locks.
_SESSION: Final = re.compile(
    r":=|\bINTO\s+@|#|\b(?:TEMP(?!\s*\.)|TEMPORARY|GET_LOCK|SESSION|VOLATILE)\b", re.IGNORECASE
)


_BEGINS: Final = re.compile(r"(?:BEGIN|START|SAVEPOINT)\b", re.IGNORECASE)


def changes_session(sql: str, *, can_roll_back: bool = True) -> bool:
    """Whether this may leave something behind that a rollback does not undo. In doubt it does.

    Args:
        sql: one or more statements.
        can_roll_back: whether a transaction that is begun by a statement can be ended.
    """
    bare = _QUOTED.sub(" ", sql)
    statements = [statement.lstrip(" \t\r\n(") for statement in bare.split(";") if statement.strip()]
    return (
        bool(_SESSION.search(bare))
        or not all(map(_PLAIN.match, statements))
        or (not can_roll_back and any(map(_BEGINS.match, statements)))
    )


# --- errors -----------------------------------------------------------------------------------------------------------

_NATIVE: Final = re.compile(r"\((-?\d+)\)(?: \(SQL\w+\))?(?:;|$)")


def native_of(exc: BaseException) -> int | None:
    """The database system's own number of an error: ODBC drivers have it at the end of the text."""
    if not isinstance(exc, pyodbc.Error) or len(exc.args) < 2:
        return None
    found = _NATIVE.search(str(exc.args[1]))
    return int(found[1]) if found else None


def state_of(exc: BaseException) -> str | None:
    """The SQLSTATE of an error."""
    return str(exc.args[0]) if isinstance(exc, pyodbc.Error) and exc.args else None


_SQLSTATE: Final = "https://learn.microsoft.com/sql/odbc/reference/appendixes/appendix-a-odbc-error-codes"
_PG: Final = "https://www.postgresql.org/docs/current/errcodes-appendix.html"
_MYSQL: Final = "https://dev.mysql.com/doc/mysql-errors/9.0/en/"
_AZURE: Final = "https://learn.microsoft.com/azure/azure-sql/database/troubleshoot-common-errors-issues"
_MSSQL: Final = "https://learn.microsoft.com/sql/relational-databases/errors-events/database-engine-events-and-errors"
_CLIENT: Final = (
    "https://learn.microsoft.com/dotnet/api/"
    "microsoft.data.sqlclient.sqlconfigurableretryfactory.baselinetransienterrors"
)

_STATE_VERDICTS: Final = base.ErrorTable(
    ("08*", Verdict.CLOSE, f"connection exceptions; {_SQLSTATE}"),
    (("57P01", "57P02", "57P03", "57P04", "57P05"), Verdict.CLOSE, f"ended by the server; {_PG}"),
    ("25P03", Verdict.CLOSE, f"idle in a transaction for too long: the session is over; {_PG}"),
    ("25006", Verdict.RETIRE_ALL, f"the server takes no writes: a standby; {_PG}"),
    code=state_of,
)
_STATE_IS_PASSING: Final = base.ErrorTable(
    (("28*", "3D*", "3F*", "42*", "0A*"), False, f"login, database, schema, rights, not supported; {_PG}"),
    (("IM*", "HYC00"), False, f"no such data source or driver; an attribute that the driver lacks; {_SQLSTATE}"),
    code=state_of,
)
# Where drivers give a general SQLSTATE (HY000, 08001) only the text tells.
_LOST_WORDS: Final = ("server closed the connection", "gone away", "lost connection", "no connection to the server")
_LASTING_WORDS: Final = (
    "password authentication failed",
    "no pg_hba.conf entry",
    "does not exist",
    "access denied",
    "unknown database",
    "does not support ssl",
    "ssl is required",
    "certificate verify failed",
    "can't open lib",
    "login failed",
    "[sqlite]connect failed (14)",  # the file cannot be opened
    "name or service not known",
    "nodename nor servname provided",
    "(-2) (2005)",  # unknown server host: EAI_NONAME, while EAI_AGAIN passes
)


@dataclass(frozen=True)
class Dialect:
    """One database system.

    Attributes:
        name: for texts.
        probe: the shortest query.
        rollback: ends a transaction that was begun by a statement while autocommit is on.
        attributes: connection attributes that are set before `restore`.
        restore: a statement that restores the session. None: nothing does, so statements are watched.
        remember: a query when the connection is opened, whose rows (name, value) `again` takes.
        again: a statement for each row of `remember`, after `restore`.
        verdicts: what native error numbers mean for connections.
        is_passing: by native error number, whether a failed connection attempt may succeed later.
        network: whether there is a server.
    """

    name: str
    probe: str = "SELECT 1"
    rollback: str | None = None
    attributes: Sequence[tuple[int, int]] = ()
    restore: str | None = None
    remember: str | None = None
    again: str = ""
    verdicts: base.ErrorTable[Verdict] = field(default_factory=base.ErrorTable[Verdict])
    is_passing: base.ErrorTable[bool] = field(default_factory=base.ErrorTable[bool])
    network: bool = True

    def restoring(self, remembered: Iterable[Iterable[Any]]) -> str | None:
        """The statements that restore a session."""
        if self.restore is None:
            return None
        quoted = ([str(part).replace("'", "''") for part in row] for row in remembered)
        return "; ".join([self.restore, *(self.again.format(*row) for row in quoted)])

    def verdict(self, exc: BaseException) -> Verdict | None:
        """What an error means for connections; None: nothing."""
        verdict = self.verdicts(exc) or _STATE_VERDICTS(exc)
        if verdict is None and state_of(exc) == "HY000" and any(words in str(exc).lower() for words in _LOST_WORDS):
            return Verdict.CLOSE
        return verdict


POSTGRES: Final = Dialect(
    "PostgreSQL",
    rollback="ROLLBACK",
    # As pool-postgres. The driver's own prepared statements stay: they belong to no borrower.
    restore=(
        "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; UNLISTEN *; "
        "SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
    ),
    # RESET ALL also undoes what the driver has set for itself (DateStyle, client_encoding), and ConnSettings.
    remember="SELECT name, setting FROM pg_catalog.pg_settings WHERE source = 'session' AND context <> 'internal'",
    again="SELECT pg_catalog.set_config('{0}', '{1}', false)",
)

MYSQL: Final = Dialect(
    "MySQL",
    rollback="ROLLBACK",
    verdicts=base.ErrorTable(
        (
            (2006, 2013, 2055, 1053, 1927, 3169, 4031),
            Verdict.CLOSE,
            f"gone away, lost, killed, idle too long; {_MYSQL}",
        ),
        ((1290, 1792, 1836), Verdict.RETIRE_ALL, f"the server takes no writes: a replica; {_MYSQL}"),
        code=native_of,
    ),
    is_passing=base.ErrorTable(
        ((1040, 1203, 1226), True, f"too many connections, of all or of one user; {_MYSQL}"),
        ((1044, 1045, 1049, 1698, 1862), False, f"access denied, unknown database, password expired; {_MYSQL}"),
        ((2026, 2059, 2061, 3118, 3159), False, f"TLS, plugin, locked account; {_MYSQL}"),
        code=native_of,
    ),
)

SQLITE: Final = Dialect("SQLite", rollback="ROLLBACK", network=False)

_SQL_COPT_SS_RESET_CONNECTION: Final = 1246  # msodbcsql.h: "perform connection reset on next packet"

SQL_SERVER: Final = Dialect(
    "SQL Server",
    rollback="IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION",
    # sp_reset_connection, sent with the next statement. It leaves the isolation level as it is: so that is the statement.
    # https://learn.microsoft.com/sql/odbc/reference/develop-driver/upgrading-a-3-5-driver-to-a-3-8-driver
    attributes=((_SQL_COPT_SS_RESET_CONNECTION, 1),),
    restore="SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
    verdicts=base.ErrorTable(
        ((64, 233, 10053, 10054, 10060), Verdict.CLOSE, f"the connection is gone; {_CLIENT}"),
        ((596, 6005, 17142), Verdict.CLOSE, f"killed, shutting down, paused; {_MSSQL}"),
        ((40197, 40613), Verdict.CLOSE, f"reconfiguration in Azure: connect again; {_AZURE}"),
        ((3906, 978, 976, 983), Verdict.RETIRE_ALL, f"a read-only database, a secondary replica; {_MSSQL}"),
        code=native_of,
    ),
    is_passing=base.ErrorTable(
        (
            (926, 4221, 10928, 10929, 40197, 40501, 40549, 40613, 42108, 42109, 49918, 49919, 49920),
            True,
            f"transient; {_AZURE} and {_CLIENT}",
        ),
        # Microsoft lists 4060 as transient, for the last moments of a failover; nearly always it is a misspelt name.
        ((4060, 18452, 18456, 18470, 18486, 18487, 18488, 40532, 40615), False, f"database, login, firewall; {_MSSQL}"),
        code=native_of,
    ),
)

DEFAULT: Final = Dialect("another database system")


def dialect_of(system: str) -> Dialect:
    """The dialect of what the driver says for SQL_DBMS_NAME."""
    name = system.lower()
    words = {"sql server": SQL_SERVER, "postgresql": POSTGRES, "mysql": MYSQL, "mariadb": MYSQL, "sqlite": SQLITE}
    return next((dialect for word, dialect in words.items() if word in name), DEFAULT)


def passes(exc: BaseException) -> bool | None:
    """Whether a failed connection attempt may succeed later; None: not known.

    Without a connection the dialect is not known, but the native numbers of different systems do not collide.
    """
    for dialect in (MYSQL, SQL_SERVER):
        if (answer := dialect.is_passing(exc)) is not None:
            return answer
    if any(words in str(exc).lower() for words in _LASTING_WORDS):
        return False
    return _STATE_IS_PASSING(exc)
