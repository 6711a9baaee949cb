"""Managers for the pool for threads, and what every test of it checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from pool_core.threads import Pool


class Conn:
    """A connection to nothing."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = "open"
        self.broken = False
        self.dead = False
        self.dirty = False
        self.users = 0

    def __enter__(self) -> Self:
        """Use it: a second user at the same time is a fault of the pool."""
        assert self.users == 0, f"{self} has two users"
        assert self.state == "open", f"{self} is {self.state}"
        self.users = 1
        return self

    def __exit__(self, *_: object) -> None:
        self.users = 0

    def __repr__(self) -> str:
        return f"<Conn {self.number} {self.state}>"


class Manager:
    """The four methods. ``script[method]`` is called before each call of that method, with its arguments."""

    def __init__(self, **script: Callable[..., object]) -> None:
        self.made: list[Conn] = []
        self.script = script
        self.calls: list[tuple[Any, ...]] = []

    def _play(self, method: str, *args: Any) -> Any:
        self.calls.append((method, *(conn.number for conn in args)))
        play = self.script.get(method)
        return play(*args) if play is not None else None

    def connect(self) -> Conn:
        self._play("connect")
        conn = Conn(len(self.made) + 1)
        self.made.append(conn)
        return conn

    def is_valid(self, conn: Conn, /) -> bool:
        self._play("is_valid", conn)
        return not (conn.dead or conn.broken)

    def has_broken(self, conn: Conn, /) -> bool:
        play = self.script.get("has_broken")
        if play is not None:
            play(conn)
        return conn.broken

    def close(self, conn: Conn, /) -> None:
        self._play("close", conn)
        conn.state = "closed"

    @property
    def open(self) -> int:
        """How many connections are open."""
        return sum(conn.state == "open" for conn in self.made)

    def count(self, method: str) -> int:
        return sum(call[0] == method for call in self.calls)


class Resetting(Manager):
    """With ``reset``."""

    def reset(self, conn: Conn, /) -> None:
        self._play("reset", conn)
        conn.dirty = False


class Terminating(Resetting):
    """With ``terminate`` too, so that a waiter may run a reset."""

    def terminate(self, conn: Conn, /) -> None:
        self._play("terminate", conn)
        conn.state = "terminated"


def adds_up(pool: Pool[Any]) -> None:
    """Check that the statistics reconcile."""
    state = pool.state()
    s = state.statistics
    ended = s.gets_direct + s.gets_waited + s.gets_timed_out + s.gets_cancelled + s.gets_failed
    assert s.gets_started == ended + state.waiting, state
    open_now = state.idle + state.in_use + state.validating + state.resetting
    assert s.connections_created + s.connections_added == open_now + sum(s.connections_closed.values()), state
    assert min(s.gets_direct, s.gets_waited, state.waiting) >= 0, state
