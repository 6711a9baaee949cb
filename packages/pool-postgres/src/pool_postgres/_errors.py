"""What asyncpg's errors mean for connecting; what PostgreSQL's own mean stands in ``_postgres``."""

from __future__ import annotations

import asyncpg

from pool_postgres import _internals, _postgres

__all__ = ["heals"]


def heals(exc: BaseException) -> bool | None:
    """Return whether the same connection attempt may succeed later; None: not known here."""
    if isinstance(exc, OSError):
        return False if _internals.tls_was_refused(exc) or _internals.was_reading_settings(exc) else None
    if isinstance(exc, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return not _internals.refuses_settings(exc)
    if (answer := _postgres.heals(exc)) is not None:
        return answer
    return True if isinstance(exc, asyncpg.PostgresError) else None
