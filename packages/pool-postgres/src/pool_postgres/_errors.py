"""What PostgreSQL's and asyncpg's errors mean for connecting, and for connections."""

from __future__ import annotations

from typing import Final

import asyncpg
from pool_core import Verdict
from pool_core.adapters import ErrorTable

from pool_postgres import _internals

__all__ = ["VERDICTS", "heals"]

_CODES: Final = "https://www.postgresql.org/docs/current/errcodes-appendix.html"
# PgBouncer gives one code to nearly all it has to say; only its words tell what will not pass.
_PGBOUNCER: Final = "08P01"
_LASTING_WORDS: Final = (
    "authentication failed",
    "login rejected",
    "no such database",
    "no such user",
    "SSL required",
    "unsupported startup parameter",
)


def _sqlstate(exc: BaseException) -> str | None:
    return exc.sqlstate if isinstance(exc, asyncpg.PostgresError) else None


_HEALS: Final = ErrorTable(
    (("0A*", "22*"), False, f"{_CODES}: not supported, a bad value"),
    (("28*", "3D*", "3F*", "42*"), False, f"{_CODES}: authorization, no such database, schema, role or setting"),
    ("57P04", False, f"{_CODES}: database_dropped"),
    (asyncpg.PostgresError, True, f"{_CODES}: the others, as 53300 too_many_connections, 57P03 cannot_connect_now"),
    code=_sqlstate,
)


def heals(exc: BaseException) -> bool | None:
    """Tell whether the same connect may succeed later; None: not known here."""
    if _sqlstate(exc) == _PGBOUNCER:
        return not any(words in str(exc) for words in _LASTING_WORDS)
    if isinstance(exc, OSError):
        return False if _internals.tls_was_refused(exc) or _internals.was_reading_settings(exc) else None
    if isinstance(exc, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return not _internals.refuses_settings(exc)
    return _HEALS(exc)


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
        f"{_CODES}: invalid_sql_statement_name: asyncpg's cache names what the server has forgotten",
    ),
    ("42P05", Verdict.CLOSE, f"{_CODES}: duplicate_prepared_statement: likewise, the other way round"),
    ("53200", Verdict.CLOSE, f"{_CODES}: out_of_memory: closing frees what this session has taken"),
    ("XX000", Verdict.CLOSE, f"{_CODES}: internal_error: the session's caches may be the cause"),
    # 28... (authorization) keep: within a session they are about a statement, or another server (dblink).
    code=_sqlstate,
)
"""What an error within a block means for connections."""
