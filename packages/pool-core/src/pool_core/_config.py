"""The pool's options: names, defaults and limits, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._events import Event

__all__ = ["PoolConfig", "PoolOptions", "QueueStrategy"]

C = TypeVar("C")


class QueueStrategy(str, Enum):
    """Which idle connection is acquired first."""

    LIFO = "lifo"
    """The one used last: few connections stay warm, the others reach ``idle_timeout`` (r2d2, asyncpg)."""
    FIFO = "fifo"
    """The one unused longest: it spreads the load (bb8's default)."""


class PoolOptions(TypedDict, Generic[C], total=False):
    """The keyword options of ``Pool`` and ``Pool.from_url``; ``PoolConfig`` has their meaning and defaults."""

    max_size: int
    min_idle: int
    test_on_check_out: bool
    alive_bypass: float
    max_lifetime: float | None
    lifetime_jitter: float
    idle_timeout: float | None
    keepalive: float | None
    max_uses: int | None
    connection_timeout: float | None
    create_timeout: float | None
    validation_timeout: float | None
    reset_timeout: float | None
    close_timeout: float | None
    max_waiting: int | None
    max_connecting: int
    retry_connection: bool
    queue_strategy: QueueStrategy
    reap_interval: float
    discard_on_exception: bool
    detect_deadlock: bool
    deadlock_after: float
    guard: bool
    leak_threshold: float | None
    name: str
    customizer: Any
    error_sink: Callable[[BaseException], object] | None
    listeners: Sequence[Callable[[Event], object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """Every option of a pool, checked. Times are in seconds; None means never, or no limit.

    Raises:
        ValueError: a value outside what is allowed; the text names the option, the value and what is allowed.
        TypeError: a value of the wrong type.

    Attributes:
        max_size: The largest number of connections, those being opened or closed included. At least 1.
        min_idle: How many idle connections are kept ready, as far as ``max_size`` allows.
        test_on_check_out: Call ``is_valid`` before a connection is acquired.
        alive_bypass: Skip that validation for a connection used or validated within this time (HikariCP's
            ``aliveBypassWindow``). 0 validates every time.
        max_lifetime: Close a connection at this age; one that is in use is closed when it is returned.
        lifetime_jitter: Each connection lives up to this fraction shorter, at random, so that they do not expire together.
        idle_timeout: Close a connection unused for this long; checked every ``reap_interval``.
        keepalive: Validate an idle connection in the background when it was neither used nor validated for this long
            (HikariCP's ``keepaliveTime``), for load balancers and firewalls that drop silent connections. At most
            ``max_connecting`` at once. It does not count as use: ``idle_timeout`` and the order of idle connections
            stay. What fails is replaced up to ``min_idle``.
        max_uses: Close a connection after this many uses.
        connection_timeout: The whole of a ``get``, and of ``open``: waiting, connecting, validating, retries.
        create_timeout: One connection attempt with its ``on_connect``.
        validation_timeout: One ``is_valid``.
        reset_timeout: One ``reset`` with its ``on_reset``.
        close_timeout: One ``close`` with its ``on_close``.
        max_waiting: When this many gets are waiting, a further get raises PoolOverloaded at once. Waiters for whom a
            connection is being opened or validated are not counted.
        max_connecting: How many connection attempts may run at once.
        retry_connection: True: failed attempts are repeated, with one back-off for the pool, while gets wait. False:
            a failed attempt fails the first waiter at once.
        queue_strategy: Which idle connection is acquired first.
        reap_interval: How often idle connections and leaks are checked.
        discard_on_exception: Close the connection of a block that raised (diesel's rule).
        detect_deadlock: Raise PoolDeadlock when every holder waits for another connection.
        deadlock_after: Raise it after a standstill of this many seconds, because another task may still end a block.
        guard: Give borrowers a proxy that refuses use after release (for tests: about 600 ns per attribute).
        leak_threshold: Report a lease held longer than this, with the stack that acquired it.
        name: Shown in errors, logs, task names and metrics.
        customizer: An object with one or more of ``async`` methods ``on_connect(conn)``, ``on_checkout(conn)``,
            ``on_reset(conn)`` and ``on_close(conn)``: see ``ConnectionCustomizer``.
        error_sink: Called with each error that no caller sees. None: they go to the logger ``pool_core``.
        listeners: Called with each event.
    """

    max_size: int = 10
    min_idle: int = 0
    test_on_check_out: bool = True
    alive_bypass: float = 0.5
    max_lifetime: float | None = 1800.0
    lifetime_jitter: float = 0.1
    idle_timeout: float | None = 600.0
    keepalive: float | None = None
    max_uses: int | None = None
    connection_timeout: float | None = 30.0
    create_timeout: float | None = 10.0
    validation_timeout: float | None = 5.0
    reset_timeout: float | None = 5.0
    close_timeout: float | None = 5.0
    max_waiting: int | None = None
    max_connecting: int = 3
    retry_connection: bool = True
    queue_strategy: QueueStrategy = QueueStrategy.LIFO
    reap_interval: float = 30.0
    discard_on_exception: bool = False
    detect_deadlock: bool = True
    deadlock_after: float = 1.0
    guard: bool = False
    leak_threshold: float | None = None
    name: str = "pool"
    customizer: Any = None
    error_sink: Callable[[BaseException], object] | None = None
    listeners: Sequence[Callable[[Event], object]] = ()

    def __post_init__(self) -> None:
        for option, least, optional in _COUNTS:
            _check_count(option, getattr(self, option), least, optional=optional)
        for option, zero, optional in _TIMES:
            if optional and _is_endless(getattr(self, option)):
                object.__setattr__(self, option, None)  # as get() takes it: no limit
            _check_time(option, getattr(self, option), zero=zero, optional=optional)
        for option in _FLAGS:
            if not isinstance(value := getattr(self, option), bool):
                msg = f"{option}={value!r}: must be True or False"
                raise TypeError(msg)
        _check_number("lifetime_jitter", self.lifetime_jitter)
        if not 0 <= self.lifetime_jitter < 1:
            msg = f"lifetime_jitter={self.lifetime_jitter!r}: must be at least 0 and below 1"
            raise ValueError(msg)
        if self.min_idle > self.max_size:
            msg = f"min_idle={self.min_idle!r}: must not be greater than max_size={self.max_size!r}"
            raise ValueError(msg)
        if not isinstance(self.queue_strategy, QueueStrategy):
            msg = f"queue_strategy={self.queue_strategy!r}: must be QueueStrategy.LIFO or QueueStrategy.FIFO"
            raise TypeError(msg)
        if not isinstance(self.name, str):
            msg = f"name={self.name!r}: must be a str"
            raise TypeError(msg)
        if self.error_sink is not None and not callable(self.error_sink):
            msg = f"error_sink={self.error_sink!r}: must be callable with one exception, or None"
            raise TypeError(msg)
        object.__setattr__(self, "listeners", _callables(self.listeners))
        _check_customizer(self.customizer)

    def resized(self, *, max_size: int | None, min_idle: int | None) -> PoolConfig:
        """Return a copy with another size; a pair that does not fit raises ValueError."""
        return replace(
            self,
            max_size=self.max_size if max_size is None else max_size,
            min_idle=self.min_idle if min_idle is None else min_idle,
        )


_ENDLESS = 1e15
"""Seconds: thirty million years. A loop's clock cannot add an int that is no float."""
# option, least value, may be None
_COUNTS = (
    ("max_size", 1, False),
    ("min_idle", 0, False),
    ("max_uses", 1, True),
    ("max_waiting", 0, True),
    ("max_connecting", 1, False),
)
# option, may be 0, may be None
_TIMES = (
    ("alive_bypass", True, False),
    ("max_lifetime", False, True),
    ("idle_timeout", False, True),
    ("keepalive", False, True),
    ("connection_timeout", False, True),
    ("create_timeout", False, True),
    ("validation_timeout", False, True),
    ("reset_timeout", False, True),
    ("close_timeout", False, True),
    ("reap_interval", False, False),
    ("leak_threshold", False, True),
    ("deadlock_after", False, False),
)
_FLAGS = ("test_on_check_out", "retry_connection", "discard_on_exception", "detect_deadlock", "guard")


HOOKS = ("on_connect", "on_checkout", "on_reset", "on_close")


def option_names() -> tuple[str, ...]:
    """Every option's name, in the order of their definition."""
    return tuple(field.name for field in fields(PoolConfig))


_FOREIGN = {
    "min_size": "min_idle",
    "minsize": "min_idle",
    "maxsize": "max_size",
    "pool_size": "max_size",
    "max_connections": "max_size",
    "max_overflow": "max_size (connections are never opened beyond it)",
    "timeout": "connection_timeout (or get(timeout=...) for one call)",
    "pool_timeout": "connection_timeout",
    "acquire_timeout": "connection_timeout",
    "pool_recycle": "max_lifetime",
    "max_inactive_connection_lifetime": "idle_timeout",
    "max_idle": "idle_timeout",
    "max_queries": "max_uses",
    "pool_pre_ping": "test_on_check_out",
    "reaper_rate": "reap_interval",
    "num_workers": "max_connecting",
}
"""What other pools call an option, and what it is here."""


def check_names(options: Mapping[str, object]) -> None:
    """Refuse an option that there is not, and name the one that is meant."""
    known = option_names()
    wrong = []
    for name in options:
        if name in known:
            continue
        meant = _FOREIGN.get(name)
        if meant is None:
            import difflib  # rarely needed

            meant = next(iter(difflib.get_close_matches(name, known, 1, 0.6)), None)
        hint = f"use {meant}" if meant else f"the options are {', '.join(known)}"
        wrong.append(f"{name}: the pool has no such option; {hint}")
    if wrong:
        raise TypeError(". ".join(wrong))


def check_timeout(name: str, value: float) -> float:
    """Refuse a timeout of one call that is no number, negative or NaN. One that no clock can add becomes inf."""
    _check_number(name, value)
    if not value >= 0:  # NaN too
        msg = f"{name}={value!r}: must be a number of seconds, 0 or more"
        raise ValueError(msg)
    return value if value < _ENDLESS else math.inf


def _check_number(option: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"{option}={value!r}: must be a number, not {type(value).__name__}"
        raise TypeError(msg)


def _is_endless(value: object) -> bool:
    return isinstance(value, (int, float)) and value >= _ENDLESS


def _check_count(option: str, value: object, least: int, *, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{option}={value!r}: must be an int, not {type(value).__name__}"
        raise TypeError(msg)
    if value < least:
        msg = f"{option}={value!r}: must be at least {least}{', or None' if optional else ''}"
        raise ValueError(msg)


def _check_time(option: str, value: float | None, *, zero: bool, optional: bool) -> None:
    if value is None and optional:
        return
    _check_number(option, value)
    assert value is not None
    if not (value >= 0 if zero else value > 0) or _is_endless(value):
        least = "0 or more" if zero else "greater than 0"
        msg = f"{option}={value!r}: must be a finite number of seconds, {least}{', or None' if optional else ''}"
        raise ValueError(msg)


def _callables(listeners: Any) -> tuple[Callable[[Event], object], ...]:
    if callable(listeners) or not hasattr(listeners, "__iter__"):
        msg = f"listeners={listeners!r}: must be a list of callables"
        raise TypeError(msg)
    made = tuple(listeners)
    for listener in made:
        if not callable(listener):
            msg = f"listeners: {listener!r} is not callable"
            raise TypeError(msg)
    return made


def _check_customizer(customizer: object) -> None:
    if customizer is None:
        return
    hooks = [getattr(customizer, hook, None) for hook in HOOKS]
    if not any(callable(hook) for hook in hooks):
        msg = f"customizer={customizer!r}: must have at least one of the methods {', '.join(HOOKS)}"
        raise TypeError(msg)
