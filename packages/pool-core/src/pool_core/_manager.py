"""What a driver's adapter teaches the pool: four verbs, and three more that it may add."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Awaitable

__all__ = ["ConnectionCustomizer", "ConnectionManager", "SupportsReset", "SupportsTerminate", "SupportsTransient"]

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
    """A manager that wipes session state before the next borrower."""

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


class ConnectionCustomizer(Protocol[C_contra]):
    """Hooks at both ends of a connection's life (r2d2's ``CustomizeConnection``). Either method may be left out."""

    async def on_connect(self, conn: C_contra, /) -> None:
        """Prepare a new connection, within ``create_timeout``. Raising makes it a failed connect."""
        ...

    async def on_close(self, conn: C_contra, /) -> None:
        """Run before the pool closes a connection, within ``close_timeout``."""
        ...
