"""The private names of PyMongo that this package uses. Its sync and its async half, and so motor, share them.

No other module of this package uses a private name. `understood` checks them when a client is made: if a release of
the driver has moved one, sessions and clients are closed after each use.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

__all__ = [
    "abandon",
    "close_forgotten_sockets",
    "close_sockets",
    "end",
    "forget_the_past",
    "holds_a_connection",
    "interrupt",
    "interrupt_monitors",
    "is_busy",
    "is_closed",
    "is_dirty",
    "is_open",
    "open_monitors",
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
    """Whether the client has been closed: nothing public says so. Where it cannot be told, a ping will."""
    return bool(getattr(client, "_closed", False))


def is_open(client: Any) -> bool:
    """Whether the monitors run, which the first operation starts."""
    return bool(getattr(client, "_opened", True))


def open_monitors(client: Any) -> None:
    """Start the monitors of a sync client; mongodb+srv asks DNS first."""
    client._get_topology()


def is_busy(client: Any) -> bool:
    """Whether an operation is under way on any connection of the client."""
    return any(server.pool.active_contexts for server in _servers(client))


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


def interrupt(client: Any) -> None:
    """Wake up, within half a second, whoever waits for an answer on a connection of the client; it is closed then."""
    with contextlib.suppress(AttributeError):
        for server in _servers(client):
            _cancel_in(server.pool)


def interrupt_monitors(client: Any) -> None:
    """Do so with the monitors of a closed sync client: the driver lets their threads wait for a hung server."""
    with contextlib.suppress(AttributeError):
        for server in _servers(client):
            _cancel_in(server._monitor._pool)
            _cancel_in(server._monitor._rtt_monitor._pool)


def _cancel_in(pool: Any) -> None:
    for context in list(pool.active_contexts):
        context.cancel()


def abandon(client: Any) -> None:
    """Make a client ready to be closed without a word to the server."""
    with contextlib.suppress(AttributeError):
        client._closed = True
        if client._topology is not None:
            client._topology.pop_all_sessions()
        client._kill_cursors_queue.clear()
    interrupt(client)


def close_forgotten_sockets(client: Any, error: BaseException | None = None) -> None:
    """Close what PyMongo Async forgets when a connect is cancelled: the socket is left in the traceback until a GC.

    Args:
        client: a client whose monitors have ended: they are cancelled, be it in the middle of a connect.
        error: what an operation of the client has raised, to be looked through instead.
    """
    if error is not None:
        _close_sockets_in(error)
        return
    with contextlib.suppress(AttributeError):
        for server in _servers(client):
            for monitor in (server._monitor, server._monitor._rtt_monitor):
                task = monitor._executor._task
                if task is not None and task.cancelled():
                    try:
                        task.result()
                    except asyncio.CancelledError as cancelled:
                        _close_sockets_in(cancelled)


def _close_sockets_in(error: BaseException) -> None:
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "_async_create_connection":
            forgotten = trace.tb_frame.f_locals.get("sock")
            if isinstance(forgotten, socket.socket):
                forgotten.close()
        trace = trace.tb_next


def _servers(client: Any) -> list[Any]:
    return list(client._topology._servers.values()) if client._topology is not None else []  # None: SRV not resolved


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
        for server in _servers(client):
            for connection in list(server.pool.conns):
                with contextlib.suppress(OSError):
                    connection.conn.sock.shutdown(socket.SHUT_RDWR)
