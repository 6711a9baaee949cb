"""Who holds a connection or waits for one: a token for each thread.

Thread identifiers are recycled, so they cannot tell a thread from a later one. The token of a thread is its own, and it
knows when its thread has ended, also when that thread was not started by Python.
"""

from __future__ import annotations

import threading
import weakref

local = threading.local()
"""``local.me`` is the token of this thread, once it was here. Read directly on the warm path."""


class _Life:
    """Lives in a thread's local data alone, so it dies with its thread."""

    __slots__ = ("__weakref__",)


class Borrower:
    """One thread, as the holder of connections; the pool's texts ask for these two methods."""

    __slots__ = ("_life", "_thread")

    def __init__(self, life: _Life) -> None:
        self._life = weakref.ref(life)
        self._thread = threading.current_thread()

    def get_name(self) -> str:
        """Return the thread's name."""
        return self._thread.name

    def done(self) -> bool:
        """Return whether the thread has ended."""
        return self._life() is None


def here() -> Borrower:
    """Return the token of the calling thread."""
    try:
        me: Borrower = local.me
    except AttributeError:
        local.life = life = _Life()
        local.me = me = Borrower(life)
    return me
