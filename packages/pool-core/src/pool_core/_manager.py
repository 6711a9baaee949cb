"""What a driver's adapter teaches the pool: four methods, and others that it may add."""

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
    """Opens, tests and closes connections of one kind. The pool bounds every call from outside: no verb needs a timeout.

    A verb may be cancelled at any await. ``connect`` must then leave nothing open behind it; after a cancelled
    ``is_valid`` or ``reset`` the pool closes the connection. The names are those of bb8's ``ManageConnection``.
    """

    async def connect(self) -> C:
        """Open one connection, ready for use. Whatever it raises is a failed connect (see ``SupportsTransient``)."""
        ...

    async def is_valid(self, conn: C, /) -> bool:
        """Prove with a round trip that the server answers. Anything but True, or an exception, means invalid."""
        ...

    def has_broken(self, conn: C, /) -> bool:
        """Tell at once, without I/O or waiting, whether the connection is known to be unusable. Raising means broken."""
        ...

    async def close(self, conn: C, /) -> None:
        """Say goodbye properly. Bounded by ``close_timeout``; then the pool calls ``terminate``, where there is one."""
        ...


@runtime_checkable
class SupportsReset(Protocol[C_contra]):
    """A manager that resets session state before the next borrower.

    A manager whose reset restores what a customizer's ``on_connect`` has set says so by a class attribute
    ``reset_keeps_on_connect = True``; otherwise the pool warns of such a customizer without ``on_reset``.
    """

    def reset(self, conn: C_contra, /) -> Awaitable[None] | None:
        """Wipe what the last borrower left behind. None: there is nothing to wipe, the connection goes straight back.

        An awaitable runs in a task of the pool's own, after the borrower has gone on, bounded by ``reset_timeout``.
        Whatever it raises closes the connection. An ordinary ``async def reset`` fits.
        """
        ...


@runtime_checkable
class SupportsTerminate(Protocol[C_contra]):
    """A manager that can drop a connection at once."""

    def terminate(self, conn: C_contra, /) -> None:
        """Drop the socket now: synchronous, no goodbye, no waiting."""
        ...


@runtime_checkable
class SupportsTransient(Protocol):
    """A manager that tells connect errors worth a retry from those that will not heal by themselves."""

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell whether the same connect may succeed later. A wrong password or an unknown database is not transient."""
        ...


class Verdict(Enum):
    """What an error that left a borrower's block means for connections."""

    KEEP = "keep"
    """Nothing: the connection is validated before its next use, as after every error."""
    CLOSE = "close"
    """This connection must not be used again."""
    RETIRE_ALL = "retire_all"
    """No present connection may be used again, as after ``evict()``: the server has become read-only (a failover)."""


@runtime_checkable
class SupportsJudge(Protocol[C_contra]):
    """A manager that knows what an error means for connections.

    HikariCP's ``SQLExceptionOverride`` and SQLAlchemy's ``is_disconnect`` do the same.
    """

    def judge(self, exc: Exception, conn: C_contra, /) -> Verdict:
        """Judge an exception that left a block, was handled during ``release()``, or was given to ``discard()``.

        Synchronous, without I/O. It is not asked about CancelledError and other BaseExceptions. What it raises is
        counted as a hook error, and the connection is kept.
        """
        ...


@runtime_checkable
class SupportsIsClean(Protocol[C_contra]):
    """A manager that can tell without I/O that a connection needs no reset."""

    def is_clean(self, conn: C_contra, /) -> bool:
        """Return True if the borrower left nothing to reset. Anything else, or an exception, means reset it."""
        ...


class ConnectionCustomizer(Protocol[C_contra]):
    """Hooks in a connection's life (r2d2's ``CustomizeConnection``). Each method may be left out."""

    async def on_connect(self, conn: C_contra, /) -> None:
        """Prepare a new connection, within ``create_timeout``. Raising makes it a failed connect."""
        ...

    async def on_checkout(self, conn: C_contra, /) -> None:
        """Prepare a connection for one borrower, after its validation and within the time of ``get`` (asyncpg's ``setup``).

        Raising closes the connection, and the borrower's ``get`` raises the same. With this hook each get takes the
        slow path.
        """
        ...

    async def on_reset(self, conn: C_contra, /) -> None:
        """Restore after each reset what ``on_connect`` has set, within ``reset_timeout``. Raising is a failed reset."""
        ...

    async def on_close(self, conn: C_contra, /) -> None:
        """Run before the pool closes a connection, within ``close_timeout``."""
        ...
