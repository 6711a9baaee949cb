"""What this adapter needs of Neo4j's driver beyond its public interface. All of it stands here.

Where a release has moved something, a session is reset by closing it, which is public, and a driver is closed instead of
dropped: slower, and still right.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neo4j import AsyncDriver, AsyncSession

__all__ = ["cancel", "close_forgotten_sockets", "discard", "drop", "has_connection", "is_closed", "renew"]


def has_connection(session: AsyncSession) -> bool:
    """Whether the session holds a connection: an open transaction, or a result that was not read to its end."""
    return getattr(session, "_connection", True) is not None


def renew(session: AsyncSession, fresh: AsyncSession) -> None:
    """Give a session that holds no connection the state of a new one: bookmarks, database, not closed."""
    vars(session).clear()
    vars(session).update(vars(fresh))
    discard(fresh)


def is_closed(driver: AsyncDriver) -> bool:
    """Whether the driver was closed."""
    return bool(getattr(driver, "_closed", False))


def discard(thing: AsyncSession | AsyncDriver) -> None:
    """Keep a session or driver that was never used from warning that nobody has closed it."""
    vars(thing)["_closed"] = True


def cancel(session: AsyncSession) -> None:
    """Drop the connection of a session, without a word to the server. Does not wait."""
    connection: Any = getattr(session, "_connection", None)
    with suppress(AttributeError):
        connection.kill()
    # The driver's lock belongs to a task: within a callback of the loop, where there is none, it cannot be taken.
    with suppress(RuntimeError):
        session.cancel()
    discard(session)


def drop(driver: AsyncDriver) -> None:
    """Drop all sockets of a driver without a word to the servers. Does not wait."""
    with suppress(AttributeError):
        pool: Any = driver._pool
        for connections in list(pool.connections.values()):
            for connection in list(connections):
                connection.kill()
    discard(driver)


def close_forgotten_sockets(error: BaseException) -> None:
    """Close what the driver forgets when connecting is cancelled: the socket is left in the traceback until a GC."""
    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_connect_secure":
            forgotten = frame.f_locals.get("s")
            if isinstance(forgotten, socket.socket):
                forgotten.close()
