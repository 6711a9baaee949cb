"""The managers for motor, which runs PyMongo's sync client in threads. ``pip install "pool-mongo[motor]"``.

Motor's life ended on 2026-05-14 (critical fixes until 2027-05-14). New programs take ``pool_mongo``'s own managers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorClientSession

from . import _internals
from ._manager import ClientManager, SessionManager

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from ._driver import Driver

__all__ = ["MotorClientManager", "MotorSessionManager"]


class MotorDriver:
    """Motor. A cancelled operation goes on in its thread: no other borrower may get what it works on."""

    def make(self, *arguments: Any, **options: Any) -> AsyncIOMotorClient[dict[str, Any]]:
        """Make a client, without I/O; motor itself says ``connect=False``."""
        return AsyncIOMotorClient(*arguments, **options)

    def core(self, thing: Any) -> Any:
        """PyMongo's sync client or session."""
        return thing.delegate

    async def open(self, client: AsyncIOMotorClient[dict[str, Any]]) -> None:
        """Start the monitors, in a thread. A cancelled one goes on: what it has started is ended again after it."""
        if _internals.is_open(client.delegate):
            return
        opening = asyncio.ensure_future(asyncio.to_thread(_internals.open_monitors, client.delegate))
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            # If the cancelled one was not the last that uses this client, it stays open for the others.
            def end_again(_: object) -> None:
                if _internals.is_closed(client.delegate):
                    self.drop(client)

            opening.add_done_callback(end_again)
            raise

    async def start_session(
        self, client: AsyncIOMotorClient[dict[str, Any]], options: Mapping[str, Any]
    ) -> AsyncIOMotorClientSession:
        """Start a session."""
        return await client.start_session(**options)

    async def begin(self, session: AsyncIOMotorClientSession) -> None:
        """Begin a transaction."""
        session.start_transaction()

    def is_dirty(self, session: AsyncIOMotorClientSession) -> bool:
        """Never: `wipe` gives it a new session of the driver's."""
        return False

    def wipe(self, session: AsyncIOMotorClientSession, options: Mapping[str, Any]) -> Awaitable[None] | None:
        """End PyMongo's session inside motor's, and put a new one there.

        A thread left behind by a cancelled operation finds its session ended, instead of writing into the next
        borrower's transaction or taking the number of its next write. A new session is no I/O.
        """
        inner = session.delegate
        if inner.in_transaction or _internals.holds_a_connection(inner):
            return self._abort(session, options)
        inner.end_session()  # nothing to tell the server: it only goes back to the client's own store
        self._renew(session, options)
        return None

    async def _abort(self, session: AsyncIOMotorClientSession, options: Mapping[str, Any]) -> None:
        await session.end_session()
        self._renew(session, options)

    def _renew(self, session: AsyncIOMotorClientSession, options: Mapping[str, Any]) -> None:
        session.delegate = session.client.delegate.start_session(**options)

    async def close(self, client: AsyncIOMotorClient[dict[str, Any]]) -> None:
        """Close in a thread: motor's own close() talks to the server on the event loop's thread."""
        _internals.interrupt(client.delegate)  # what a cancelled operation has left running
        await asyncio.to_thread(client.close)
        _internals.interrupt_monitors(client.delegate)

    def drop(self, client: AsyncIOMotorClient[dict[str, Any]]) -> None:
        """Close here and now: with nothing to say to the server it does not wait."""
        _internals.abandon(client.delegate)
        client.close()
        _internals.interrupt(client.delegate)  # an operation that got its connection between the two
        _internals.interrupt_monitors(client.delegate)

    def tidy(self, client: AsyncIOMotorClient[dict[str, Any]], error: BaseException) -> None:
        """Nothing to do: the thread goes on and cleans up itself."""


class MotorSessionManager(SessionManager[AsyncIOMotorClient[dict[str, Any]], AsyncIOMotorClientSession]):
    """`pool_mongo.MongoSessionManager` for motor: a lease is an ``AsyncIOMotorClientSession``."""

    _driver: ClassVar[Driver[Any, Any]] = MotorDriver()


class MotorClientManager(ClientManager[AsyncIOMotorClient[dict[str, Any]], AsyncIOMotorClientSession]):
    """`pool_mongo.MongoClientManager` for motor: a lease is an ``AsyncIOMotorClient``."""

    _driver: ClassVar[Driver[Any, Any]] = MotorDriver()
