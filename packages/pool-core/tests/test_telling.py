"""What the pool tells: events, statistics, errors, numbers; and what it never tells."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import warnings
from typing import Any

import pytest
from pool_core import (
    CheckedIn,
    CheckedOut,
    Closed,
    CloseReason,
    Connected,
    ConnectFailed,
    Event,
    Pool,
    PoolConfig,
    PoolError,
    PoolFull,
    PoolOptions,
    PoolOverloaded,
    PoolTimeout,
    QueueStrategy,
    ReplaceConnection,
    ResetFailed,
    TimedOut,
)
from pool_core.testing import NEVER, OK, Delay, ScriptedCustomizer, ScriptedManager

from .helpers import books, hold, turns, virtual


@virtual
async def test_events_come_in_the_order_of_r2d2() -> None:
    """acquire, checkout, timeout, checkin, release, acquire with a greater id, checkout."""
    events: list[Event] = []
    async with Pool(ScriptedManager(), max_size=1, listeners=[events.append]) as pool:
        lease = await pool.get()
        await asyncio.sleep(1)
        with pytest.raises(PoolTimeout):
            await pool.get(timeout=2)
        lease.conn.broken = True
        lease.release()
        async with pool.get():
            pass
    first = events[0].connection_id  # type: ignore[union-attr]
    second = events[5].connection_id  # type: ignore[union-attr]
    assert second > first
    assert events == [
        Connected(first),
        CheckedOut(first, 0.0),
        TimedOut(2),
        CheckedIn(first, 3.0),
        Closed(first, 3.0, CloseReason.BROKEN),
        Connected(second),
        CheckedOut(second, 0.0),
        CheckedIn(second, 0.0),
        Closed(second, 0.0, CloseReason.POOL_CLOSED),
    ]


@virtual
async def test_failures_are_events_too() -> None:
    """Connects and resets."""
    events: list[Event] = []
    down, dirty = OSError("down"), OSError("dirty")
    manager = ScriptedManager(connect=[down], reset=[Delay(0, dirty)])
    async with Pool(manager, listeners=[events.append], error_sink=lambda _: None) as pool:
        lease = await pool.get()
        lease.release()
        await turns()
        await (await pool.get()).detach().query()
    assert ConnectFailed(down) in events
    assert any(isinstance(event, ResetFailed) and event.error is dirty for event in events)
    assert [event.reason for event in events if isinstance(event, Closed)] == [
        CloseReason.RESET_FAILED,
        CloseReason.DETACHED,
    ]


@virtual
async def test_one_direct_and_one_waited_get_are_told_apart() -> None:
    """bb8's test: and the wait time is above zero."""
    async with Pool(ScriptedManager(), max_size=1, min_idle=1) as pool:
        lease = await pool.get()
        waiter = asyncio.create_task(hold(pool))
        await asyncio.sleep(2)
        lease.release()
        await waiter
        totals = pool.state().statistics
        assert (totals.gets_started, totals.gets_direct, totals.gets_waited, totals.get_wait_time) == (2, 1, 1, 2.0)
        assert totals.connections_created == 1


@virtual
async def test_a_get_counts_as_waiting_until_its_task_goes_on() -> None:
    """Otherwise the sums would not reconcile in between."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        lease = await pool.get()
        waiter = asyncio.create_task(hold(pool))
        await turns()
        lease.release()
        assert (pool.state().waiting, pool.state().in_use) == (1, 1)
        assert pool.state().statistics.gets_started == 2
        await waiter
        assert pool.state().waiting == 0


@virtual
async def test_snapshots_cannot_be_changed() -> None:
    """They are pictures."""
    async with Pool(ScriptedManager()) as pool:
        pictures: list[Any] = [pool.state(), pool.state().statistics, pool.config]
        for picture in pictures:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(picture, dataclasses.fields(picture)[0].name, 1)


@pytest.mark.parametrize("seed", range(12))
@virtual
async def test_the_books_balance_after_a_random_storm_of_every_operation(seed: int) -> None:
    """Outcomes are counted outside of the pool and compared: derived counters prove nothing."""
    rng = random.Random(seed)
    counts = dict.fromkeys(["served", "tried", "timed_out", "cancelled", "failed", "added"], 0)
    options: dict[str, Any] = {
        "max_size": rng.randint(1, 6),
        "alive_bypass": rng.choice([0, 0.5]),
        "max_uses": rng.choice([None, 5]),
        "max_lifetime": rng.choice([None, 20.0]),
        "idle_timeout": rng.choice([None, 3.0]),
        "reap_interval": 1.0,
        "max_waiting": rng.choice([None, 4]),
        "queue_strategy": rng.choice(list(QueueStrategy)),
        "retry_connection": rng.random() < 0.7,
        "discard_on_exception": rng.random() < 0.3,
        "listeners": rng.choice([[], [lambda _: None]]),
    }

    def outcome(verb: str) -> Any:
        def draw(_: object) -> Any:
            dice = rng.random()
            if dice < 0.75:
                return OK
            if dice < 0.85:
                return Delay(rng.random())
            if dice < 0.9 and verb != "connect":
                return NEVER
            return OSError(verb) if verb != "is_valid" else False

        return draw

    manager = ScriptedManager(
        connect=outcome("connect"), is_valid=outcome("is_valid"), reset=outcome("reset"), close=outcome("close")
    )
    plain = ScriptedManager()
    hooks = ScriptedCustomizer(on_connect=outcome("on_connect"), on_close=outcome("on_close"))
    pool = Pool(
        manager,
        connection_timeout=4,
        create_timeout=1,
        validation_timeout=1,
        reset_timeout=1,
        close_timeout=1,
        customizer=hooks,
        error_sink=lambda _: None,
        **options,
    )
    leases: list[Any] = []

    async def user() -> None:
        await asyncio.sleep(rng.random() * 10)
        try:
            lease = await pool.get(rng.choice([None, None, 0, 0.3]))
        except PoolTimeout:
            counts["timed_out"] += 1
            return
        except asyncio.CancelledError:
            if pool_touched:
                counts["cancelled"] += 1
            raise
        except PoolError:
            counts["failed"] += 1
            return
        counts["served"] += 1
        leases.append(lease)
        try:
            await asyncio.sleep(rng.random())
            if rng.random() < 0.1:
                lease.conn.broken = True
            if rng.random() < 0.1:
                raise KeyError
        except KeyError:
            lease.release()
        finally:
            rng.choice([lease.release, lease.release, lease.release, lease.discard])()

    async def in_block() -> None:
        try:
            async with pool.get() as conn:
                counts["served"] += 1
                await asyncio.sleep(rng.random())
                if rng.random() < 0.2:
                    conn.dirty = True
                    raise KeyError
        except PoolTimeout:
            counts["timed_out"] += 1
        except (PoolError, KeyError) as error:
            counts["failed"] += isinstance(error, PoolError)

    async def owner() -> None:
        for _ in range(20):
            await asyncio.sleep(rng.random())
            act = rng.randint(0, 5)
            if act == 0:
                pool.evict(None if rng.random() < 0.5 else lambda _: rng.random() < 0.5)
            elif act == 1:
                pool.resize(max_size=rng.randint(1, 6))
            elif act == 2 and (lease := await pool.try_get()) is not None:
                counts["tried"] += 1
                manager.terminate(lease.detach())
            elif act == 3:
                async with asyncio.timeout(0.5):
                    try:
                        async with pool.dedicated_connection():
                            await asyncio.sleep(0.01)
                    except (OSError, PoolError):
                        pass
            elif act == 4:
                conn = await plain.connect()
                try:
                    pool.add(conn)
                    counts["added"] += 1
                except PoolFull:
                    await plain.close(conn)

    pool_touched = True
    await pool.open()
    owning = asyncio.create_task(owner())
    users = [asyncio.create_task(rng.choice([user, in_block])()) for _ in range(60)]
    for _ in range(40):
        await asyncio.sleep(0.25)
        books(pool)
    await asyncio.gather(*users, return_exceptions=True)
    await asyncio.gather(owning, return_exceptions=True)
    totals = pool.state().statistics
    assert totals.gets_direct + totals.gets_waited == counts["served"] + counts["tried"]
    assert totals.connections_added == counts["added"]
    assert totals.gets_timed_out == counts["timed_out"]
    assert totals.gets_failed == counts["failed"]
    assert totals.gets_started == counts["served"] + counts["tried"] + counts["timed_out"] + counts["failed"]
    await pool.close()
    books(pool)
    manager.check(open=0)


@virtual
async def test_every_close_reason_is_reached() -> None:
    """And each is counted where it belongs."""
    async with Pool(
        ScriptedManager(is_valid=[False], reset=[OK, OSError("no")]),
        max_size=9,
        max_uses=9,
        max_lifetime=1000,
        lifetime_jitter=0,
        idle_timeout=100,
        reap_interval=10,
        error_sink=lambda _: None,
    ) as pool:
        await hold(pool)
        await asyncio.sleep(5)
        await hold(pool)  # invalid, and then reset_failed
        (await pool.get()).discard()
        await pool._shell.calls.manager.close((await pool.get()).detach())
        lease = await pool.get()
        lease.conn.broken = True
        lease.release()
        for _ in range(9):
            await hold(pool)
        await hold(pool)
        pool.evict()
        await hold(pool)
        await asyncio.sleep(120)
        lease = await pool.get()
        await asyncio.sleep(1001)
        lease.release()
        leases = [await pool.get() for _ in range(2)]
        pool.resize(max_size=1)
        for lease in leases:
            lease.release()
        lost = await pool.get()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del lost, lease, leases
        await turns()
        await hold(pool)
        pool._shell.calls.manager.script(reset=ReplaceConnection())  # type: ignore[attr-defined]
        await hold(pool)
        await turns()
        pool._shell.calls.manager.script(reset=OK, connect=Delay(0.1))  # type: ignore[attr-defined]
        pool.resize(max_size=4)
        await hold(pool)
        await asyncio.gather(*(hold(pool, 0.01) for _ in range(4)))
        await asyncio.sleep(1)
    missing = {reason for reason, count in pool.state().statistics.connections_closed.items() if not count}
    assert missing == set()
    books(pool)


BAD_OPTIONS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"max_size": 0}, ValueError),
    ({"max_size": 2.5}, TypeError),
    ({"max_size": True}, TypeError),
    ({"max_size": None}, TypeError),
    ({"min_idle": -1}, ValueError),
    ({"min_idle": 11}, ValueError),
    ({"max_uses": 0}, ValueError),
    ({"max_waiting": -1}, ValueError),
    ({"max_connecting": 0}, ValueError),
    ({"max_lifetime": 0}, ValueError),
    ({"max_lifetime": -1}, ValueError),
    ({"max_lifetime": float("nan")}, ValueError),
    ({"max_lifetime": "1800"}, TypeError),
    ({"idle_timeout": 0}, ValueError),
    ({"connection_timeout": 0}, ValueError),
    ({"create_timeout": -2}, ValueError),
    ({"validation_timeout": float("nan")}, ValueError),
    ({"reset_timeout": 0}, ValueError),
    ({"close_timeout": 0}, ValueError),
    ({"reap_interval": 0}, ValueError),
    ({"reap_interval": None}, TypeError),
    ({"reap_interval": float("inf")}, ValueError),
    ({"alive_bypass": -0.1}, ValueError),
    ({"lifetime_jitter": 1}, ValueError),
    ({"lifetime_jitter": float("nan")}, ValueError),
    ({"lifetime_jitter": "much"}, TypeError),
    ({"leak_threshold": 0}, ValueError),
    ({"queue_strategy": "lifo"}, TypeError),
    ({"retry_connection": 1}, TypeError),
    ({"name": None}, TypeError),
    ({"error_sink": "log"}, TypeError),
    ({"listeners": print}, TypeError),
    ({"listeners": ["print"]}, TypeError),
    ({"customizer": "neither hook"}, TypeError),
    ({"max_sise": 3}, TypeError),
]


@pytest.mark.parametrize(("options", "error"), BAD_OPTIONS, ids=str)
def test_a_bad_option_is_refused_before_any_io_with_its_name_and_value(
    options: dict[str, Any], error: type[Exception]
) -> None:
    """What was given, what is allowed."""
    manager = ScriptedManager()
    [(name, value)] = options.items()
    with pytest.raises(error, match=name) as caught:
        Pool(manager, **options)
    assert repr(value) in str(caught.value) or name in ("customizer", "listeners", "max_sise")
    assert manager.log == []


def test_every_option_of_the_pool_is_typed_and_every_typed_option_exists() -> None:
    """PoolOptions and PoolConfig are two views of one list."""
    assert set(PoolOptions.__annotations__) == {field.name for field in dataclasses.fields(PoolConfig)}


class Whole:
    """A manager."""

    async def connect(self) -> object:
        return object()

    async def is_valid(self, _: object) -> bool:
        return True

    def has_broken(self, _: object) -> bool:
        return False

    async def close(self, _: object) -> None:
        pass


def test_what_is_no_manager_is_refused_by_what_it_lacks() -> None:
    """An adapter author's first error message."""

    class NoConnect(Whole):
        connect = None  # type: ignore[assignment]

    class Misspelt(Whole):
        is_valid = None  # type: ignore[assignment]

        async def isvalid(self, _: object) -> bool:
            return True

    class AsyncBroken(Whole):
        async def has_broken(self, _: object) -> bool:  # type: ignore[override]
            return False

    for manager, text in (
        (NoConnect(), "NoConnect has no method connect"),
        (Misspelt(), "did you mean is_valid by 'isvalid'"),
        (AsyncBroken(), "has_broken is a coroutine function"),
        (Whole, "Whole is a class: give an instance"),
        (None, "NoneType has no method connect, is_valid, has_broken, close"),
    ):
        with pytest.raises(TypeError, match=text.replace("(", r"\(")):
            Pool(manager)  # type: ignore[arg-type]


def test_a_near_miss_of_an_optional_verb_warns() -> None:
    """``resett`` would never be called."""

    class Near(Whole):
        def resett(self, _: object) -> None:
            pass

        name = "x"

    with pytest.warns(UserWarning, match="Near has 'resett', but no 'reset'"):
        Pool(Near())
    Pool(Whole())


@virtual
async def test_no_secret_appears_in_anything_the_pool_shows(caplog: pytest.LogCaptureFixture) -> None:
    """The core never formats a manager, a connection or its arguments."""

    class Secretive(ScriptedManager):
        password = "canary"

        def __repr__(self) -> str:
            return "Secretive('canary')"

    shown: list[str] = []
    manager = Secretive(connect=[OSError("down")])
    pool = Pool(manager, max_size=1, max_waiting=0, name="orders", leak_threshold=5)
    async with pool:
        shown += [repr(pool), repr(pool.state()), repr(pool.config)]
        async with pool.get():
            for get in (pool.get(), pool.get(1), pool.get(0)):
                with pytest.raises((PoolOverloaded, PoolTimeout)) as caught:
                    await get
                shown += [repr(caught.value), str(caught.value)]
            shown += [repr(pool.holders()), repr(pool.get()), repr(asyncio.all_tasks())]
        await asyncio.sleep(60)
    shown.append(caplog.text)
    assert "canary" not in "".join(shown)


@pytest.mark.parametrize("changes", [1, 3, 99])
@virtual
async def test_numbers_read_while_another_thread_changes_them_are_read_again(changes: int) -> None:
    """Exporters of metrics look from threads of their own: no count may seem to go backwards. At some time it ends."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        await hold(pool)
        state = pool._state
        left = [changes]

        class Moves:
            """A connection whose use ends while it is counted."""

            @property
            def uses(self) -> int:
                if left[0]:
                    left[0] -= 1
                    state.counters.uses_gone += 1
                return 0

        slots = state.slots
        state.slots = {**slots, Moves(): None}  # type: ignore[dict-item]
        try:
            numbers = state.snapshot().statistics
        finally:
            state.slots = slots
        served = numbers.gets_direct + numbers.gets_waited
        assert served == state.counters.uses_gone + (0 if changes == 99 else 1)
        state.counters.uses_gone = 0
