"""What PyMongo does not tell in public. Its sync and its async half, and so motor too, share these names.

Nothing else in this package touches a private name. `understood` probes them when a client is made: where a release of
the driver has moved one, sessions and clients are closed after each use instead of being lent on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

__all__ = [
    "abandon",
    "close_sockets",
    "end",
    "forget_the_past",
    "holds_a_connection",
    "is_busy",
    "is_closed",
    "is_dirty",
    "running_loop_of",
    "transaction_of",
    "understood",
    "unpin",
]


def understood(client: Any, session: Any | None = None) -> bool:
    """Whether every private name that is used here is where it is looked for, once a client has been used."""
    try:
        _ = client._closed
        is_busy(client)
        _ = client._topology.pop_all_sessions, client._kill_cursors_queue.clear
        if session is not None:
            is_dirty(session)
            holds_a_connection(session)
            transaction_of(session)
            _ = session._cluster_time, session._operation_time, session._snapshot_time, session._unpin
    except AttributeError:
        return False
    return True


def is_closed(client: Any) -> bool:
    """Whether the client has been closed: nothing public says so. Where it can not be told, a ping will."""
    return bool(getattr(client, "_closed", False))


def is_busy(client: Any) -> bool:
    """Whether an operation is under way on any connection of the client."""
    return any(server.pool.active_contexts for server in list(client._topology._servers.values()))


def is_dirty(session: Any) -> bool:
    """Whether a network error hit the session. The drivers' specification says to throw its server session away."""
    return session._server_session is None or bool(session._server_session.dirty)


def holds_a_connection(session: Any) -> bool:
    """Whether a transaction, even an ended one, keeps a connection to itself, as it does behind a load balancer."""
    return session._transaction.conn_mgr is not None


def transaction_of(session: Any) -> object:
    """Something that is another object for each transaction begun on the session."""
    return session._transaction.opts


async def unpin(session: Any) -> None:
    """Give back the connection that an ended transaction keeps."""
    await session._unpin()


def forget_the_past(session: Any) -> None:
    """Drop the clocks, and the point in time of a snapshot: else the next borrower reads the last one's old data."""
    session._cluster_time = session._operation_time = session._snapshot_time = None


def end(session: Any) -> None:
    """End a session without I/O. Its server session is not used again, since an operation may be under way on it."""
    with contextlib.suppress(AttributeError):
        session._server_session = None


def abandon(client: Any) -> None:
    """Make a client ready to be closed without a word to the server, and wake up who waits for an answer on it."""
    with contextlib.suppress(AttributeError):
        client._closed = True
        if client._topology is None:  # mongodb+srv, not resolved yet
            return
        client._topology.pop_all_sessions()
        client._kill_cursors_queue.clear()
        for server in list(client._topology._servers.values()):
            for context in list(server.pool.active_contexts):
                context.cancel()


def running_loop_of(client: Any) -> asyncio.AbstractEventLoop | None:
    """The running event loop, if the client can be closed in it: it belongs to the loop of its first operation."""
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return running if getattr(client, "_loop", None) in (None, running) else None


def close_sockets(client: Any) -> None:
    """Hang up where the client's event loop does not run any more, so that nothing asynchronous can be done."""
    with contextlib.suppress(AttributeError):
        for server in list(client._topology._servers.values() if client._topology else ()):
            for connection in list(server.pool.conns):
                with contextlib.suppress(OSError):
                    connection.conn.sock.shutdown(socket.SHUT_RDWR)
