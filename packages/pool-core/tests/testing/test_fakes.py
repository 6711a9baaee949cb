"""The scripted manager does what its scripts say, and notices what a pool must never do."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable
from typing import Any

import pytest
from pool_core.testing import (
    NEVER,
    OK,
    Delay,
    FakeConnection,
    FakeManager,
    Gate,
    ScriptedCustomizer,
    ScriptedManager,
    Steps,
    SwallowCancel,
    run,
    settle,
)


async def _await(reset: Awaitable[None] | None) -> None:
    assert reset is not None
    await reset


def test_without_a_script_everything_succeeds_at_once() -> None:
    """The default is the healthy case, so that a test says only what differs."""

    async def main() -> None:
        manager = ScriptedManager()
        conn = await manager.connect()
        assert await manager.is_valid(conn) is True
        assert manager.has_broken(conn) is False
        assert manager.reset(conn) is None
        conn.dirty = True
        await _await(manager.reset(conn))
        assert not conn.dirty
        assert manager.is_transient(OSError()) is True
        manager.check(open=1)
        await manager.close(conn)
        assert conn.state == "closed"
        manager.check(open=0)
        assert asyncio.get_running_loop().time() == 0

    run(main)


def test_a_list_gives_one_outcome_to_each_call_and_then_the_default() -> None:
    """ "The second connect fails" is written as such."""

    async def main() -> None:
        manager = ScriptedManager(connect=[OK, OSError("refused"), Delay(3)], is_valid=[False, None, "yes", ValueError])
        first = await manager.connect()
        with pytest.raises(OSError, match="refused"):
            await manager.connect()
        third = await manager.connect()
        assert asyncio.get_running_loop().time() == 3
        assert [first.id, third.id] == [1, 3]
        assert [await manager.is_valid(first) for _ in range(3)] == [False, None, "yes"]
        with pytest.raises(ValueError):
            await manager.is_valid(first)
        assert await manager.is_valid(first) is True
        assert manager.log[:3] == [(0.0, "connect", 1), (0.0, "connect", 2), (0.0, "connect", 3)]
        assert manager.log[3] == (3.0, "is_valid", 1)

    run(main)


def test_a_single_outcome_or_a_function_answers_every_call() -> None:
    """ "It never connects", "only connection 2 is invalid"."""

    async def main() -> None:
        manager = ScriptedManager(is_valid=lambda conn: conn.id != 2, has_broken=RuntimeError)
        conns = [await manager.connect() for _ in range(3)]
        assert [await manager.is_valid(conn) for conn in conns] == [True, False, True]
        for conn in conns:
            with pytest.raises(RuntimeError):
                manager.has_broken(conn)
        manager.script(connect=NEVER)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(manager.connect(), 10)
        assert len(manager.connections) == 3
        assert manager.running["connect"] == 0
        assert manager.peak["connect"] == 1

    run(main)


def test_a_swallowed_cancel_ends_as_its_script_says() -> None:
    """Drivers on wait_for lose a cancel and return, or lose it and go on waiting, or cannot be cancelled at all."""

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def outcome(script: SwallowCancel, cancels: int) -> str:
            task = asyncio.create_task(ScriptedManager(connect=script).connect())
            for _ in range(cancels):
                await settle()
                task.cancel()
            await settle()
            if not task.done():
                for _ in range(3):
                    task.cancel()
                    await settle()
                return "waits"
            return "cancelled" if task.cancelled() else repr(task.result())

        assert await outcome(SwallowCancel(), 1) == "<FakeConnection 1 open>"
        assert await outcome(SwallowCancel(1, NEVER), 1) == "waits"
        assert await outcome(SwallowCancel(1, NEVER), 2) == "cancelled"
        assert await outcome(SwallowCancel(2, NEVER), 1) == "waits"
        assert await outcome(SwallowCancel(math.inf, seconds=5), 4) == "waits"
        assert loop.time() == 0
        await asyncio.sleep(5)

    run(main)


def test_steps_take_turns_and_no_time_and_outcomes_can_be_nested() -> None:
    """Each turn is one more place for a cancel to arrive."""

    async def main() -> None:
        manager = ScriptedManager(is_valid=Steps(3, Delay(1, False)), close=Delay(2, OSError("bye")))
        conn = await manager.connect()
        assert await manager.is_valid(conn) is False
        with pytest.raises(OSError, match="bye"):
            await manager.close(conn)
        assert conn.state == "closed"
        assert asyncio.get_running_loop().time() == 3

    run(main)


def test_calls_stand_at_a_gate_until_it_opens() -> None:
    """For "while a connect is under way" a test needs no guess about times."""

    async def main() -> None:
        gate = Gate()
        manager = ScriptedManager(connect=gate)
        tasks = [asyncio.create_task(manager.connect()) for _ in range(3)]
        await settle()
        assert gate.waiting == 3 == manager.running["connect"]
        tasks[0].cancel()
        await settle()
        assert gate.waiting == 2
        gate.open()
        await settle()
        assert [task.cancelled() for task in tasks] == [True, False, False]
        assert (await manager.connect()).id == 4
        failing = Gate()
        manager.script(connect=failing)
        late = asyncio.create_task(manager.connect())
        await settle()
        failing.open(OSError("no"))
        with pytest.raises(OSError, match="no"):
            await late

    run(main)


@pytest.mark.parametrize("missing", ["reset", "terminate", "is_transient"])
def test_a_manager_without_an_optional_verb_really_lacks_it(missing: str) -> None:
    """A pool may look for methods by getattr, hasattr, dir or on the class: it must find none."""
    manager = ScriptedManager(without=[missing])
    for verb in ("reset", "terminate", "is_transient"):
        present = verb != missing
        assert hasattr(manager, verb) is present
        assert hasattr(type(manager), verb) is present
        assert (verb in dir(manager)) is present
        assert (inspect.getattr_static(manager, verb, None) is not None) is present
    assert isinstance(manager, ScriptedManager)


def test_a_subclass_keeps_its_own_verbs() -> None:
    """A test may override one method and leave the rest to the scripts."""

    class Own(ScriptedManager):
        def is_transient(self, exc: BaseException, /) -> bool:
            return False

    manager = Own(without=["reset"])
    assert manager.is_transient(OSError()) is False
    assert not hasattr(manager, "reset")
    assert hasattr(manager, "terminate")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScriptedManager(conect=OK), "conect: not a method of a manager"),
        (lambda: ScriptedManager(without=["connect"]), "only reset, terminate, is_transient can be left out"),
        (lambda: ScriptedManager(without=["reset"], reset=OK), "reset: left out, and yet given a script"),
        (lambda: ScriptedManager(has_broken=Delay(1)), "has_broken is synchronous and cannot wait: Delay"),
        (lambda: ScriptedManager(terminate=[OK, NEVER]), "terminate is synchronous and cannot wait: NEVER"),
    ],
)
def test_a_wrong_script_is_refused_when_it_is_given(make: Any, message: str) -> None:
    """Otherwise a test with a misspelt method would check nothing."""
    with pytest.raises(TypeError, match=message):
        make()


def test_what_a_pool_must_never_do_is_remembered() -> None:
    """A pool contains what its manager raises, so check() tells it again at the end of the test."""

    async def main() -> None:
        manager = ScriptedManager()
        conn = await manager.connect()
        await manager.close(conn)
        for misuse in (manager.close(conn), manager.is_valid(conn)):
            with pytest.raises(AssertionError):
                await misuse
        with pytest.raises(AssertionError):
            manager.has_broken(conn)
        with pytest.raises(AssertionError, match="close of <FakeConnection 1 closed>.*is_valid of.*has_broken of"):
            manager.check()
        with pytest.raises(AssertionError, match="0 connections are open instead of 1"):
            manager.check(open=1)

    run(main)


def test_two_calls_on_one_connection_at_once_are_a_fault_but_terminate_may_come_at_any_time() -> None:
    """Closing while the test of the same connection still runs would mix two conversations."""

    async def main() -> None:
        manager = ScriptedManager(is_valid=NEVER)
        conn = await manager.connect()
        stuck = asyncio.create_task(manager.is_valid(conn))
        await settle()
        with pytest.raises(AssertionError, match="while its is_valid is still running"):
            await manager.close(conn)
        stuck.cancel()
        await settle()
        manager.faults.clear()
        other = await manager.connect()
        stuck = asyncio.create_task(manager.is_valid(other))
        await settle()
        manager.terminate(other)
        assert other.state == "terminated"
        stuck.cancel()
        await settle()
        manager.check()
        with pytest.raises(AssertionError, match="terminate of <FakeConnection 2 terminated>"):
            manager.terminate(other)

    run(main)


def test_a_cancelled_close_leaves_the_connection_half_closed_until_it_is_terminated() -> None:
    """A pool whose close_timeout passed has to drop the socket."""

    async def main() -> None:
        manager = ScriptedManager(close=NEVER)
        conn = await manager.connect()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(manager.close(conn), 5)
        assert conn.state == "closing"
        assert manager.open == [conn]
        manager.terminate(conn)
        manager.check(open=0)

    run(main)


def test_a_dead_connection_shows_only_to_those_who_try_it() -> None:
    """The two ways to lose a server: the driver knows, or nobody does."""

    async def main() -> None:
        manager = ScriptedManager()
        silent, known = await manager.connect(), await manager.connect()
        known.broken = True
        silent.dead = True
        assert [manager.has_broken(silent), manager.has_broken(known)] == [False, True]
        assert await manager.is_valid(silent) is False
        with pytest.raises(ConnectionResetError):
            await silent.query()
        assert manager.has_broken(silent)
        third = await manager.connect()
        manager.kill(known=True)
        assert third.broken
        assert repr(third) == "<FakeConnection 3 open broken dead>"

    run(main)


def test_a_connection_in_two_hands_and_an_interrupted_query_are_noticed() -> None:
    """One owner per connection; and a half-read answer makes it unfit."""

    async def main() -> None:
        manager = ScriptedManager()
        conn = await manager.connect()
        query = asyncio.create_task(conn.query(5))
        await settle()
        with pytest.raises(AssertionError, match="by two at once"):
            await conn.query()
        query.cancel()
        await settle()
        assert conn.broken
        await manager.close(conn)
        with pytest.raises(AssertionError, match="though it is closed"):
            await conn.query()

    run(main)


def test_hooks_are_scripted_and_logged_like_verbs() -> None:
    """The customizer can fail and hang like the rest."""

    async def main() -> None:
        hooks = ScriptedCustomizer(on_connect=[OK, OSError("hook")], on_close=Delay(2))
        conn = FakeConnection(7)
        await hooks.on_connect(conn)
        with pytest.raises(OSError, match="hook"):
            await hooks.on_connect(conn)
        await hooks.on_close(conn)
        assert hooks.log == [(0.0, "on_connect", 7), (0.0, "on_connect", 7), (0.0, "on_close", 7)]
        assert asyncio.get_running_loop().time() == 2

    run(main)


def test_terminate_and_has_broken_work_without_a_running_loop() -> None:
    """A lease may be garbage after the loop is closed."""
    manager = ScriptedManager()
    conn = run(manager.connect)
    assert manager.has_broken(conn) is False
    manager.terminate(conn)
    assert math.isnan(manager.log[-1].time)


def test_the_fast_fake_has_every_verb() -> None:
    """Benchmarks measure the pool, not the fake."""

    async def main() -> None:
        manager = FakeManager()
        conn = await manager.connect()
        assert manager.created == conn.id == 1
        assert await manager.is_valid(conn)
        assert not manager.has_broken(conn)
        assert manager.reset(conn) is None
        conn.dirty = True
        await _await(manager.reset(conn))
        assert not conn.dirty
        assert manager.is_transient(OSError())
        await manager.close(conn)
        assert conn.state == "closed"
        manager.terminate(conn)
        assert repr(conn) == "<FakeConnection 1 terminated>"

    run(main)
