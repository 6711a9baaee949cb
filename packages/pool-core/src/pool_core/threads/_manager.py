"""What an adapter for threads provides: the methods of the asynchronous one, as ordinary functions."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

from pool_core._manager import SupportsIsClean, SupportsJudge, SupportsTransient, Verdict

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
    """Opens, validates and closes connections of one kind, for threads.

    ``connect``, ``is_valid``, ``reset`` and ``close`` run in the pool's own worker threads (``reset`` may also run in the
    thread of the next waiter). ``has_broken`` and ``is_clean`` run in the borrower's thread. The pool never holds its lock
    while it calls a method, and it calls no two methods of one connection at once, except ``terminate``.
    """

    def connect(self) -> C:
        """Open one connection, ready for use. Whatever it raises is a failed attempt (see ``SupportsTransient``)."""
        ...

    def is_valid(self, conn: C, /) -> bool:
        """Check with a round trip that the server answers. Anything but True, or an exception, means invalid."""
        ...

    def has_broken(self, conn: C, /) -> bool:
        """Return at once, without I/O, whether the connection is known to be unusable. Raising means broken."""
        ...

    def close(self, conn: C, /) -> None:
        """Close properly. Bounded by ``close_timeout``; then the pool calls ``terminate``, where there is one."""
        ...


@runtime_checkable
class SupportsReset(Protocol[C_contra]):
    """A manager that resets session state before the next borrower."""

    def reset(self, conn: C_contra, /) -> None:
        """Remove what the last borrower left behind. Bounded by ``reset_timeout``; raising closes the connection."""
        ...


@runtime_checkable
class SupportsTerminate(Protocol[C_contra]):
    """A manager that can drop a connection at once."""

    def terminate(self, conn: C_contra, /) -> None:
        """Drop the socket now, so that a call that is blocked on this connection in another thread ends.

        It may run while another thread is inside a method of this connection, and that is its purpose: nothing else can
        end a blocked call. A manager without it leaves such a thread behind (``connections_abandoned``).
        """
        ...


class ConnectionCustomizer(Protocol[C_contra]):
    """Hooks in a connection's life (r2d2's ``CustomizeConnection``), as ordinary functions. Each may be left out."""

    def on_connect(self, conn: C_contra, /) -> None:
        """Prepare a new connection, within ``create_timeout``. Raising makes it a failed attempt."""
        ...

    def on_checkout(self, conn: C_contra, /) -> None:
        """Prepare a connection for one borrower, after its validation and within the timeout of ``get``.

        Raising closes the connection, and ``get`` raises the same. With this hook each get takes the slow path.
        """
        ...

    def on_reset(self, conn: C_contra, /) -> None:
        """Restore after each reset what ``on_connect`` has set, within ``reset_timeout``. Raising is a failed reset."""
        ...

    def on_close(self, conn: C_contra, /) -> None:
        """Run before the pool closes a connection, within ``close_timeout``."""
        ...
