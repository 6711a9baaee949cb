"""What a manager may say of a connection: judge an error, know that it is clean, ask for another one."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import CloseReason, Pool, PoolTimeout, ReplaceConnection, SupportsIsClean, SupportsJudge, Verdict
from pool_core.testing import ScriptedManager

from .helpers import books, closed, hold, turns, virtual

if TYPE_CHECKING:
    from collections.abc import Callable


class ReadOnly(Exception):
    """What a server says that was demoted."""


class Judges(ScriptedManager):
    """Judges as the test says."""

    answer: Callable[[Exception, Any], Any]
    asked: list[Exception]

    def judge(self, exc: Exception, conn: Any, /) -> Any:
        self.asked.append(exc)
        return self.answer(exc, conn)


def judges(answer: Callable[[Exception, Any], Any]) -> Judges:
    manager = Judges()
    manager.answer = answer
    manager.asked = []
    return manager


async def raises(pool: Pool[Any], error: BaseException) -> None:
    with pytest.raises(type(error)):
        async with pool.get():
            raise error


@virtual
async def test_close_costs_the_connection_alone() -> None:
    """The error says that it cannot be used again."""
    manager = judges(lambda _, __: Verdict.CLOSE)
    async with Pool(manager, max_size=2, min_idle=2) as pool:
        error = ValueError("gone")
        await raises(pool, error)
        assert manager.asked == [error]
        closed(pool, discarded=1)
        books(pool)


@virtual
async def test_retire_all_replaces_every_connection() -> None:
    """A primary that has become read-only behind the same address: at most max_size errors, then new connections."""
    manager = judges(lambda exc, _: Verdict.RETIRE_ALL if isinstance(exc, ReadOnly) else Verdict.KEEP)
    async with Pool(manager, max_size=3) as pool:
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(3)))
        lease = await pool.get()
        await raises(pool, ReadOnly())
        lease.release()
        await turns()
        closed(pool, evicted=3)
        await hold(pool)
        assert pool.state().statistics.connections_created == 4
        books(pool)


@virtual
async def test_a_retired_connection_does_not_retire_those_that_replace_it() -> None:
    """After a failover the errors of the old connections trickle in, while new ones work already."""
    manager = judges(lambda exc, _: Verdict.RETIRE_ALL if isinstance(exc, ReadOnly) else Verdict.KEEP)
    async with Pool(manager, max_size=3) as pool:
        first, second = await pool.get(), await pool.get()
        first.discard(error=ReadOnly())
        await hold(pool)
        second.discard(error=ReadOnly())
        await turns()
        assert pool.state().idle == 1
        assert pool.state().statistics.connections_created == 3
        books(pool)


@virtual
async def test_keep_leaves_all_as_without_judge() -> None:
    """The connection is validated before its next use, and no more."""
    manager = judges(lambda _, __: Verdict.KEEP)
    async with Pool(manager, max_size=1) as pool:
        await raises(pool, ValueError())
        await hold(pool)
        assert len(manager.calls("is_valid")) == 1
        closed(pool)


@pytest.mark.parametrize("answer", [None, True, "close"])
@virtual
async def test_an_answer_that_is_no_verdict_is_a_hook_error_and_means_keep(answer: Any) -> None:
    """A forgotten return must not be silent."""
    errors: list[BaseException] = []
    async with Pool(judges(lambda _, __: answer), max_size=1, error_sink=errors.append) as pool:
        await raises(pool, ValueError())
        assert "judge must return a Verdict" in str(errors[0])
        assert pool.state().statistics.hook_errors == 1
        closed(pool)
        books(pool)


@virtual
async def test_whatever_judge_raises_is_a_hook_error_and_means_keep() -> None:
    """It reads attributes of foreign exceptions."""

    def fails(*_: object) -> Any:
        raise asyncio.CancelledError

    async with Pool(judges(fails), max_size=1, error_sink=lambda _: None) as pool:
        await raises(pool, ValueError())
        assert pool.state().statistics.hook_errors == 1
        closed(pool)
        books(pool)


@virtual
async def test_judge_is_not_asked_about_cancels_nor_after_a_clean_block() -> None:
    """They say nothing of the server."""
    manager = judges(lambda _, __: Verdict.CLOSE)
    async with Pool(manager, max_size=1) as pool:
        await hold(pool)
        await raises(pool, KeyError("x"))
        task = asyncio.create_task(hold(pool, 100))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert [type(error) for error in manager.asked] == [KeyError]


@virtual
async def test_release_and_discard_show_judge_the_error() -> None:
    """A lease that was awaited ends without a block."""
    manager = judges(lambda exc, _: Verdict.RETIRE_ALL if isinstance(exc, ReadOnly) else Verdict.KEEP)
    async with Pool(manager, max_size=2) as pool:
        for end in ("release", "discard"):
            await asyncio.gather(hold(pool, 0.1), hold(pool, 0.1))
            lease = await pool.get()
            try:
                raise ReadOnly
            except ReadOnly as error:
                if end == "release":
                    lease.release()
                else:
                    lease.discard(error=error)
        await turns()
        closed(pool, evicted=4)
        books(pool)


@virtual
async def test_an_error_after_close_is_not_judged() -> None:
    """close() has terminated the connection."""
    manager = judges(lambda _, __: Verdict.RETIRE_ALL)
    pool = Pool(manager)
    await pool.open()
    with pytest.raises(ReadOnly):
        async with pool.get():
            await pool.close(0)
            raise ReadOnly
    assert manager.asked == []
    await pool.open()
    closing: list[asyncio.Task[None]] = []
    with pytest.raises(ReadOnly):
        async with pool.get():
            closing.append(asyncio.create_task(pool.close(5)))
            await turns()
            raise ReadOnly
    await closing[0]
    books(pool)


@virtual
async def test_a_reset_may_ask_for_another_connection(caplog: pytest.LogCaptureFixture) -> None:
    """Closing is the cheapest way to a clean one: no warning, no error, no doubt on others."""
    caplog.set_level(logging.DEBUG, "pool_core")
    manager = ScriptedManager(reset=ReplaceConnection())
    events: list[str] = []
    async with Pool(manager, max_size=2, listeners=[lambda event: events.append(type(event).__name__)]) as pool:
        await asyncio.gather(hold(pool, 0.1), hold(pool, 0.1))
        await turns()
        closed(pool, replaced=2)
        assert "ResetFailed" not in events
        books(pool)
    assert "ReplaceConnection" not in caplog.text


@virtual
async def test_a_synchronous_reset_may_ask_for_another_connection() -> None:
    """On the warm path too."""

    class Manager(ScriptedManager):
        replace = False

        def reset(self, conn: Any, /) -> Any:
            if self.replace:
                raise ReplaceConnection

    manager = Manager()
    errors: list[BaseException] = []
    async with Pool(manager, max_size=1, error_sink=errors.append) as pool:
        await hold(pool)
        manager.replace = True
        await hold(pool)
        closed(pool, replaced=1)
        assert errors == []
        books(pool)


@virtual
async def test_a_connection_that_is_clean_is_not_reset() -> None:
    """Anything but True means reset; what is_clean raises is counted."""

    class Manager(ScriptedManager):
        clean: Any = True

        def is_clean(self, conn: Any, /) -> bool:
            if isinstance(self.clean, Exception):
                raise self.clean
            answer: bool = self.clean
            return answer

    manager = Manager()
    assert isinstance(manager, SupportsIsClean)
    assert isinstance(judges(lambda _, __: None), SupportsJudge)
    async with Pool(manager, max_size=1, error_sink=lambda _: None) as pool:
        for clean, resets in ((True, 0), (True, 0), (False, 1), (1, 2), (ValueError("bug"), 3), (True, 3)):
            manager.clean = clean
            await hold(pool)
            await turns()
            assert len(manager.calls("reset")) == resets
        assert pool.state().statistics.hook_errors == 1
        books(pool)


@virtual
async def test_a_pool_may_be_entered_again_inside_of_its_block() -> None:
    """The outermost block closes; close() closes."""
    pool = Pool(ScriptedManager())
    async with pool:
        async with pool:
            await hold(pool)
        await hold(pool)
    assert "closed" in repr(pool)
    async with pool, pool:
        await pool.close()
    async with pool:
        await hold(pool)
    assert "closed" in repr(pool)


def test_blocks_that_died_with_their_loop_do_not_count() -> None:
    """A pool of the module, and a loop for each test."""
    pool = Pool(ScriptedManager())
    loop = asyncio.new_event_loop()
    loop.run_until_complete(pool.__aenter__())
    loop.close()

    async def uses() -> None:
        async with pool:
            await hold(pool)

    asyncio.run(uses())
    assert "closed" in repr(pool)


@virtual
async def test_a_lease_tells_its_connections_id_and_age() -> None:
    """As events and holders() do."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        await hold(pool)
        await asyncio.sleep(3)
        lease = await pool.get()
        assert lease.connection_id == pool.holders()[0].connection_id
        assert lease.age == pytest.approx(3, abs=0.01)
        lease.release()


@virtual
async def test_a_timeout_marks_a_holder_whose_task_has_ended() -> None:
    """The lease is probably lost."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await asyncio.create_task(pool.get()._acquire(), name="quick")
        with pytest.raises(PoolTimeout, match=r"by quick \(the task has ended: lost\?\)"):
            await pool.get(1)
        lease.release()


@virtual
async def test_the_state_is_short_as_text() -> None:
    """For a log line."""
    async with Pool(ScriptedManager(), max_size=1) as pool, pool.get():
        assert str(pool.state()) == "1 in use, 0 idle, 0 waiting"
        waiter = asyncio.create_task(hold(pool))
        await turns()
        assert str(pool.state()) == "1 in use, 0 idle, 1 waiting"
        waiter.cancel()
    assert str(CloseReason.REPLACED) == "replaced"
