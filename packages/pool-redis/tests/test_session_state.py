"""Session state does not reach the next borrower: it is reset in one round trip, or the connection is closed."""

# redis-py types the commands of a pipeline as awaitables, and some of its methods not at all.
# mypy: disable-error-code="no-untyped-call,attr-defined"
# pyright: reportAttributeAccessIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pool_core import Pool, ReplaceConnection
from pool_core.testing import FaultProxy
from pool_redis import LeasedRedis, RedisConnectionManager
from redis.exceptions import RedisError

from containers.servers import Server

Leave = Callable[[LeasedRedis], Awaitable[Any]]


def test_an_open_multi_does_not_answer_the_next_borrower_queued(manager: RedisConnectionManager, run: Any) -> None:
    """redis-py's pool hands it out again: the next GET is answered QUEUED, and runs at the next EXEC."""

    async def main() -> None:
        async with Pool(manager, max_size=1) as pool:
            async with pool.get() as client:
                number = await client.client_id()
                await client.execute_command("MULTI")
                assert await client.set("pool-redis:mine", 1) in (b"QUEUED", None, False)
            async with pool.get() as client:
                assert await client.echo("hello") == b"hello"
                assert await client.exists("pool-redis:mine") == 0
                assert await client.client_id() == number  # reset, not replaced

    run(main())


def test_a_watch_does_not_fail_the_next_borrowers_transaction(manager: RedisConnectionManager, run: Any) -> None:
    """The last borrower's WATCH would make the next one's EXEC return nothing."""

    async def main() -> None:
        async with Pool(manager, max_size=1) as pool:
            async with pool.get() as client:
                await client.execute_command("WATCH", "pool-redis:watched")
                await client.set("pool-redis:watched", 1)
            async with pool.get() as client, client.pipeline() as pipe:
                assert await pipe.echo("hello").execute() == [b"hello"]

    run(main())


async def _raw_subscribe(client: LeasedRedis) -> None:
    await client.tracked.send_command("SUBSCRIBE", "pool-redis:news")
    await client.tracked.read_response(push_request=True)


@pytest.mark.parametrize(
    ("leave", "look", "clean"),
    [
        (lambda c: c.select(3), "CLIENT INFO db", "0"),
        (lambda c: c.execute_command("SELECT 3"), "CLIENT INFO db", "0"),
        (lambda c: c.execute_command(b"select", 3), "CLIENT INFO db", "0"),
        (lambda c: c.pipeline(transaction=True).select(3).execute(), "CLIENT INFO db", "0"),
        (lambda c: c.pipeline(transaction=False).select(3).execute(), "CLIENT INFO db", "0"),
        (lambda c: c.client_setname("borrower"), "CLIENT INFO name", "house"),
        (lambda c: c.execute_command("CLIENT", "SETNAME", "borrower"), "CLIENT INFO name", "house"),
        (lambda c: c.execute_command("client", b"setname", "borrower"), "CLIENT INFO name", "house"),
        (lambda c: c.client_tracking_on(bcast=True), "CLIENT INFO flags", "N"),
        (lambda c: c.client_no_evict("ON"), "CLIENT INFO flags", "N"),
        (lambda c: c.execute_command("MULTI"), "CLIENT INFO flags", "N"),
        (lambda c: c.execute_command("WATCH", "pool-redis:x"), "CLIENT INFO flags", "N"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_be_taken_back_is_taken_back(redis: Server, leave: Leave, look: str, clean: str, run: Any) -> None:
    """The same connection goes on, as the handshake left it."""

    async def main() -> None:
        manager = RedisConnectionManager(redis.url, client_name="house", protocol=3)
        async with Pool(manager, max_size=1) as pool:
            async with pool.get() as client:
                number = await client.client_id()
                await leave(client)
            async with pool.get() as client:
                info = {name: str(value) for name, value in (await client.client_info()).items()}
                assert info[look.split()[-1]] == clean
                assert await client.client_id() == number
            closed = pool.state().statistics.connections_closed
            assert sum(closed.values()) == 0

    run(main())


@pytest.mark.parametrize(
    "leave",
    [
        lambda c: c.execute_command("AUTH", "pool-redis-other", "word"),
        lambda c: c.execute_command("HELLO", "3", "AUTH", "pool-redis-other", "word"),
        lambda c: c.execute_command("RESET"),
        lambda c: c.quit(),
        lambda c: c.tracked.send_command("MONITOR"),
        lambda c: c.tracked.send_command("CLIENT", "REPLY", "OFF"),
        lambda c: c.tracked.send_command("CLIENT REPLY", "SKIP"),
        lambda c: c.execute_command("CLIENT", "REPLY", "ON"),
        lambda c: c.tracked.send_command("CLIENT SETINFO", "LIB-NAME", "borrower"),  # unknown before Redis 7.2
        lambda c: c.execute_command("SCRIPT DEBUG", "YES"),
        _raw_subscribe,
    ],
)
def test_what_cannot_be_taken_back_costs_the_connection(redis: Server, leave: Leave, run: Any) -> None:
    """Another user, a muted connection, a stream of messages: the next borrower gets a new connection."""

    async def main() -> None:
        manager = RedisConnectionManager(redis.url, protocol=3)
        async with Pool(manager, max_size=1) as pool:
            async with pool.get() as client:
                await client.acl_setuser("pool-redis-other", enabled=True, passwords=["+word"], commands=["+@all"])
                number = await client.client_id()
                await leave(client)
            async with pool.get() as client:
                assert await client.client_id() != number
                assert await client.acl_whoami() == b"default"
                await client.acl_deluser("pool-redis-other")

    run(main())


@pytest.mark.parametrize(
    "command", ["CLIENT SOMETHING-NEW", "HIMPORT PREPARE", "PSYNC", "SYNC", "REPLCONF", "PSUBSCRIBE", "SSUBSCRIBE"]
)
def test_what_is_not_known_counts_as_beyond_repair(manager: RedisConnectionManager, command: str, run: Any) -> None:
    """CLIENT keeps more state with every release of Redis: what this release does not know must not be trusted."""

    async def main() -> None:
        client = await manager.connect()
        client.tracked.pack_command(*command.split(), "x")
        client.tracked.unanswered = 0
        assert manager.has_broken(client) is True
        with pytest.raises(ReplaceConnection, match="beyond repair"):
            await manager.reset(client)  # type: ignore[misc]
        await manager.close(client)

    run(main())


def test_several_changes_are_taken_back_in_one_round_trip(redis: Server, run: Any) -> None:
    """Each round trip of a reset is time in which the connection serves nobody."""

    async def main() -> None:
        with FaultProxy(redis.host, redis.port) as proxy:
            manager = RedisConnectionManager(host=proxy.host, port=proxy.port)
            client = await manager.connect()
            await client.select(3)
            await client.client_setname("borrower")
            await client.client_tracking_on()
            await client.execute_command("WATCH", "pool-redis:x")
            await client.execute_command("MULTI")
            before = proxy.forwarded
            resetting = manager.reset(client)
            assert resetting is not None
            proxy.freeze("to_client")
            task = asyncio.ensure_future(resetting)
            await asyncio.sleep(0.1)
            sent = proxy.forwarded[0] - before[0]
            proxy.heal()
            await task
            assert proxy.forwarded[0] - before[0] == sent  # all of it went out before the first answer came
            info = await client.client_info()
            assert (info["db"], info["name"], info["flags"]) == (0, "", "N")  # x in the flags: a MULTI is open
            assert manager.reset(client) is None
            await manager.close(client)

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_reset_that_the_server_refuses_fails(redis: Server, protocol: int, run: Any) -> None:
    """The pool closes a connection whose state cannot be reset."""

    async def main() -> None:
        manager = RedisConnectionManager(redis.url, protocol=protocol)
        admin = await manager.connect()
        commands = ["+@all", "-select"]
        await admin.acl_setuser("pool-redis-limited", enabled=True, passwords=["+word"], commands=commands)
        limited = RedisConnectionManager(redis.url, username="pool-redis-limited", password="word", protocol=protocol)
        client = await limited.connect()
        with pytest.raises(RedisError, match="no permissions"):
            await client.select(3)
        with pytest.raises(RedisError, match="no permissions"):
            await limited.reset(client)  # type: ignore[misc]
        await limited.close(client)
        await admin.acl_deluser("pool-redis-limited")
        await manager.close(admin)

    run(main())


def test_a_handshake_of_ones_own_is_not_guessed(redis: Server, run: Any) -> None:
    """redis_connect_func may have chosen another database: whoever changes anything costs the connection."""

    async def shake(connection: Any) -> None:
        await connection.on_connect()
        await connection.send_command("SELECT", 7)
        await connection.read_response()

    async def main() -> None:
        manager = RedisConnectionManager(redis.url, redis_connect_func=shake)
        async with Pool(manager, max_size=1) as pool:
            async with pool.get() as client:
                assert (await client.client_info())["db"] == 7
                number = await client.client_id()
            async with pool.get() as client:
                assert await client.client_id() == number
                await client.select(3)
            async with pool.get() as client:
                assert (await client.client_info())["db"] == 7
                assert await client.client_id() != number

    run(main())
