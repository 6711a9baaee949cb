"""The protocol between the pool and an adapter: four methods, and optional ones."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Awaitable

__all__ = [
    "ConnectionCustomizer",
    "ConnectionManager",
    "SupportsIsClean",
    "SupportsJudge",
    "SupportsReset",
    "SupportsTerminate",
    "SupportsTransient",
    "Verdict",
]

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)


class ConnectionManager(Protocol[C]):
    """Opens, validates and closes connections of one kind.

    The pool limits the time of every call, so no method needs a timeout. A method may be cancelled at any await.
    ``connect`` must then leave nothing open; after a cancelled ``is_valid`` or ``reset`` the pool closes the connection.
    The names are those of bb8's ``ManageConnection``.
    """

    async def connect(self) -> C:
        """Open one connection, ready for use. If it raises, the attempt has failed (see ``SupportsTransient``)."""
        ...

    async def is_valid(self, conn: C, /) -> bool:
        """Check with a round trip that the server answers. Anything but True, or an exception, means invalid."""
        ...

    def has_broken(self, conn: C, /) -> bool:
        """Return at once, without I/O, whether the connection is known to be unusable. Raising means broken."""
        ...

    async def close(self, conn: C, /) -> None:
        """Close the connection properly, within ``close_timeout``; afterwards the pool calls ``terminate``, if there is one."""
        ...


@runtime_checkable
class SupportsReset(Protocol[C_contra]):
    """A manager that resets session state before the next borrower.

    If the reset keeps what a customizer's ``on_connect`` has set, set the class attribute
    ``reset_keeps_on_connect = True``; otherwise the pool warns of a customizer that has no ``on_reset``.
    """

    def reset(self, conn: C_contra, /) -> Awaitable[None] | None:
        """Remove what the last borrower left in the session. None: there is nothing to reset, or it is done already.

        An awaitable runs in a task of the pool, within ``reset_timeout``; the borrower does not wait for it. If it raises,
        the connection is closed. An ordinary ``async def reset`` fits.
        """
        ...


@runtime_checkable
class SupportsTerminate(Protocol[C_contra]):
    """A manager that can drop a connection at once."""

    def terminate(self, conn: C_contra, /) -> None:
        """Drop the socket now: synchronous, without the protocol's farewell and without waiting."""
        ...


@runtime_checkable
class SupportsTransient(Protocol):
    """A manager that tells transient connect errors from permanent ones."""

    def is_transient(self, exc: Exception, /) -> bool:
        """Return whether the same attempt may succeed later. A wrong password or an unknown database is not transient."""
        ...


class Verdict(Enum):
    """What an error that left a borrower's block means for connections."""

    KEEP = "keep"
    """Nothing more: the connection is validated before its next use, as after every error."""
    CLOSE = "close"
    """This connection must not be used again."""
    RETIRE_ALL = "retire_all"
    """No connection that is open now may be used again, as after ``evict()``: the server is read-only (a failover)."""


@runtime_checkable
class SupportsJudge(Protocol[C_contra]):
    """A manager that knows what an error means for connections.

    HikariCP's ``SQLExceptionOverride`` and SQLAlchemy's ``is_disconnect`` do the same.
    """

    def judge(self, exc: Exception, conn: C_contra, /) -> Verdict:
        """Judge an exception that left a block, was handled during ``release()``, or was given to ``discard()``.

        Synchronous, without I/O. It is not called for CancelledError and other BaseExceptions. If it raises, a hook error is
        counted and the connection is kept.
        """
        ...


@runtime_checkable
class SupportsIsClean(Protocol[C_contra]):
    """A manager that knows without I/O that a connection needs no reset."""

    def is_clean(self, conn: C_contra, /) -> bool:
        """Return True if the borrower left nothing to reset. Anything else, or an exception, means reset it."""
        ...


class ConnectionCustomizer(Protocol[C_contra]):
    """Hooks in a connection's life (r2d2's ``CustomizeConnection``). Each method is optional."""

    async def on_connect(self, conn: C_contra, /) -> None:
        """Prepare a new connection, within ``create_timeout``. If it raises, the connection attempt has failed."""
        ...

    async def on_checkout(self, conn: C_contra, /) -> None:
        """Prepare a connection for one borrower, after its validation and within the time of ``get`` (asyncpg's ``setup``).

        If it raises, the connection is closed and ``get`` raises the same exception. This hook disables the warm path.
        """
        ...

    async def on_reset(self, conn: C_contra, /) -> None:
        """Restore after each reset what ``on_connect`` has set, within ``reset_timeout``. If it raises, the reset has failed."""
        ...

    async def on_close(self, conn: C_contra, /) -> None:
        """Run before the pool closes a connection, within ``close_timeout``."""
        ...
