"""PyMongo Async as the managers use it; `pool_mongo.motor` has the same for motor. All differences stand in these two."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pymongo import AsyncMongoClient

from . import _internals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from pymongo.asynchronous.client_session import AsyncClientSession

__all__ = ["Driver", "PyMongoDriver"]

Client = TypeVar("Client")
Session = TypeVar("Session")


class Driver(Protocol[Client, Session]):
    """The few things that motor and PyMongo Async do differently."""

    def make(self, *arguments: Any, **options: Any) -> Client:
        """Make a client, without I/O."""
        ...

    def core(self, thing: Client | Session) -> Any:
        """PyMongo's own object in a client or session."""
        ...

    async def open(self, client: Client) -> None:
        """Prepare for the first operation, without I/O but for the DNS of mongodb+srv."""
        ...

    async def start_session(self, client: Client, options: Mapping[str, Any]) -> Session:
        """Start a session; that is no I/O."""
        ...

    async def begin(self, session: Session) -> None:
        """Begin a transaction, without I/O."""
        ...

    def is_dirty(self, session: Session) -> bool:
        """Whether a new session is needed, since `wipe` cannot reset this one."""
        ...

    def wipe(self, session: Session, options: Mapping[str, Any]) -> Awaitable[None] | None:
        """Reset a session to the state that `start_session` gives; None: it is done."""
        ...

    async def close(self, client: Client) -> None:
        """End the server sessions and close."""
        ...

    def drop(self, client: Client) -> None:
        """Close at once, and send nothing to the server."""
        ...

    def tidy(self, client: Client, error: BaseException) -> None:
        """Close what an interrupted operation has left open."""
        ...


class PyMongoDriver:
    """PyMongo's AsyncMongoClient."""

    def __init__(self) -> None:
        self._closing: set[asyncio.Task[None]] = set()

    def make(self, *arguments: Any, **options: Any) -> AsyncMongoClient[dict[str, Any]]:
        """Make a client, without I/O."""
        return AsyncMongoClient(*arguments, **options)

    def core(self, thing: object) -> Any:
        """PyMongo's own object."""
        return thing

    async def open(self, client: AsyncMongoClient[dict[str, Any]]) -> None:
        """Nothing to do: the first operation starts the monitors."""

    async def start_session(
        self, client: AsyncMongoClient[dict[str, Any]], options: Mapping[str, Any]
    ) -> AsyncClientSession:
        """Start a session."""
        return client.start_session(**options)

    async def begin(self, session: AsyncClientSession) -> None:
        """Begin a transaction."""
        await session.start_transaction()

    def is_dirty(self, session: AsyncClientSession) -> bool:
        """Whether a network error hit it."""
        return _internals.is_dirty(session)

    def wipe(self, session: AsyncClientSession, options: Mapping[str, Any]) -> Awaitable[None] | None:
        """Abort what is open. A cancelled coroutine has stopped, so nobody else is using the session."""
        if session.in_transaction or _internals.holds_a_connection(session):
            return self._abort(session)
        _internals.forget_the_past(session)
        return None

    async def _abort(self, session: AsyncClientSession) -> None:
        if session.in_transaction:
            await session.abort_transaction()  # swallows network errors, and marks the session then
        await _internals.unpin(session)
        if _internals.is_dirty(session):
            raise ConnectionError("the open transaction could not be aborted, so the session is not used again")
        _internals.forget_the_past(session)

    async def close(self, client: AsyncMongoClient[dict[str, Any]]) -> None:
        """End the server sessions and close."""
        _internals.interrupt(client)  # what the last borrower has left running
        await client.close()
        _internals.close_forgotten_sockets(client)

    def drop(self, client: AsyncMongoClient[dict[str, Any]]) -> None:
        """Close in a task: with nothing to say to the server that takes a few turns of the loop, hung server or not."""
        _internals.abandon(client)
        loop = _internals.running_loop_of(client)
        if loop is None:
            _internals.close_sockets(client)
            return
        task = loop.create_task(self.close(client), name="pool-mongo drop")
        self._closing.add(task)
        task.add_done_callback(self._closed)

    def tidy(self, client: AsyncMongoClient[dict[str, Any]], error: BaseException) -> None:
        """Close a socket that was being connected."""
        _internals.close_forgotten_sockets(client, error)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled():
            task.exception()  # nobody is left to be told
