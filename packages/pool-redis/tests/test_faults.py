"""The pool over a Redis that dies, hangs, restarts and cuts: who waits is served, and nobody gets a wrong answer."""

# redis-py types the commands of a pipeline as awaitables, and some of its methods not at all.
# mypy: disable-error-code="no-untyped-call,attr-defined"
# pyright: reportAttributeAccessIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false

import asyncio
import itertools
import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest
from load import balanced
from pool_core import CloseReason, Pool, PoolTimeout, Verdict
from pool_core.testing import FaultProxy, acancel_everywhere
from pool_core.testing import Injector as Inject
from pool_redis import (
    LeasedRedis,
    RedisClusterConnectionManager,
    RedisConnectionManager,
    RedisPool,
    RedisSentinelConnectionManager,
)
from redis.asyncio import Redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from containers.servers import Server, ServerFactory

PASSWORD = "canary-7f3a"
_numbers = itertools.count()


async def echo(pool: Pool[LeasedRedis]) -> None:
    """One lease, one command, and the answer must be its own."""
    mine = f"{next(_numbers)}".encode()
    async with pool.get() as client:
        assert await client.echo(mine) == mine


def quiet(manager: RedisConnectionManager, **options: Any) -> Pool[LeasedRedis]:
    """A pool that reports its outages to nobody."""
    return Pool(manager, error_sink=lambda _: None, **options)


def test_a_connection_killed_while_idle_is_not_lent(manager: RedisConnectionManager, run: Any) -> None:
    """CLIENT KILL on everything idle: has_broken sees it without a round trip, and no borrower does."""

    async def main() -> None:
        killer = await manager.connect()
        async with quiet(manager, max_size=4, min_idle=4) as pool:
            await asyncio.gather(*(echo(pool) for _ in range(8)))
            await killer.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.05)
            await asyncio.gather(*(echo(pool) for _ in range(20)))
            assert pool.state().statistics.connections_closed[CloseReason.BROKEN] >= 4
            balanced(pool)
        await manager.close(killer)

    run(main())


def test_a_waiter_behind_a_killed_connection_gets_a_new_one(manager: RedisConnectionManager, run: Any) -> None:
    """The borrower sees the error, the waiter does not."""

    async def main() -> None:
        killer = await manager.connect()
        async with quiet(manager, max_size=1) as pool:
            waiters: list[asyncio.Task[None]] = []
            with pytest.raises(RedisError):
                async with pool.get() as client:
                    waiters.append(asyncio.create_task(echo(pool)))
                    await asyncio.sleep(0)
                    await killer.client_kill_filter(_id=str(await client.client_id()))
                    await client.ping()
            began = time.monotonic()
            await asyncio.gather(*waiters)
            assert time.monotonic() - began < 1
            balanced(pool)
        await manager.close(killer)

    run(main())


def test_a_server_that_cuts_idle_connections_is_not_noticed(server: ServerFactory, dialect: str, run: Any) -> None:
    """The server's `timeout` closes what is idle: the next borrower gets a new connection and no error."""
    with server(dialect, fresh=True, args=["--timeout", "1", "--hz", "100"]) as mine:

        async def main() -> None:
            async with quiet(RedisConnectionManager(mine.url), max_size=2) as pool:
                await asyncio.gather(echo(pool), echo(pool))
                await asyncio.sleep(2.3)
                await asyncio.gather(*(echo(pool) for _ in range(5)))
                assert pool.state().statistics.connections_closed[CloseReason.BROKEN] >= 1

        run(main())


@pytest.fixture(scope="module")
def hung(server: ServerFactory, dialect: str) -> Any:
    """A server for the tests that pause, kill and restart."""
    with server(dialect, fresh=True) as mine:
        yield mine


@pytest.mark.cancellation
def test_a_query_on_a_hung_server_can_be_cancelled(hung: Server, run: Any) -> None:
    """The caller is back at once, the connection is gone, and close() ends."""

    async def main() -> None:
        pool = quiet(RedisConnectionManager(hung.url), max_size=2, close_timeout=1, validation_timeout=1)
        await pool.open()
        await echo(pool)
        await asyncio.to_thread(hung.pause)
        try:
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), pool.get() as client:
                    await client.get("x")
            assert time.monotonic() - began < 1
            began = time.monotonic()
            with pytest.raises(PoolTimeout):
                await pool.get(timeout=0.5)
            assert time.monotonic() - began < 1
            began = time.monotonic()
            await pool.close(timeout=1)
            assert time.monotonic() - began < 2
        finally:
            await asyncio.to_thread(hung.unpause)

    run(main())


def test_idle_connections_to_a_server_that_hung_are_tested(hung: Server, run: Any) -> None:
    """A frozen server looks alive: the test fails in time, and the get is served when the server is back."""

    async def main() -> None:
        manager = RedisConnectionManager(hung.url)
        async with quiet(manager, max_size=2, alive_bypass=0, validation_timeout=0.3, create_timeout=0.5) as pool:
            await asyncio.gather(echo(pool), echo(pool))
            await asyncio.to_thread(hung.pause)
            waiting = [asyncio.create_task(echo(pool)) for _ in range(5)]
            await asyncio.sleep(0.6)
            await asyncio.to_thread(hung.unpause)
            await asyncio.gather(*waiting)
            balanced(pool)

    run(main())


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_waiters_are_served_after_a_restart(hung: Server, how: str, run: Any) -> None:
    """200 gets over a restart: all served, few connects, the first within three seconds of the return."""

    async def main() -> None:
        async with quiet(RedisConnectionManager(hung.url), max_size=5) as pool:
            await asyncio.gather(*(echo(pool) for _ in range(10)))
            await asyncio.to_thread(getattr(hung, how))
            waiting = [asyncio.create_task(echo(pool)) for _ in range(200)]
            await asyncio.sleep(0.7)
            assert not any(task.done() for task in waiting)
            await asyncio.to_thread(hung.start)
            back = time.monotonic()
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert time.monotonic() - back < 3
            await asyncio.gather(*waiting)
            assert pool.state().statistics.connects_failed < 20
            balanced(pool)

    run(main())


def test_a_server_that_is_loading_is_waited_for(hung: Server, run: Any) -> None:
    """LOADING is an answer, yet no reason to give up."""
    from redis.exceptions import BusyLoadingError

    error = BusyLoadingError("LOADING Redis is loading the dataset in memory")
    assert RedisConnectionManager(hung.url).is_transient(error) is True


async def write(pool: RedisPool) -> None:
    async with pool.pool.get() as client:
        await client.set("pool-redis:failover", "x")


async def write_through_redis_py(pool: RedisPool) -> None:
    """A RedisPool's connections are released while the error is being handled: it is judged all the same."""
    await Redis(connection_pool=pool).set("pool-redis:failover", "x")


async def pop(pool: RedisPool) -> None:
    """What blocks is told that the server has changed, and not READONLY."""
    async with pool.pool.get() as client:
        await client.blpop(["pool-redis:nothing"], timeout=0.05)


@pytest.mark.parametrize("use", [write, write_through_redis_py, pop])
def test_a_failover_behind_one_address_costs_at_most_max_size_errors(
    server: ServerFactory, dialect: str, redis: Server, use: Any, run: Any
) -> None:
    """The old connections lead to a replica that refuses writes for ever; the pool heals without evict()."""
    errors: list[Exception] = []
    healed = asyncio.Event()
    written = 0

    async def work(pool: RedisPool) -> None:
        nonlocal written
        while not healed.is_set():
            try:
                await use(pool)
                written += 1
            except ResponseError as error:
                errors.append(error)
            await asyncio.sleep(0)

    async def main(old: Server) -> None:
        with FaultProxy(old.host, old.port) as proxy:
            pool = RedisPool(RedisConnectionManager(host=proxy.host, port=proxy.port), max_size=3, min_idle=1)
            async with pool, quiet(RedisConnectionManager(old.url)) as admin, admin.get() as demote:
                tasks = [asyncio.ensure_future(work(pool)) for _ in range(6)]
                await asyncio.sleep(0.2)
                proxy.retarget(redis.host, redis.port)
                await demote.replicaof("127.0.0.1", "1")
                async with asyncio.timeout(20):
                    while not errors:
                        await asyncio.sleep(0.01)
                    before = written
                    while written < before + 20:
                        await asyncio.sleep(0.01)
                healed.set()
                await asyncio.gather(*tasks)
                assert 1 <= len(errors) <= 3
                balanced(pool.pool)

    with server(dialect, fresh=True) as old:
        run(main(old))


def test_the_first_error_of_a_failover_retires_the_idle_connections(
    server: ServerFactory, dialect: str, redis: Server, run: Any
) -> None:
    """A caller who comes later must not meet the replica on each connection in turn."""

    async def main(old: Server) -> None:
        with FaultProxy(old.host, old.port) as proxy:
            async with quiet(RedisConnectionManager(host=proxy.host, port=proxy.port), max_size=3) as pool:
                async with pool.get(), pool.get(), pool.get() as client:
                    proxy.retarget(redis.host, redis.port)
                    await client.replicaof("127.0.0.1", "1")
                assert pool.state().idle == 3
                with pytest.raises(RuntimeError, match="no order"):
                    async with pool.get() as client:
                        try:
                            await client.set("pool-redis:failover", "x")
                        except ReadOnlyError as error:
                            raise RuntimeError("no order today") from error
                async with pool.get() as one, pool.get() as two, pool.get() as three:
                    for client in (one, two, three):
                        await client.set("pool-redis:failover", "x")
                assert pool.state().statistics.connections_closed[CloseReason.EVICTED] >= 2

    with server(dialect, fresh=True) as old:
        run(main(old))


VERDICTS = [
    (ReadOnlyError("You can't write against a read only replica.", status_code="READONLY"), Verdict.RETIRE_ALL),
    (MasterDownError("Link with MASTER is down", status_code="MASTERDOWN"), Verdict.RETIRE_ALL),
    (
        ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"),
        Verdict.RETIRE_ALL,
    ),
    (ResponseError("UNBLOCKED client unblocked via CLIENT UNBLOCK"), Verdict.KEEP),
    (AuthenticationError("Authentication required.", status_code="NOAUTH"), Verdict.CLOSE),
    (AuthenticationError("invalid username-password pair", status_code="WRONGPASS"), Verdict.CLOSE),
    (BusyLoadingError("Redis is loading the dataset in memory", status_code="LOADING"), Verdict.KEEP),
    (ClusterDownError("The cluster is down", status_code="CLUSTERDOWN"), Verdict.KEEP),
    (ResponseError("MISCONF Redis is configured to save RDB snapshots"), Verdict.KEEP),
    (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), Verdict.KEEP),
    (NoPermissionError("this user has no permissions to run the 'set' command"), Verdict.KEEP),
    (ResponseError("NOREPLICAS Not enough good replicas to write."), Verdict.KEEP),
    (ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), Verdict.KEEP),
    (ValueError("a mistake of the program"), Verdict.KEEP),
]


@pytest.mark.parametrize(("error", "verdict"), VERDICTS, ids=[str(error)[:20] for error, _ in VERDICTS])
def test_errors_are_judged_by_their_codes(error: Exception, verdict: Verdict) -> None:
    """Also as the cause of a program's own error. A replica's lease refuses writes by its nature."""
    outer = RuntimeError("the order could not be written")
    outer.__cause__ = error
    lease: Any = SimpleNamespace(tracked=SimpleNamespace(writes=True))
    sentinel = RedisSentinelConnectionManager(sentinels=[("127.0.0.1", 1)])
    for manager in (RedisConnectionManager(), sentinel, RedisClusterConnectionManager(nodes=[("127.0.0.1", 1)])):
        assert manager.judge(error, lease) is verdict
        assert manager.judge(outer, lease) is verdict
    lease.tracked.writes = False
    of_a_replica = {ReadOnlyError: Verdict.KEEP, MasterDownError: Verdict.CLOSE}.get(type(error), verdict)
    assert sentinel.judge(error, lease) is sentinel.judge(outer, lease) is of_a_replica


def test_a_reset_connection_is_not_lent(redis: Server, run: Any) -> None:
    """After a TCP reset asyncio's reader knows no end of file, only an exception."""

    async def main() -> None:
        with FaultProxy(redis.host, redis.port) as proxy:
            async with quiet(RedisConnectionManager(host=proxy.host, port=proxy.port), max_size=3, min_idle=3) as pool:
                await asyncio.gather(*(echo(pool) for _ in range(6)))
                proxy.reset()
                await asyncio.sleep(0.05)
                await asyncio.gather(*(echo(pool) for _ in range(6)))
                balanced(pool)

    run(main())


def test_a_reply_cut_in_the_middle_never_reaches_the_next(redis: Server, run: Any) -> None:
    """The borrower sees the error; the half of a reply dies with its connection."""

    async def main() -> None:
        with FaultProxy(redis.host, redis.port) as proxy:
            async with quiet(RedisConnectionManager(host=proxy.host, port=proxy.port), max_size=1) as pool:
                async with pool.get() as client:
                    await client.set("pool-redis:long", "x" * 1000)
                    proxy.cut(500)
                    with pytest.raises(RedisError):
                        await client.get("pool-redis:long")
                proxy.heal()
                await echo(pool)

    run(main())


def test_a_frozen_network_holds_up_nobody_else(redis: Server, run: Any) -> None:
    """A request without an answer times out in its own caller, and its connection is closed."""

    async def main() -> None:
        with FaultProxy(redis.host, redis.port) as proxy:
            manager = RedisConnectionManager(host=proxy.host, port=proxy.port, socket_timeout=0.2)
            async with quiet(manager, max_size=1) as pool:
                await echo(pool)
                proxy.freeze("to_client")
                with pytest.raises(RedisError, match="Timeout"):
                    await echo(pool)
                proxy.heal()
                await echo(pool)
                assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 1

    run(main())


@pytest.mark.cancellation
@pytest.mark.parametrize("protocol", [2, 3])
def test_a_command_cancelled_at_any_point_answers_nobody_else(redis: Server, protocol: int, run: Any) -> None:
    """At every await of a command, a pipeline, a transaction and a blocking pop: the next borrower is answered right."""

    async def main() -> None:
        pool = quiet(RedisConnectionManager(redis.url, protocol=protocol), max_size=1)

        async def command(client: LeasedRedis) -> None:
            await client.echo("mine")

        async def pipeline(client: LeasedRedis) -> None:
            await client.pipeline(transaction=False).echo("mine").get("mine").execute()

        async def transaction(client: LeasedRedis) -> None:
            async with client.pipeline() as pipe:
                await pipe.watch("pool-redis:x")
                pipe.multi()
                pipe.echo("mine")
                await pipe.execute()

        async def pop(client: LeasedRedis) -> None:
            await client.blpop(["pool-redis:nothing"], timeout=0.005)

        async def subscribe(client: LeasedRedis) -> None:
            async with client.pubsub() as listener:
                await listener.subscribe("pool-redis:news")
                await listener.get_message(timeout=0.1)

        async with pool:
            for use in (command, pipeline, transaction, pop, subscribe):

                async def lease(use: Any = use) -> None:
                    async with pool.get() as client:
                        await use(client)

                async def scenario(inject: Inject, lease: Any = lease) -> None:
                    await inject(lease())
                    await echo(pool)
                    async with pool.get() as client:
                        assert "x" not in str((await client.client_info())["flags"])  # no MULTI is open

                assert await acancel_everywhere(scenario) > 2
            balanced(pool)

    run(main())


@pytest.mark.cancellation
def test_a_cancel_that_comes_with_the_answer_surfaces(redis: Server, run: Any) -> None:
    """redis-py sends through wait_for, which on 3.11 swallows a cancel that comes in the same tick."""

    async def main() -> None:
        manager = RedisConnectionManager(redis.url)
        client = await manager.connect()
        lost = 0
        for turns in range(12):
            task = asyncio.ensure_future(client.echo("mine"))
            for _ in range(turns):
                await asyncio.sleep(0)
            cancelled = task.cancel()
            try:
                await task
                lost += cancelled
            except asyncio.CancelledError:
                pass
            manager.terminate(client)
            client = await manager.connect()
        assert lost == 0
        manager.terminate(client)

    run(main())


def test_a_password_shows_nowhere(guarded: Server, run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Through an outage, a wrong password and a timeout: not in errors, logs, reprs, statistics."""
    import traceback

    caplog.set_level(logging.DEBUG)
    shown: list[str] = []

    async def main() -> None:
        with FaultProxy(guarded.host, guarded.port) as proxy:
            manager = RedisConnectionManager(f"redis://:{PASSWORD}@{proxy.host}:{proxy.port}")
            async with Pool(manager, max_size=1, connection_timeout=0.5) as pool:
                async with pool.get() as client:
                    shown.extend(
                        [repr(client), repr(vars(client)), repr(client.connection_pool), repr(client.tracked)]
                        + [repr(vars(client.tracked)), repr(vars(client.connection_pool))]
                    )
                proxy.refuse()
                proxy.reset()
                await asyncio.sleep(0.05)
                for password in (PASSWORD, "canary-wrong"):
                    manager.update(password=password)
                    try:
                        await pool.get()
                    except Exception as error:  # noqa: BLE001
                        shown.append("".join(traceback.format_exception(error)))
                    proxy.heal()
                shown.extend([repr(pool), repr(pool.state()), repr(pool.holders()), repr(pool.config), repr(manager)])

    run(main())
    assert len(shown) == 13
    for text in [*shown, caplog.text]:
        assert "canary" not in text
