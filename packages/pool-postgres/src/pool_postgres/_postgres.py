"""What is PostgreSQL's and not the driver's: the statements of a reset, and what SQLSTATEs mean.

pool-postgres and pool-psycopg have this file with the same text, since neither may need the other's driver. A test
compares the two.
"""

from __future__ import annotations

from typing import Final

from pool_core import Verdict
from pool_core.adapters import ErrorTable

__all__ = ["LASTING_WORDS", "RESETS", "SAVEPOINT", "VERDICTS", "heals"]

# What DISCARD ALL does, but for prepared statements and plans: the driver keeps its own, and they belong to no borrower.
# One message of several statements is one round trip and one transaction. SET SESSION AUTHORIZATION comes first, since
# the borrower's role may be allowed less; the function is named in full, since search_path may still be the borrower's.
_SAFE: Final = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; UNLISTEN *; "
    "SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
)
# DISCARD ALL itself is refused in a message of several statements, so it could not follow a ROLLBACK.
RESETS: Final = {"safe": _SAFE, "strict": f"{_SAFE}; DISCARD PLANS; DEALLOCATE ALL", "none": ""}
SAVEPOINT: Final = "pool_core_check_in"
"""Where a lease begins within a test transaction."""

_CODES: Final = "https://www.postgresql.org/docs/current/errcodes-appendix.html"
# PgBouncer gives one code to nearly all it has to say; only its words tell what will not pass.
_PGBOUNCER: Final = "08P01"
LASTING_WORDS: Final = (
    "authentication failed",
    "login rejected",
    "no such database",
    "no such user",
    "SSL required",
    "unsupported startup parameter",
)


def _sqlstate(exc: BaseException) -> str | None:
    """The code of a driver's error: asyncpg and psycopg call it the same."""
    state = getattr(exc, "sqlstate", None)
    return state if isinstance(state, str) else None


_LASTING: Final = ErrorTable(
    (("0A*", "22*"), True, f"{_CODES}: not supported, a bad value"),
    (("28*", "3D*", "3F*", "42*"), True, f"{_CODES}: authorization, no such database, schema, role or setting"),
    ("57P04", True, f"{_CODES}: database_dropped"),
    # The others heal, as 53300 too_many_connections and 57P03 cannot_connect_now.
    code=_sqlstate,
)


def heals(exc: BaseException) -> bool | None:
    """Tell by its SQLSTATE whether the same attempt to connect may succeed later; None: it has none."""
    state = _sqlstate(exc)
    if state == _PGBOUNCER:
        return not any(words in str(exc) for words in LASTING_WORDS)
    return None if state is None else not _LASTING(exc)


VERDICTS: Final = ErrorTable(
    ("25006", Verdict.RETIRE_ALL, f"{_CODES}: read_only_sql_transaction: the primary has become a standby"),
    (("57P01", "57P02", "57P04", "57P05"), Verdict.CLOSE, f"{_CODES}: the server ends this session"),
    ("57P03", Verdict.CLOSE, f"{_CODES}: cannot_connect_now; a pooler passes it on from its server"),
    (
        ("25P03", "25P04"),
        Verdict.CLOSE,
        f"{_CODES}: idle_in_transaction_session_timeout, transaction_timeout: likewise",
    ),
    ("08*", Verdict.CLOSE, f"{_CODES}: connection exceptions; PgBouncer's words about its server, too"),
    (
        "26000",
        Verdict.CLOSE,
        f"{_CODES}: invalid_sql_statement_name: the driver's cache names what the server has forgotten",
    ),
    ("42P05", Verdict.CLOSE, f"{_CODES}: duplicate_prepared_statement: likewise, the other way round"),
    ("53200", Verdict.CLOSE, f"{_CODES}: out_of_memory: closing frees what this session has taken"),
    ("XX000", Verdict.CLOSE, f"{_CODES}: internal_error: the session's caches may be the cause"),
    # 28... (authorization) keep: within a session they are about a statement, or another server (dblink).
    code=_sqlstate,
)
"""What an error within a block means for connections."""
