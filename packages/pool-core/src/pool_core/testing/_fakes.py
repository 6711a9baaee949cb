"""Fake connections and managers: a fast one for benchmarks, and a scripted one whose every call can go wrong."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, Self, TypeVar

__all__ = [
    "NEVER",
    "OK",
    "Call",
    "Delay",
    "FakeConnection",
    "FakeManager",
    "Gate",
    "Outcome",
    "ScriptedCustomizer",
    "ScriptedManager",
    "Steps",
    "SwallowCancel",
]

T = TypeVar("T")


class FakeConnection:
    """A connection to nothing.

    Attributes:
        id: the number of the connect call it came from, from 1.
        state: ``"open"``, ``"closing"`` while close runs (and after a cancelled close), ``"closed"``, ``"terminated"``.
        broken: the driver knows that the connection is dead: has_broken returns True.
        dead: the server is gone, and the driver has not noticed: only is_valid and :meth:`query` fail.
        dirty: the connection has session state that reset removes.
    """

    __slots__ = ("__weakref__", "_busy", "broken", "dead", "dirty", "id", "state")

    def __init__(self, id: int) -> None:
        self.id = id
        self.state: Literal["open", "closing", "closed", "terminated"] = "open"
        self.broken = False
        self.dead = False
        self.dirty = False
        self._busy = False

    async def query(self, seconds: float = 0) -> None:
        """Use the connection as a borrower would; an interrupted query leaves it broken, as in most drivers.

        Args:
            seconds: how long the answer takes; 0 is one turn of the loop.

        Raises:
            ConnectionResetError: the connection is broken or dead (and broken from now on).
            AssertionError: it is not open, or another task uses it: a pool must not hand out such a connection.
        """
        if self.state != "open" or self._busy:
            raise AssertionError(
                f"{self!r} was used {'by two at once' if self._busy else f'though it is {self.state}'}"
            )
        self._busy = True
        try:
            await asyncio.sleep(seconds)
        except BaseException:
            self.broken = True
            raise
        finally:
            self._busy = False
        if self.broken or self.dead:
            self.broken = True
            raise ConnectionResetError(f"{self!r}: the server has gone away")

    def __repr__(self) -> str:
        marks = "".join(f" {mark}" for mark in ("broken", "dead", "dirty") if getattr(self, mark))
        return f"<FakeConnection {self.id} {self.state}{marks}>"


class FakeManager:
    """A manager with all methods, whose calls succeed at once, without scripts or a log, at almost no cost.

    Attributes:
        created: how many connections it made.
    """

    def __init__(self) -> None:
        self.created = 0

    async def connect(self) -> FakeConnection:
        """A new connection, without a turn of the loop."""
        self.created += 1
        return FakeConnection(self.created)

    async def is_valid(self, conn: FakeConnection, /) -> bool:
        """Whether it is neither broken nor dead."""
        return not (conn.broken or conn.dead)

    def has_broken(self, conn: FakeConnection, /) -> bool:
        """Whether it is marked as broken."""
        return conn.broken

    async def close(self, conn: FakeConnection, /) -> None:
        """Mark it as closed."""
        conn.state = "closed"

    def reset(self, conn: FakeConnection, /) -> Awaitable[None] | None:
        """Nothing for a clean connection; a coroutine that cleans a dirty one."""
        return self._wipe(conn) if conn.dirty else None

    async def _wipe(self, conn: FakeConnection) -> None:
        await asyncio.sleep(0)
        conn.dirty = False

    def terminate(self, conn: FakeConnection, /) -> None:
        """Mark it as terminated."""
        conn.state = "terminated"

    def is_transient(self, exc: BaseException, /) -> bool:
        """Every connect error is worth another try."""
        return True


class Outcome:
    """What becomes of one call. Scripts also take plain values (returned) and exceptions (raised)."""

    async def wait(self) -> None:
        """Whatever comes before the result."""

    @property
    def then(self) -> object:
        """What happens after the wait: another outcome, an exception or a value."""
        return OK


class _Ok(Outcome):
    def __repr__(self) -> str:
        return "OK"


class _Never(Outcome):
    async def wait(self) -> None:
        await asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return "NEVER"


OK: Final = _Ok()
"""The call succeeds: connect returns a connection, is_valid whether it is alive; reset removes session state."""

NEVER: Final = _Never()
"""The call never returns, unless it is cancelled."""


class Delay(Outcome):
    """The call takes time, then goes on as ``then`` says.

    Args:
        seconds: by the loop's clock.
        then: what happens afterwards.
    """

    def __init__(self, seconds: float, then: object = OK) -> None:
        self.seconds = seconds
        self._then = then

    async def wait(self) -> None:
        """Sleep."""
        await asyncio.sleep(self.seconds)

    @property
    def then(self) -> object:
        """What happens afterwards."""
        return self._then

    def __repr__(self) -> str:
        return f"Delay({self.seconds:g}, {self._then!r})"


class Steps(Outcome):
    """The call takes some turns of the loop and no time: places where a cancel may arrive.

    Args:
        turns: how many.
        then: what happens afterwards.
    """

    def __init__(self, turns: int, then: object = OK) -> None:
        self.turns = turns
        self._then = then

    async def wait(self) -> None:
        """Yield."""
        for _ in range(self.turns):
            await asyncio.sleep(0)

    @property
    def then(self) -> object:
        """What happens afterwards."""
        return self._then

    def __repr__(self) -> str:
        return f"Steps({self.turns}, {self._then!r})"


class SwallowCancel(Outcome):
    """The call loses cancels, as drivers do that go through ``wait_for`` on Python 3.11.

    Args:
        times: how many cancels it loses; the last of them ends the wait. ``math.inf``: it cannot be cancelled at all.
        then: what happens then: ``OK``, the call succeeds in spite of its cancel; ``NEVER``, it goes on waiting until
            the next cancel, which it obeys.
        seconds: how long it waits when nobody cancels it.
    """

    def __init__(self, times: float = 1, then: object = OK, *, seconds: float = math.inf) -> None:
        self.times = times
        self.seconds = seconds
        self._then = then

    async def wait(self) -> None:
        """Wait, ignoring cancels."""
        loop = asyncio.get_running_loop()
        end: asyncio.Future[None] = loop.create_future()
        timer = None if math.isinf(self.seconds) else loop.call_later(self.seconds, end.set_result, None)
        lost = 0
        while lost < self.times and not end.done():
            try:
                # Shielded: a cancel of the task must not end the future, which is waited for again.
                await asyncio.shield(end)
            except asyncio.CancelledError:
                lost += 1
        if timer is not None:
            timer.cancel()

    @property
    def then(self) -> object:
        """What happens then."""
        return self._then

    def __repr__(self) -> str:
        return f"SwallowCancel({self.times:g}, {self._then!r})"


class Gate(Outcome):
    """The call waits until the test lets it go on; calls that come later go straight through.

    Attributes:
        waiting: how many calls stand at the gate.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._then: object = OK
        self._open = False
        self._waiters: list[asyncio.Future[None]] = []

    def open(self, then: object = OK) -> None:
        """Let every call go on, those that wait and those to come.

        Args:
            then: what happens to them.
        """
        self._then = then
        self._open = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self) -> None:
        """Stand at the gate."""
        if self._open:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.waiting += 1
        try:
            await waiter
        finally:
            self.waiting -= 1

    @property
    def then(self) -> object:
        """What open() said."""
        return self._then

    def __repr__(self) -> str:
        return f"<Gate {'open' if self._open else 'shut'}, {self.waiting} waiting>"


class Call(NamedTuple):
    """One call of a method: when it began, which method, which connection (for connect: the one it would make)."""

    time: float
    verb: str
    connection: int


class _Script:
    """The outcomes of one method: from a list until it is used up, otherwise one for every call."""

    def __init__(self, verb: str, script: object, *, synchronous: bool) -> None:
        self._verb = verb
        self._synchronous = synchronous
        self._always: object = OK
        self._each: Iterator[object] = iter(())
        self._choose: Callable[..., object] | None = None
        if isinstance(script, Iterable) and not isinstance(script, (str, bytes)):
            if isinstance(script, Collection):
                for outcome in script:
                    self._check(outcome)
            self._each = iter(script)
        elif callable(script) and not (isinstance(script, type) and issubclass(script, BaseException)):
            self._choose = script
        else:
            self._check(script)
            self._always = script

    def next(self, conn: FakeConnection | None) -> object:
        if self._choose is not None:
            outcome = self._choose(conn)
            self._check(outcome)
            return outcome
        outcome = next(self._each, self._always)
        self._check(outcome)
        return outcome

    def _check(self, outcome: object) -> None:
        if self._synchronous and isinstance(outcome, Outcome) and outcome is not OK:
            raise TypeError(
                f"{self._verb} is synchronous and cannot wait: {outcome!r}; give OK, a value or an exception"
            )


def _result(outcome: object, default: Callable[[], T]) -> Any:
    """Raise, return, or do the work: an outcome without its waiting."""
    if outcome is OK:
        return default()
    if isinstance(outcome, BaseException) or (isinstance(outcome, type) and issubclass(outcome, BaseException)):
        raise outcome
    return outcome


async def _perform(outcome: object, default: Callable[[], T]) -> Any:
    while isinstance(outcome, Outcome) and outcome is not OK:
        await outcome.wait()
        outcome = outcome.then
    return _result(outcome, default)


def _now() -> float:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:  # terminate from a garbage collection, has_broken after the loop is gone
        return math.nan


_SYNCHRONOUS = frozenset({"has_broken", "terminate", "is_transient"})
_CORE = ("connect", "is_valid", "has_broken", "close")
_OPTIONAL = ("reset", "terminate", "is_transient")


class ScriptedManager:
    """A manager whose calls follow the test's scripts, and which records what a pool must never do.

    Each method takes a script:

    - an outcome for every call: ``connect=Delay(3)``, ``reset=NEVER``, ``close=OSError("gone")``;
    - a list of outcomes, or any iterable, one for each call in turn, and ``OK`` when it is used up:
      ``is_valid=[False, OK]``;
    - a function that is called with the connection (connect: None) and returns an outcome.

    An outcome is ``OK``, ``NEVER``, a :class:`Delay`, :class:`Steps`, :class:`SwallowCancel` or :class:`Gate`; an
    exception, to be raised; any other value is returned as it is (``is_valid=[None]`` forgets its ``return True``).
    Without a script every call succeeds at once. ``reset`` returns None, which means "nothing to reset", for a
    connection that is not dirty, unless ``reset`` has a script.

    Args:
        without: optional methods (``"reset"``, ``"terminate"``, ``"is_transient"``) that this manager does not have:
            its class lacks them, so that no way of looking them up finds one.
        scripts: the scripts, by method.

    Attributes:
        log: every :class:`Call`, in order.
        connections: every connection ever made, in order.
        faults: what a pool must never do, and did: closed twice, used after the close, two calls at once. Such a call
            also raises AssertionError, which a pool may catch: call :meth:`check` at the end of the test.
        running: calls under way now, by method.
        peak: the most calls that were under way at once, by method.
    """

    reset_keeps_on_connect = True  # a fake's reset takes nothing away

    def __new__(cls, *, without: Collection[str] = (), **scripts: object) -> Self:
        """Choose the class that has the requested methods."""
        if unknown := [verb for verb in without if verb not in _OPTIONAL]:
            raise TypeError(f"without={unknown}: only {', '.join(_OPTIONAL)} can be left out")
        return object.__new__(cls._with(tuple(verb for verb in _OPTIONAL if verb not in without)))

    @classmethod
    def _with(cls, verbs: tuple[str, ...]) -> type[Self]:
        """A subclass that has just these optional methods, besides those that this class defines itself."""
        variants: dict[tuple[str, ...], Any] | None = vars(cls).get("_variants")
        if variants is None:
            variants = cls._variants = {}
        if verbs not in variants:
            body = {verb: vars(_OptionalVerbs)[verb] for verb in verbs if not hasattr(cls, verb)}
            variants[verbs] = type(cls.__name__, (cls,), {**body, "__module__": cls.__module__, "__doc__": cls.__doc__})
        return variants[verbs]  # type: ignore[no-any-return]

    _variants: ClassVar[dict[tuple[str, ...], Any]]

    def __init__(self, *, without: Collection[str] = (), **scripts: object) -> None:
        self.log: list[Call] = []
        self.connections: list[FakeConnection] = []
        self.faults: list[str] = []
        self.running: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._attempts = 0
        self._in_call: dict[FakeConnection, str] = {}
        self._scripts: dict[str, _Script] = {}
        if wrong := [verb for verb in without if verb in scripts]:
            raise TypeError(f"{', '.join(wrong)}: left out, and yet given a script")
        self.script(**scripts)

    def script(self, **scripts: object) -> None:
        """Replace the scripts of some methods from the next call on.

        Raises:
            TypeError: no such method, or an outcome that waits for a method that is synchronous.
        """
        if unknown := [verb for verb in scripts if verb not in _CORE + _OPTIONAL]:
            raise TypeError(
                f"{', '.join(unknown)}: not a method of a manager; those are {', '.join(_CORE + _OPTIONAL)}"
            )
        for verb, script in scripts.items():
            self._scripts[verb] = _Script(verb, script, synchronous=verb in _SYNCHRONOUS)

    @property
    def open(self) -> list[FakeConnection]:
        """The connections that still hold their (imaginary) socket, closing ones included."""
        return [conn for conn in self.connections if conn.state in ("open", "closing")]

    def calls(self, verb: str) -> list[Call]:
        """Return the log of one method."""
        return [call for call in self.log if call.verb == verb]

    def kill(self, *, known: bool = False) -> None:
        """Let the server drop every open connection.

        Args:
            known: whether the driver notices by itself, so that has_broken says so.
        """
        for conn in self.open:
            conn.dead = True
            conn.broken = conn.broken or known

    def check(self, *, open: int | None = None) -> None:
        """Raise an AssertionError that tells every fault.

        Args:
            open: also demand that this many connections are open.
        """
        faults = list(self.faults)
        if open is not None and len(self.open) != open:
            faults.append(f"{len(self.open)} connections are open instead of {open}: {self.open}")
        if faults:
            raise AssertionError("; ".join(faults))

    async def connect(self) -> FakeConnection:
        """Make a connection, or whatever the script says."""
        self._attempts += 1
        number = self._attempts
        self._enter("connect", number)
        try:
            return await _perform(self._next("connect", None), lambda: self._make(number))  # type: ignore[no-any-return]
        finally:
            self.running["connect"] -= 1

    async def is_valid(self, conn: FakeConnection, /) -> bool:
        """Whether it is neither broken nor dead, or whatever the script says."""
        return await self._call("is_valid", conn, lambda: not (conn.broken or conn.dead))  # type: ignore[no-any-return]

    def has_broken(self, conn: FakeConnection, /) -> bool:
        """Whether it is marked as broken, or whatever the script says."""
        self._enter("has_broken", conn.id)
        self.running["has_broken"] -= 1
        if conn.state != "open":
            self._fault(f"has_broken of {conn!r}, which is {conn.state}")
        return _result(self._next("has_broken", conn), lambda: conn.broken)  # type: ignore[no-any-return]

    async def close(self, conn: FakeConnection, /) -> None:
        """Close it, or whatever the script says; cancelled, it stays half closed until it is terminated."""

        def mark() -> None:
            if conn.state == "closing":
                conn.state = "closed"

        first = conn.state == "open"
        try:
            await self._call("close", conn, mark, closing=True)
        except Exception:
            if first:
                mark()  # the driver has tried; there is nothing more to close
            raise

    if TYPE_CHECKING:

        def reset(self, conn: FakeConnection, /) -> Awaitable[None] | None: ...
        def terminate(self, conn: FakeConnection, /) -> None: ...
        def is_transient(self, exc: BaseException, /) -> bool: ...

    def _make(self, number: int) -> FakeConnection:
        conn = FakeConnection(number)
        self.connections.append(conn)
        return conn

    def _next(self, verb: str, conn: FakeConnection | None) -> object:
        script = self._scripts.get(verb)
        return OK if script is None else script.next(conn)

    def _enter(self, verb: str, connection: int) -> None:
        self.log.append(Call(_now(), verb, connection))
        self.running[verb] += 1
        self.peak[verb] = max(self.peak[verb], self.running[verb])

    async def _call(self, verb: str, conn: FakeConnection, default: Callable[[], T], *, closing: bool = False) -> Any:
        self._enter(verb, conn.id)
        try:
            if conn.state != "open":
                self._fault(f"{verb} of {conn!r}, which is {conn.state}")
            if conn in self._in_call:
                self._fault(f"{verb} of {conn!r} while its {self._in_call[conn]} is still running")
            if closing:
                conn.state = "closing"
            self._in_call[conn] = verb
            try:
                return await _perform(self._next(verb, conn), default)
            finally:
                del self._in_call[conn]
        finally:
            self.running[verb] -= 1

    def _fault(self, text: str) -> None:
        self.faults.append(text)
        raise AssertionError(text)


class _OptionalVerbs(ScriptedManager):
    """The methods that a manager may lack. It has no instances: `_with` copies its methods."""

    def reset(self, conn: FakeConnection, /) -> Awaitable[None] | None:
        """Reset the connection, or follow the script. Returns None if there is no script and it is not dirty."""
        if "reset" not in self._scripts and not conn.dirty:
            self._enter("reset", conn.id)
            self.running["reset"] -= 1
            return None

        def wipe() -> None:
            conn.dirty = False

        return self._call("reset", conn, wipe)

    def terminate(self, conn: FakeConnection, /) -> None:
        """Drop it, or whatever the script says; allowed while another call is stuck, but only once."""
        self._enter("terminate", conn.id)
        self.running["terminate"] -= 1
        if conn.state == "terminated":
            self._fault(f"terminate of {conn!r}, which is terminated")

        def mark() -> None:
            conn.state = "terminated"

        _result(self._next("terminate", conn), mark)

    def is_transient(self, exc: BaseException, /) -> bool:
        """True, or whatever the script says."""
        self._enter("is_transient", 0)
        self.running["is_transient"] -= 1
        return _result(self._next("is_transient", None), lambda: True)  # type: ignore[no-any-return]


class ScriptedCustomizer:
    """A customizer whose hooks do what the test says; scripts as in :class:`ScriptedManager`.

    Args:
        on_connect, on_close: the scripts.

    Attributes:
        log: every :class:`Call`, in order.
    """

    def __init__(self, *, on_connect: object = OK, on_close: object = OK) -> None:
        self.log: list[Call] = []
        self._on_connect = _Script("on_connect", on_connect, synchronous=False)
        self._on_close = _Script("on_close", on_close, synchronous=False)

    async def on_connect(self, conn: FakeConnection, /) -> None:
        """Whatever the script says."""
        self.log.append(Call(_now(), "on_connect", conn.id))
        await _perform(self._on_connect.next(conn), lambda: None)

    async def on_close(self, conn: FakeConnection, /) -> None:
        """Whatever the script says."""
        self.log.append(Call(_now(), "on_close", conn.id))
        await _perform(self._on_close.next(conn), lambda: None)
