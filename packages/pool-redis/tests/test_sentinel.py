"""Sentinel: leases on the server that has the role now, followed through failovers."""

# redis-py types the commands of a pipeline as awaitables, and some of its methods not at all.
# mypy: disable-error-code="no-untyped-call,attr-defined"
# pyright: reportAttributeAccessIssue=false

import asyncio
import time
import traceback
from collections.abc import Iterator
from typing import Any

import fleet
import pytest
from fleet import Fleet
from load import balanced, load
from pool_core import ConnectError, Pool, PoolTimeout
from pool_redis import (
    LeasedRedis,
    MasterAwayError,
    RedisConnectionManager,
    RedisPool,
    RedisSentinelConnectionManager,
    WrongServer,
)
from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError, RedisError

from containers.servers import Server, ServerFactory

SECRET = "canary-Sesame"


@pytest.fixture
def service(watched: tuple[Fleet, Fleet]) -> Iterator[tuple[Fleet, Fleet]]:
    """The servers and the sentinels; whatever the test did to them is healed behind it."""
    yield watched
    fleet.reunited(*watched)


def manager_of(sentinels: Fleet, **options: Any) -> RedisSentinelConnectionManager:
    """A manager by all three sentinels."""
    return RedisSentinelConnectionManager(sentinels=[("127.0.0.1", port) for port in sentinels.ports], **options)


def master_of(data: Fleet) -> int:
    """The port of the one that says so."""
    return next(port for port in data.ports if data.role(port) == "master")


async def write(client: LeasedRedis, value: str) -> object:
    """Write and read back what nobody else writes."""
    await client.set(f"pool-redis:{value}", value, ex=60)
    return await client.get(f"pool-redis:{value}")


def test_a_url_names_sentinels_service_and_database(service: tuple[Fleet, Fleet], run: Any) -> None:
    """One URL for all of it, also for Pool.from_url."""
    data, sentinels = service
    hosts = ",".join(f"127.0.0.1:{port}" for port in sentinels.ports)

    async def main() -> None:
        async with Pool.from_url(f"redis+sentinel://{hosts}/mymaster/3?decode_responses=1&pool_max_size=2") as pool:
            async with pool.get() as client:
                assert await client.echo("hello") == "hello"
                info = await client.client_info()
                assert info["db"] == 3
                assert client.tracked.port == master_of(data)

    run(main())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"redis+sentinel://user:{SECRET}/x@host/mymaster", "percent-encode"),
        (f"redis+sentinel://user:{SECRET}@host:port/mymaster", "a port of the URL is not a number"),
        (f"redis+sentinel://user:{SECRET}@host,/mymaster", "a host of the URL is empty"),
        (f"redis+sentinel://host/mymaster/{SECRET}", "/service or /service/db"),
        (f"redis+sentinel://host/mymaster#{SECRET}", "percent-encode"),
        (f"redis+sentinel://host/mymaster?db={SECRET}", "db in the URL has a value that redis-py cannot read"),
        (f"sentinel://user:{SECRET}@host", "must start with redis.sentinel://"),
        ("redis+sentinel://host/mymaster?role=slave", "allowed are 'master' and 'replica'"),
    ],
)
def test_a_bad_url_is_refused_without_showing_it(url: str, words: str) -> None:
    """As with one server: nobody may quote the URL."""
    with pytest.raises(ValueError, match=words) as caught:
        RedisSentinelConnectionManager(url)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_bad_settings_are_refused_at_once() -> None:
    """Before any I/O, with what to do."""
    sentinels = [("host", 26379)]
    with pytest.raises(ValueError, match="at least one pair"):
        RedisSentinelConnectionManager()
    with pytest.raises(ValueError, match="port is not for Sentinel"):
        RedisSentinelConnectionManager(sentinels=sentinels, port=6379)
    with pytest.raises(ValueError, match="role='boss'"):
        RedisSentinelConnectionManager(sentinels=sentinels, role="boss")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="did you mean 'password'"):
        RedisSentinelConnectionManager(sentinels=sentinels, sentinel_options={"pasword": "x"})
    manager = RedisSentinelConnectionManager(
        sentinels=sentinels, password=SECRET, sentinel_options={"password": SECRET}
    )
    assert SECRET not in repr(vars(manager)) + repr(manager)
    with pytest.raises(ValueError, match="role='boss'"):
        manager.update(role="boss")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="host is not for Sentinel"):
        manager.update(host="elsewhere")
    assert "master of 'mymaster' by host:26379" in repr(manager)


def test_leases_are_on_the_master_or_on_a_replica(service: tuple[Fleet, Fleet], run: Any) -> None:
    """A replica serves reads, in turn with the others, and refuses writes."""
    data, sentinels = service

    async def main() -> None:
        async with Pool(manager_of(sentinels), max_size=3) as pool, pool.get() as client:
            assert await write(client, "x") == b"x"
            assert client.tracked.port == master_of(data)
        async with Pool(manager_of(sentinels, role="replica"), max_size=4) as pool:
            leases = [await pool.get() for _ in range(4)]
            ports = {lease.conn.tracked.port for lease in leases}
            assert ports == set(data.ports) - {master_of(data)}
            with pytest.raises(ReadOnlyError):
                await leases[0].conn.set("pool-redis:x", 1)
            for lease in leases:
                lease.release()

    run(main())


def test_a_redis_pool_can_stand_on_sentinels(service: tuple[Fleet, Fleet], run: Any) -> None:
    """redis-py's clients over our pool over Sentinel: nothing of it is bound to one server."""
    data, sentinels = service

    async def main() -> None:
        async with RedisPool(manager_of(sentinels), max_size=2) as pool:
            client = Redis(connection_pool=pool)
            answers = await asyncio.gather(*(client.echo(str(number)) for number in range(20)))
            assert answers == [str(number).encode() for number in range(20)]
            assert (await client.role())[0] == b"master"

    run(main())


def test_an_update_leads_new_connections_elsewhere(service: tuple[Fleet, Fleet], run: Any) -> None:
    """Other sentinels, another role or another database, for new connections only."""
    data, sentinels = service

    async def main() -> None:
        manager = RedisSentinelConnectionManager(sentinels=[("127.0.0.1", 1)])
        with pytest.raises(RedisError):
            await manager.connect()
        manager.update(sentinels=[("127.0.0.1", sentinels.ports[0])], db=4)
        client = await manager.connect()
        assert (await client.client_info())["db"] == 4
        manager.update(role="replica")
        replica = await manager.connect()
        assert data.role(replica.tracked.port) == "slave"
        assert manager.has_broken(client) is manager.has_broken(replica) is False
        for leased in (client, replica):
            assert await manager.is_valid(leased) is True
            await manager.close(leased)

    run(main())


def test_a_server_that_is_not_what_the_sentinels_say_is_never_lent(service: tuple[Fleet, Fleet], run: Any) -> None:
    """In a failover a sentinel may still name the old master: the server's own word counts."""
    data, sentinels = service

    async def main() -> None:
        replica = next(port for port in data.ports if port != master_of(data))
        manager = manager_of(sentinels, address_remap=lambda address: ("127.0.0.1", replica))
        with pytest.raises(MasterAwayError, match=f"127.0.0.1:{replica} is a replica") as caught:
            await manager.connect()
        assert manager.is_transient(caught.value) is True
        before = len(data.ask(replica, "CLIENT", "LIST").splitlines())
        for _ in range(3):
            with pytest.raises(MasterAwayError):
                await manager.connect()
        await asyncio.sleep(0.05)
        assert len(data.ask(replica, "CLIENT", "LIST").splitlines()) <= before

    run(main())


def test_an_unknown_service_is_told_at_once(service: tuple[Fleet, Fleet], run: Any) -> None:
    """A misspelt name must not look like an outage."""
    _, sentinels = service

    async def main() -> None:
        manager = manager_of(sentinels, service="theirmaster")
        began = time.monotonic()
        async with Pool(manager) as pool:
            with pytest.raises(ConnectError, match="no sentinel knows a service 'theirmaster'") as caught:
                await pool.get()
        assert isinstance(caught.value.__cause__, WrongServer)
        assert time.monotonic() - began < 1

    run(main())


def test_a_sentinel_that_is_none_is_told_at_once(redis: Server, run: Any) -> None:
    """The port of the Redis server itself is the commonest mistake."""

    async def main() -> None:
        manager = RedisSentinelConnectionManager(sentinels=[(redis.host, redis.port)])
        with pytest.raises(WrongServer, match="unknown command") as caught:
            await manager.connect()
        assert manager.is_transient(caught.value) is False

    run(main())


def test_sentinels_that_do_not_answer_may_come_back(run: Any) -> None:
    """Nobody listens there: an error in bounded time, which names all of them, and may pass."""

    async def main() -> None:
        manager = RedisSentinelConnectionManager(sentinels=[("127.0.0.1", 1), ("127.0.0.1", 2)])
        with pytest.raises(RedisError, match=r"no sentinel answers \(127.0.0.1:1: .*; 127.0.0.1:2: ") as caught:
            await manager.connect()
        assert manager.is_transient(caught.value) is True
        async with Pool(manager, connection_timeout=0.5, error_sink=lambda _: None) as pool:
            with pytest.raises(PoolTimeout, match="no sentinel answers"):
                await pool.get()

    run(main())


def test_a_sentinel_with_a_password_is_served(server: ServerFactory, dialect: str, run: Any) -> None:
    """The sentinels' login is not the servers': given the wrong one, waiting does not help."""
    with server(dialect, fresh=True, password=SECRET) as mine:

        async def main() -> None:
            for options, cause in (({}, "HELLO must be called"), ({"password": "wrong"}, "invalid")):
                manager = RedisSentinelConnectionManager(sentinels=[(mine.host, mine.port)], sentinel_options=options)
                with pytest.raises(RedisError, match=f"no sentinel answers.*{cause}") as caught:
                    await manager.connect()
                assert manager.is_transient(caught.value) is False
            right = RedisSentinelConnectionManager(
                sentinels=[(mine.host, mine.port)], sentinel_options={"password": SECRET}
            )
            with pytest.raises(WrongServer, match="unknown command"):  # past the login: it is no sentinel
                await right.connect()

        run(main())


def test_a_dead_sentinel_is_passed_over_and_not_asked_first_again(service: tuple[Fleet, Fleet], run: Any) -> None:
    """One of three is down: connects go on, and only the first one pays for it."""
    _, sentinels = service

    async def main() -> None:
        dead = ("127.0.0.1", 1)
        manager = RedisSentinelConnectionManager(sentinels=[dead, *(("127.0.0.1", port) for port in sentinels.ports)])
        await manager.close(await manager.connect())
        assert manager._sentinels[0] != dead
        assert dead in manager._sentinels

    run(main())


def test_a_hung_sentinel_costs_a_second(service: tuple[Fleet, Fleet], run: Any) -> None:
    """redis-py waits its 5 s for each: two of them would use up a connect's time."""
    _, sentinels = service

    async def main() -> None:
        first = sentinels.nodes[sentinels.ports[0]]
        await asyncio.to_thread(first.pause)
        try:
            manager = manager_of(sentinels)
            began = time.monotonic()
            await manager.close(await manager.connect())
            assert 0.9 < time.monotonic() - began < 3
            began = time.monotonic()
            await manager.close(await manager.connect())
            assert time.monotonic() - began < 0.9
        finally:
            await asyncio.to_thread(first.unpause)

    run(main())


def test_a_failover_evicts_the_old_generation_without_an_error(service: tuple[Fleet, Fleet], run: Any) -> None:
    """An orderly failover: `follow` hears of it, and nobody writes to the demoted master afterwards."""
    data, sentinels = service

    async def main() -> None:
        manager = manager_of(sentinels)
        old = master_of(data)
        async with Pool(manager, max_size=3, min_idle=3, alive_bypass=3600, error_sink=lambda _: None) as pool:
            following = asyncio.create_task(manager.follow(pool))
            await asyncio.sleep(0.3)
            stop = asyncio.Event()
            loading = asyncio.create_task(load(pool, write, stop))
            await asyncio.sleep(0.2)
            sentinels.ask(sentinels.ports[0], "SENTINEL", "FAILOVER", "mymaster")
            began = time.monotonic()
            while manager._generation == ("127.0.0.1", old):
                assert time.monotonic() - began < 20
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)
            stop.set()
            outcome = await loading
            assert outcome.wrong == []
            assert outcome.served > 8
            for _ in range(6):
                async with pool.get() as client:
                    assert client.tracked.port == manager._generation[1] != old  # type: ignore[index]
            balanced(pool)
            following.cancel()
            with pytest.raises(asyncio.CancelledError):
                await following

    run(main())


def test_a_write_that_a_demoted_master_refuses_costs_the_connection(redis: Server, run: Any) -> None:
    """READONLY from what was a master says more than any timer: the next borrower must not meet it."""

    async def main() -> None:
        manager = RedisConnectionManager(redis.url)
        client = await manager.connect()
        refuse = "return redis.error_reply('READONLY You cannot write against a read only replica.')"
        with pytest.raises(ReadOnlyError):
            await client.eval(refuse, 0)
        assert manager.has_broken(client) is True
        await manager.close(client)
        client = await manager.connect()
        client.tracked.writes = False  # a replica's, by Sentinel's role="replica"
        with pytest.raises(ReadOnlyError):
            await client.eval(refuse, 0)
        assert manager.has_broken(client) is False
        await manager.close(client)

    run(main())


def test_every_waiter_is_served_after_the_master_was_killed(service: tuple[Fleet, Fleet], run: Any) -> None:
    """SIGKILL under load: errors while there is no master, then all goes on, on the new one, with right answers."""
    data, sentinels = service

    async def main() -> None:
        manager = manager_of(sentinels)
        old = master_of(data)
        async with Pool(manager, max_size=4, min_idle=2, connection_timeout=30, error_sink=lambda _: None) as pool:
            stop = asyncio.Event()
            loading = asyncio.create_task(load(pool, write, stop))
            await asyncio.sleep(0.3)
            await asyncio.to_thread(data.nodes[old].kill)
            waiting = [asyncio.create_task(_once(pool, f"waiter-{number}")) for number in range(50)]
            done, pending = await asyncio.wait(waiting, timeout=25)
            assert not pending
            # A borrower whose connection died under him sees it; who waits does not.
            assert all(isinstance(task.exception(), RedisError | None) for task in done)
            assert sum(task.exception() is None for task in done) >= 45
            stop.set()
            outcome = await loading
            assert outcome.wrong == []
            assert manager._generation is not None
            assert manager._generation[1] != old
            balanced(pool)
        await asyncio.to_thread(data.nodes[old].start)

    run(main())


async def _once(pool: Pool[LeasedRedis], value: str) -> None:
    async with pool.get() as client:
        assert await write(client, value) == value.encode()


def test_a_master_that_hung_is_left_behind(service: tuple[Fleet, Fleet], run: Any) -> None:
    """When it runs again it still has the role of a master: its idle connections must not be used."""
    data, sentinels = service

    async def main() -> None:
        manager = manager_of(sentinels, socket_timeout=1, socket_connect_timeout=1)
        old = master_of(data)
        options: dict[str, Any] = {"alive_bypass": 0, "validation_timeout": 0.5, "create_timeout": 3}
        async with Pool(manager, max_size=3, min_idle=3, error_sink=lambda _: None, **options) as pool:
            await _once(pool, "before")
            await asyncio.to_thread(data.nodes[old].pause)
            await _once(pool, "during")
            await asyncio.to_thread(data.nodes[old].unpause)
            for number in range(20):
                async with pool.get() as client:
                    assert client.tracked.port != old
                    assert await write(client, f"after-{number}") == f"after-{number}".encode()
            balanced(pool)

    run(main())
