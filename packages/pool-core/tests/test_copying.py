# mypy: disable-error-code="misc,no-any-return,arg-type,unused-ignore"
"""Exceptions can be copied and pickled whole; pools and leases refuse both and stay as they were."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
from typing import TYPE_CHECKING, Any

import pool_core
import pytest
from pool_core import BrokenConnection, Pool, PoolClosed, PoolDeadlock, PoolError, PoolFull, PoolTimeout, WrongEventLoop
from pool_core.testing import OK, ScriptedManager, run

from .helpers import books, hold, virtual

if TYPE_CHECKING:
    from collections.abc import Callable

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}
each_copy = pytest.mark.parametrize("how", COPIES)

CLASSES = sorted(
    name
    for name in pool_core.__all__
    if isinstance(found := getattr(pool_core, name), type) and issubclass(found, BaseException)
)


def made(name: str) -> BaseException:
    """An exception of this class, with all that it carries."""
    kind = getattr(pool_core, name)
    if issubclass(kind, PoolTimeout):
        return kind("the text", phase="connect", waited=1.5, state=Pool(ScriptedManager()).state())
    if issubclass(kind, (BrokenConnection, PoolFull)):
        return kind("the text", ("a", "connection"))
    return kind("the text")


def same(copied: BaseException, original: BaseException) -> None:
    """Class, text, args and attributes are the same."""
    assert type(copied) is type(original)
    assert str(copied) == str(original)
    for name in ("phase", "waited", "state", "connection"):
        assert getattr(copied, name, None) == getattr(original, name, None)
    assert getattr(copied, "__notes__", []) == getattr(original, "__notes__", [])


@each_copy
@pytest.mark.parametrize("name", CLASSES)
def test_every_exception_survives_copying_with_its_attributes(name: str, how: str) -> None:
    """A ProcessPoolExecutor whose worker raises one that does not is a BrokenProcessPool."""
    error = made(name)
    error.add_note("a note")
    same(COPIES[how](error), error)


@each_copy
@pytest.mark.parametrize("name", ["PoolTimeout", "PoolDeadlock"])
def test_a_copied_exception_can_be_copied_again(name: str, how: str) -> None:
    """From process to process to process."""
    error = made(name)
    same(COPIES[how](COPIES[how](error)), error)


def test_a_subclass_of_an_exception_survives_pickling() -> None:
    """PoolTimeout is still a TimeoutError, PoolDeadlock a PoolTimeout afterwards."""
    copied = pickle.loads(pickle.dumps(made("PoolDeadlock")))
    assert isinstance(copied, PoolTimeout)
    assert isinstance(copied, TimeoutError)
    assert isinstance(copied, PoolError)


@each_copy
@virtual
async def test_exceptions_that_the_pool_raises_survive_copying(how: str) -> None:
    """The state that a real timeout carries has counters by reason in it."""
    errors: list[BaseException] = []
    pool = Pool(ScriptedManager(connect=[OK, OSError("down")]), max_size=1, error_sink=errors.append)
    await pool.open()
    async with pool.get():
        with pytest.raises(PoolTimeout) as timeout:
            await pool.get(0.5)
    await pool.close()
    with pytest.raises(PoolClosed) as is_closed:
        await pool.get()
    for caught in (timeout, is_closed):
        same(COPIES[how](caught.value), caught.value)


@virtual
async def test_a_deadlock_that_the_pool_raises_survives_pickling() -> None:
    """It carries the same as a timeout."""
    async with Pool(ScriptedManager(), max_size=1) as pool, pool.get():
        with pytest.raises(PoolDeadlock) as caught:
            await pool.get()
        same(pickle.loads(pickle.dumps(caught.value)), caught.value)


def test_a_wrong_event_loop_that_the_pool_raises_survives_pickling() -> None:
    """The loops themselves cannot be pickled, so the error must not hold them."""
    pool = Pool(ScriptedManager())
    first = asyncio.new_event_loop()
    try:
        first.run_until_complete(pool.open())

        async def elsewhere() -> None:
            with pytest.raises(WrongEventLoop) as caught:
                await pool.get()
            same(pickle.loads(pickle.dumps(caught.value)), caught.value)

        run(elsewhere)
        first.run_until_complete(pool.close())
    finally:
        first.close()


REFUSED: dict[str, Callable[[Any], Any]] = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": pickle.dumps}
each_refused = pytest.mark.parametrize("how", REFUSED)


@each_refused
@virtual
async def test_copying_an_open_pool_is_refused_and_hurts_nothing(how: str) -> None:
    """The copy's finalizer closed the original."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1, min_idle=1) as pool:
        with pytest.raises(TypeError, match=r"(?i)pool"):
            REFUSED[how](pool)
        gc.collect()
        await asyncio.sleep(5)
        await hold(pool)
        assert len(manager.open) == 1
        books(pool)


@each_refused
def test_copying_a_pool_that_was_never_opened_is_refused(how: str) -> None:
    """It may be opened later."""
    pool = Pool(ScriptedManager())
    with pytest.raises(TypeError, match=r"(?i)pool"):
        REFUSED[how](pool)


@each_refused
@pytest.mark.parametrize("form", ["awaited", "block", "not acquired", "released"])
@virtual
async def test_copying_a_lease_is_refused_and_hurts_nothing(how: str, form: str) -> None:
    """The copy's finalizer terminated the original's connection."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=1) as pool:
        lease = pool.get()
        if form == "awaited":
            lease = await lease
        elif form != "not acquired":
            await lease.__aenter__()
        if form == "released":
            lease.release()
        with pytest.raises(TypeError, match=r"(?i)lease|connection"):
            REFUSED[how](lease)
        gc.collect()
        await asyncio.sleep(1)
        if form in ("awaited", "block"):
            await lease.conn.query()
            lease.release()
        await hold(pool)
        assert len(manager.connections) == 1
        manager.check(open=1)
        books(pool)
