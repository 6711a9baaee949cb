"""What the pool's owner may do to it: add, resize, evict, connections beside the pool, and the guard."""

from __future__ import annotations

import asyncio

import pytest
from pool_core import BrokenConnection, Pool, PoolClosed, PoolError, PoolFull, PoolTimeout
from pool_core.testing import NEVER, OK, Delay, FakeConnection, ScriptedCustomizer, ScriptedManager

from .helpers import books, closed, hold, turns, virtual


@virtual
async def test_an_added_connection_is_lent_though_connecting_is_impossible() -> None:
    """bb8's test."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=2, error_sink=lambda _: None) as pool:
        conn = await manager.connect()
        manager.script(connect=OSError("down"))
        waiter = asyncio.create_task(hold(pool))
        await turns()
        pool.add(conn)
        assert await waiter is conn
        assert pool.state().statistics.connections_added == 1
        books(pool)


@virtual
async def test_add_until_full_then_pool_full_gives_the_connection_back() -> None:
    """bb8's NoCapacity."""
    manager = ScriptedManager()
    async with Pool(manager, max_size=2) as pool:
        for _ in range(2):
            pool.add(await manager.connect())
        extra = await manager.connect()
        with pytest.raises(PoolFull, match="max_size=2") as caught:
            pool.add(extra)
        assert caught.value.connection is extra
        await manager.close(extra)
        books(pool)


@virtual
async def test_add_refuses_a_broken_one_before_it_looks_for_room() -> None:
    """Broken is checked first; on_connect does not run."""
    manager = ScriptedManager()
    hooks = ScriptedCustomizer()
    async with Pool(manager, max_size=1, customizer=hooks) as pool:
        pool.add(await manager.connect())
        broken = await manager.connect()
        broken.broken = True
        with pytest.raises(BrokenConnection) as caught:
            pool.add(broken)
        assert caught.value.connection is broken
        assert hooks.log == []
        await manager.close(broken)
    with pytest.raises(PoolClosed):
        pool.add(broken)


@virtual
async def test_growing_serves_the_waiters_at_once() -> None:
    """resize mints what the new size allows."""
    async with Pool(ScriptedManager(), max_size=1) as pool:
        async with pool.get():
            waiter = asyncio.create_task(hold(pool))
            await turns()
            pool.resize(max_size=2)
            await asyncio.wait_for(waiter, 1)
        assert pool.config.max_size == 2
        books(pool)


@virtual
async def test_growing_closes_no_idle_connection() -> None:
    """Only what is above max_size is surplus."""
    async with Pool(ScriptedManager(), max_size=3) as pool:
        await asyncio.gather(*(hold(pool, 0.1) for _ in range(3)))
        pool.resize(max_size=5)
        assert pool.state().idle == 3
        closed(pool)
        books(pool)


@virtual
async def test_shrinking_closes_idle_ones_now_and_lent_ones_on_return() -> None:
    """Only while open > max_size: closing ones make no further one surplus."""
    async with Pool(ScriptedManager(close=Delay(5)), max_size=6) as pool:
        leases = [await pool.get() for _ in range(6)]
        for lease in leases[:2]:
            lease.release()
        pool.resize(max_size=3)
        closed(pool, resized=2)
        for lease in leases[2:]:
            lease.release()
        closed(pool, resized=3)
        assert pool.state().idle == 3
        books(pool)


@virtual
async def test_a_connect_under_way_when_the_pool_shrinks_is_closed_on_arrival() -> None:
    """It would make one too many."""
    async with Pool(ScriptedManager(connect=[OK, Delay(1)]), max_size=2) as pool:
        lease = await pool.get()
        waiter = asyncio.create_task(hold(pool))
        await turns()
        pool.resize(max_size=1)
        await asyncio.sleep(2)
        closed(pool, resized=1)
        lease.release()
        await waiter
        books(pool)


@virtual
async def test_an_invalid_size_changes_nothing() -> None:
    """The pair is checked first."""
    async with Pool(ScriptedManager(), max_size=5, min_idle=2) as pool:
        before = pool.config
        for sizes in ({"max_size": 1}, {"min_idle": 6}, {"max_size": 0}):
            with pytest.raises(ValueError, match=r"max_size|min_idle"):
                pool.resize(**sizes)
        assert pool.config is before
        pool.resize(min_idle=4)
        await turns(20)
        assert pool.state().idle == 4
        books(pool)


def test_a_pool_may_be_resized_before_it_is_opened() -> None:
    """Then it is just an option."""
    pool = Pool(ScriptedManager(), max_size=5)
    pool.resize(max_size=7)
    assert pool.config.max_size == 7


@virtual
async def test_evict_retires_the_whole_generation_with_those_on_their_way() -> None:
    """HikariCP #1081: after a failover the old primary."""
    manager = ScriptedManager(connect=[OK, OK, Delay(1), OK])
    async with Pool(manager, max_size=5, min_idle=1) as pool:
        lease = await pool.get()
        await turns(20)
        late = asyncio.create_task(hold(pool))
        other = asyncio.create_task(hold(pool))
        await turns()
        assert pool.evict() >= 2
        lease.release()
        await asyncio.gather(late, other)
        await asyncio.sleep(2)
        old = manager.connections[:3]
        assert all(conn.state == "closed" for conn in old)
        assert pool.state().idle >= 1
        books(pool)


@virtual
async def test_evict_with_a_predicate_judges_each_connection_now() -> None:
    """Idle connections close now, those in use on their return; evict() returns how many it marked."""
    async with Pool(ScriptedManager(), max_size=4) as pool:
        leases = [await pool.get() for _ in range(4)]
        leases[0].release()
        marked = {leases[1].conn, pool._state.fresh[0].conn}
        assert pool.evict(lambda conn: conn in marked) == 2
        closed(pool, evicted=1)
        for lease in leases[1:]:
            lease.release()
        closed(pool, evicted=2)
        books(pool)


@virtual
async def test_a_predicate_that_raises_leaves_the_pool_as_it_was() -> None:
    """It is the caller's error, and the caller's to see."""

    def bad(_: object) -> bool:
        raise KeyError("bug")

    async with Pool(ScriptedManager(), max_size=2) as pool:
        await hold(pool)
        with pytest.raises(KeyError):
            pool.evict(bad)
        assert pool.state().idle == 1
        books(pool)
    with pytest.raises(PoolClosed):
        pool.evict()


@virtual
async def test_a_dedicated_connection_is_customized_and_neither_counted_nor_pooled() -> None:
    """bb8's dedicated_connection: for LISTEN, for migrations."""
    hooks = ScriptedCustomizer()
    manager = ScriptedManager()
    async with Pool(manager, max_size=1, customizer=hooks) as pool:
        async with pool.get(), pool.dedicated_connection() as conn:
            assert isinstance(conn, FakeConnection)
            assert pool.state().in_use == 1
        mine = await pool.dedicated_connection()
        await turns()
        assert conn.state == "closed"
        assert pool.state().statistics.connections_created == 1
        assert [call.verb for call in hooks.log] == ["on_connect"] * 3
        await manager.close(mine)
        books(pool)


@virtual
async def test_a_dedicated_connection_raises_the_drivers_error_unchanged() -> None:
    """No wrapper, no retry."""
    error = PermissionError("no")
    async with Pool(ScriptedManager(connect=error)) as pool:
        with pytest.raises(PermissionError) as caught:
            await pool.dedicated_connection()
        assert caught.value is error
    with pytest.raises(PoolClosed):
        await pool.dedicated_connection()


@virtual
async def test_a_dedicated_connect_is_cut_off_by_create_timeout() -> None:
    """PoolTimeout, phase connect."""
    async with Pool(ScriptedManager(connect=NEVER), create_timeout=2) as pool:
        with pytest.raises(PoolTimeout) as caught:
            await pool.dedicated_connection()
        assert caught.value.phase == "connect"
        assert caught.value.waited == pytest.approx(2)
        assert pool.state().statistics.gets_timed_out == 0


@virtual
async def test_a_cancelled_dedicated_connect_leaves_nothing_open() -> None:
    """It was the caller's own, so it is called off."""
    manager = ScriptedManager(connect=Delay(1))
    async with Pool(manager) as pool:
        task = asyncio.ensure_future(pool.dedicated_connection().__aenter__())
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.sleep(2)
        assert task.cancelled()
        assert manager.open == []


@virtual
async def test_closing_the_pool_ends_a_dedicated_connect() -> None:
    """The close also waits until dedicated connections that left their block are closed."""
    pool = Pool(ScriptedManager(connect=[OK, NEVER], close=Delay(1)))
    await pool.open()
    async with pool.dedicated_connection() as conn:
        pass
    task = asyncio.ensure_future(pool.dedicated_connection().__aenter__())
    await turns()
    await pool.close(3)
    assert conn.state == "closed"
    with pytest.raises(PoolClosed):
        await task


@virtual
async def test_the_guard_refuses_use_after_release_and_is_transparent_before() -> None:
    """For tests and staging; isinstance still holds."""
    async with Pool(ScriptedManager(), guard=True, max_size=1) as pool:
        async with pool.get() as conn:
            assert isinstance(conn, FakeConnection)
            await conn.query()
            conn.dirty = True
            del conn.dirty
            conn.dirty = False
            assert conn == conn  # noqa: PLR0124
            assert "guarded FakeConnection" in repr(conn)
        for use in (lambda: conn.id, lambda: conn.query(), lambda: conn == conn):  # noqa: PLR0124
            with pytest.raises(PoolError, match="was released"):
                use()
        with pytest.raises(PoolError, match="was released"):
            conn.dirty = True
        with pytest.raises(PoolError, match="was released"):
            del conn.dirty
        lease = await pool.get()
        kept = lease.conn
        assert kept.id
        async with lease as same:
            assert same.id == kept.id
        with pytest.raises(PoolError, match="was released"):
            _ = kept.id
        books(pool)


@virtual
async def test_a_cancelled_dedicated_connect_ends_the_call_of_the_manager() -> None:
    """Nobody would ever close what it brings."""
    manager = ScriptedManager(connect=NEVER)
    async with Pool(manager, create_timeout=None) as pool:
        opening = asyncio.ensure_future(pool.dedicated_connection()._connect())
        await turns()
        assert manager.running["connect"] == 1
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await turns()
        assert manager.running["connect"] == 0


@virtual
async def test_the_pool_gives_the_manager_that_it_was_made_with() -> None:
    """For `update`, and for what is built on top of a pool."""
    manager = ScriptedManager()
    assert Pool(manager).manager is manager
