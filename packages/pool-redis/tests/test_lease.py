"""The lease: a whole Redis client on one connection, which never becomes another one."""

# redis-py types the commands of a pipeline as awaitables, and some of its methods not at all.
# mypy: disable-error-code="no-untyped-call,attr-defined"
# pyright: reportAttributeAccessIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false

import asyncio
import time
from math import inf
from typing import Any

import pytest
from load import closed_by_server
from pool_core import CloseReason, Pool
from pool_core.testing import FaultProxy
from pool_redis import LeasedRedis, RedisConnectionManager
from redis.asyncio import Redis
from redis.asyncio.client import Monitor, Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError

from containers.servers import Server


def test_everything_a_client_does_stays_on_one_connection(manager: RedisConnectionManager, run: Any) -> None:
    """redis-py's single_connection_client sends pipelines and PubSub elsewhere: locks and WATCH would be on two."""

    async def main() -> None:
        client = await manager.connect()
        assert isinstance(client, Redis)
        seen = {await client.client_id()}
        async with client.pipeline(transaction=False) as pipe:
            seen |= set(await pipe.client_id().client_id().execute())
        async with client.pipeline(transaction=True) as pipe:
            seen |= set(await pipe.client_id().execute())
        async with client.pipeline() as pipe:
            await pipe.watch("pool-redis:watched")
            seen.add(await pipe.client_id())
            seen.add(await client.client_id())  # between WATCH and MULTI, by the same task
            pipe.multi()
            pipe.client_id()
            seen |= set(await pipe.execute())
        seen |= set(await client.transaction(lambda pipe: pipe.client_id(), "pool-redis:watched"))
        async with client.client() as single:
            seen.add(await single.client_id())
        script = client.register_script("return redis.call('CLIENT', 'ID')")
        assert await client.blpop(["pool-redis:nothing"], timeout=0.01) is None
        number = await client.client_id()
        mine = await manager.connect()
        before = await mine.client_list()
        async with client.pubsub() as listener:
            await listener.subscribe("pool-redis:news")
            assert (await listener.get_message(timeout=2))["type"] == "subscribe"
            [subscribed] = [entry for entry in await mine.client_list() if int(entry["sub"])]
            assert int(subscribed["id"]) == number
            assert len(await mine.client_list()) == len(before)
        assert seen == {number}
        assert script is not None
        await manager.close(mine)

    run(main())


def test_a_clean_lease_costs_no_round_trip_and_no_task(manager: RedisConnectionManager, run: Any) -> None:
    """What most borrowers do leaves nothing behind: then reset must be None."""

    def transact(pipe: Pipeline) -> None:
        pipe.multi()
        pipe.incr("pool-redis:key")

    async def main() -> None:
        client = await manager.connect()
        uses = [
            client.set("pool-redis:key", 1),
            client.get("pool-redis:key"),
            client.pipeline(transaction=True).incr("pool-redis:key").get("pool-redis:key").execute(),
            client.pipeline(transaction=False).incr("pool-redis:key").execute(),
            client.transaction(transact, "pool-redis:key"),
            client.eval("return redis.call('SELECT', 5)", 0),
            client.client_id(),
            client.client_getname(),
            client.client_list(),
            client.execute_command("client", "info"),
            client.execute_command(b"GET", "pool-redis:key"),
            client.blpop(["pool-redis:nothing"], timeout=0.01),
            client.xread({"pool-redis:nothing": 0}, block=1),
            client.lock("pool-redis:lock", timeout=1).acquire(),
            client.delete("pool-redis:key", "pool-redis:lock"),
            client.execute_command("UNWATCH"),
        ]
        for use in uses:
            await use
            assert manager.has_broken(client) is False
            assert manager.reset(client) is None
        assert (await client.client_info())["db"] == 0
        await manager.close(client)

    run(main())


def test_an_error_answer_leaves_the_connection_clean(manager: RedisConnectionManager, run: Any) -> None:
    """A wrong type or a syntax error is an answer: the connection is in step, and need not be thrown away."""
    unsendable: Any = object()

    async def main() -> None:
        client = await manager.connect()
        await client.set("pool-redis:text", "x")
        for use in (
            client.incr("pool-redis:text"),
            client.execute_command("NO-SUCH-COMMAND"),
            client.pipeline(transaction=True).incr("pool-redis:text").execute(),
            client.pipeline(transaction=False).incr("pool-redis:text").incr("pool-redis:text").execute(),
            client.pipeline(transaction=True).set("pool-redis:text", unsendable).execute(),
            client.set("pool-redis:text", unsendable),
        ):
            with pytest.raises(RedisError):
                await use
            assert manager.has_broken(client) is False
            assert manager.reset(client) is None
        async with client.pipeline() as pipe:
            await pipe.watch("pool-redis:text")
            await client.set("pool-redis:text", "y")
            pipe.multi()
            pipe.get("pool-redis:text")
            with pytest.raises(WatchError):
                await pipe.execute()
        assert manager.has_broken(client) is False
        assert manager.reset(client) is None
        await manager.close(client)

    run(main())


def test_tasks_that_share_a_lease_take_turns(manager: RedisConnectionManager, run: Any) -> None:
    """gather() over one client works with redis-py's pools: with one connection each must still get his own answer."""

    async def main() -> None:
        client = await manager.connect()

        async def transact(number: int) -> object:
            async with client.pipeline() as pipe:
                await pipe.watch(f"pool-redis:{number}")
                await asyncio.sleep(0)
                pipe.multi()
                pipe.echo(f"m{number}")
                return (await pipe.execute())[0]

        answers = await asyncio.gather(
            *(client.echo(f"e{number}") for number in range(20)),
            *(transact(number) for number in range(5)),
        )
        assert answers == [f"e{n}".encode() for n in range(20)] + [f"m{n}".encode() for n in range(5)]
        assert manager.has_broken(client) is False
        await manager.close(client)

    run(main())


def test_a_cancelled_task_gives_up_its_turn(redis: Server, run: Any) -> None:
    """One task of several on a lease is cancelled while it waits: the others go on."""

    async def main() -> None:
        manager = RedisConnectionManager(redis.url)
        client = await manager.connect()
        blocking = asyncio.ensure_future(client.blpop(["pool-redis:nothing"], timeout=0.2))
        await asyncio.sleep(0.01)
        waiting = [asyncio.ensure_future(client.echo(str(number))) for number in range(3)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        assert await blocking is None
        assert await asyncio.gather(*waiting[1:]) == [b"1", b"2"]
        assert waiting[0].cancelled()
        assert manager.has_broken(client) is False
        await manager.close(client)

    run(main())


def test_commands_beside_a_pubsub_are_refused(manager: RedisConnectionManager, run: Any) -> None:
    """A reply could not be told from a message: in RESP3 redis-py would lose the messages silently."""

    async def main() -> None:
        client = await manager.connect()
        async with client.pubsub() as listener:
            await listener.subscribe("pool-redis:news")
            with pytest.raises(RedisError, match="listens for a PubSub or Monitor.*second lease"):
                await client.get("x")
        assert manager.has_broken(client) is True
        with pytest.raises(RedisConnectionError, match="a lease never reconnects"):
            await client.get("x")
        manager.terminate(client)

    run(main())


def test_messages_arrive_over_a_lease(manager: RedisConnectionManager, run: Any) -> None:
    """PubSub works, and its connection is not used again."""

    async def main() -> None:
        async with Pool(manager, max_size=2, min_idle=1) as pool:
            async with pool.get() as listening, pool.get() as talking, listening.pubsub() as listener:
                await listener.subscribe("pool-redis:news")
                assert (await listener.get_message(timeout=2))["type"] == "subscribe"
                await talking.publish("pool-redis:news", "hello")
                async for message in listener.listen():
                    if message["type"] == "message":
                        assert message["data"] == b"hello"
                        break
            assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 1
            async with pool.get() as one, pool.get() as other:
                assert await one.ping()
                assert await other.ping()

    run(main())


def test_a_monitor_works_over_a_lease(manager: RedisConnectionManager, run: Any) -> None:
    """MONITOR makes the connection useless for anything else: it is closed behind."""

    async def main() -> None:
        client, other = await manager.connect(), await manager.connect()
        monitor: Monitor
        async with client.monitor() as monitor:
            await other.echo("pool-redis:hello")
            while "pool-redis:hello" not in (await monitor.next_command())["command"]:
                pass
        assert manager.has_broken(client) is True
        await manager.close(other)

    run(main())


def test_a_lease_never_reconnects(manager: RedisConnectionManager, run: Any) -> None:
    """redis-py would, silently, on database 0 of the same object: its age and session state would be lies."""

    async def main() -> None:
        client, killer = await manager.connect(), await manager.connect()
        await killer.client_kill_filter(_id=str(await client.client_id()))
        await closed_by_server(client, manager)
        with pytest.raises(RedisConnectionError):
            await client.ping()
        for use in (client.ping(), client.pipeline().ping().execute(), client.pubsub().subscribe("x")):
            with pytest.raises(RedisConnectionError, match="never reconnects: release it and get another one"):
                await use
        assert manager.has_broken(client) is True
        assert await manager.is_valid(client) is False
        await manager.close(killer)

    run(main())


def test_is_valid_never_reconnects(manager: RedisConnectionManager, run: Any) -> None:
    """redis-py's PING on a dead connection opens a new one and says PONG."""

    async def main() -> None:
        client, killer = await manager.connect(), await manager.connect()
        await killer.client_kill_filter(_id=str(await client.client_id()))
        with pytest.raises(RedisError):
            await manager.is_valid(client)
        assert await manager.is_valid(client) is False
        assert "pool-redis" not in str(await killer.client_list())
        await manager.close(killer)

    run(main())


def test_a_connection_is_as_old_as_the_server_says(redis: Server, run: Any) -> None:
    """max_lifetime means the server's connection: over 50 leases with errors its age never starts again."""

    async def main() -> None:
        async with Pool(RedisConnectionManager(redis.url), max_size=1) as pool:
            async with pool.get() as client:
                number = await client.client_id()
            for _ in range(50):
                async with pool.get() as client:
                    with pytest.raises(RedisError):
                        await client.execute_command("NO-SUCH-COMMAND")
                    assert await client.client_id() == number
            assert pool.state().statistics.connections_created == 1

    run(main())


def test_what_a_borrower_holds_on_to_is_not_lent_again(manager: RedisConnectionManager, run: Any) -> None:
    """A forgotten pipeline closes its connection when it is collected: under the next borrower."""

    async def main() -> None:
        for hold in ("pipeline", "pubsub", "client"):
            client = await manager.connect()
            if hold == "pipeline":
                holder: Any = client.pipeline()
                await holder.watch("pool-redis:key")
            elif hold == "pubsub":
                holder = client.pubsub()
                await holder.subscribe("pool-redis:news")
            else:
                holder = client.client()
                await holder.ping()
            assert manager.has_broken(client) is True, hold
            await holder.aclose()
            manager.terminate(client)

    run(main())


def test_what_a_borrower_changes_in_the_client_is_not_lent_again(manager: RedisConnectionManager, run: Any) -> None:
    """A response callback or a module stays with the client object, not with the server: no reset reaches it."""

    async def main() -> None:
        for change in (
            lambda client: client.set_response_callback("GET", lambda reply: "mine"),
            lambda client: client.load_external_module("mine", lambda: None),
            lambda client: client.connection_pool.himport_registry,
        ):
            client = await manager.connect()
            change(client)
            assert manager.has_broken(client) is True
            await manager.close(client)

    run(main())


def test_a_leased_client_takes_no_retry(manager: RedisConnectionManager, run: Any) -> None:
    """An option that cannot work must say so: a retry needs a reconnect."""

    async def main() -> None:
        client = await manager.connect()
        with pytest.raises(RedisError, match="retry around the lease"):
            client.set_retry(Retry(NoBackoff(), 3))
        await manager.close(client)

    run(main())


def test_closing_the_client_in_a_lease_costs_nothing(manager: RedisConnectionManager, run: Any) -> None:
    """Code that says `async with client:` keeps working: the connection belongs to our pool."""

    async def main() -> None:
        client = await manager.connect()
        async with client:
            await client.ping()
        await client.aclose()
        assert manager.has_broken(client) is False
        assert await client.ping()
        await client.connection_pool.aclose()
        assert manager.has_broken(client) is True

    run(main())


def test_a_reply_that_was_not_read_breaks_the_connection(manager: RedisConnectionManager, run: Any) -> None:
    """read_response(timeout=...) returns None, stays connected, and the next borrower's answers are off by one."""

    async def main() -> None:
        client, other = await manager.connect(), await manager.connect()
        await client.tracked.send_command("BLPOP", "pool-redis:queue", 5)
        assert await client.tracked.read_response(timeout=0.02) is None
        assert client.tracked.is_connected
        assert manager.has_broken(client) is True  # though nothing has arrived yet
        await other.rpush("pool-redis:queue", "for somebody")
        await manager.close(client)
        await other.delete("pool-redis:queue")
        await manager.close(other)

    run(main())


def test_a_time_out_that_leaves_the_connection_open_breaks_it(redis: Server, run: Any) -> None:
    """disconnect_on_error=False is the other way to leave a reply on its way."""

    async def main() -> None:
        with FaultProxy(redis.host, redis.port) as proxy:
            manager = RedisConnectionManager(host=proxy.host, port=proxy.port, socket_timeout=0.1)
            client = await manager.connect()
            proxy.freeze("to_client")
            await client.tracked.send_command("PING")
            with pytest.raises(RedisTimeoutError):
                await client.tracked.read_response(disconnect_on_error=False)
            assert client.tracked.is_connected
            assert manager.has_broken(client) is True
            await manager.close(client)

    run(main())


def test_bytes_nobody_asked_for_break_the_connection(manager: RedisConnectionManager, run: Any) -> None:
    """An answer in the buffer before a request is sent belongs to somebody else."""

    async def main() -> None:
        client = await manager.connect()
        assert client.tracked._writer is not None
        client.tracked._writer.write(b"PING\r\n")  # past all bookkeeping
        await closed_by_server(client, manager)
        assert client.tracked.is_connected
        await manager.close(client)

    run(main())


def test_a_driver_that_hides_its_input_is_lent_once(manager: RedisConnectionManager, run: Any) -> None:
    """If a release of redis-py moves what has_broken reads, connections are closed after each use."""

    async def main() -> None:
        client = await manager.connect()
        connection = client.tracked
        buffer = connection._reader._buffer  # type: ignore[union-attr]
        connection._reader._buffer = b""  # type: ignore[union-attr]
        connection.seal()
        connection._reader._buffer = buffer  # type: ignore[union-attr]
        assert manager.has_broken(client) is False
        await client.ping()
        assert manager.has_broken(client) is True
        await manager.close(client)

    run(main())


def test_has_broken_is_cheap(manager: RedisConnectionManager, run: Any) -> None:
    """The pool asks it twice a lease; five microseconds is ten times what it takes."""

    async def main() -> None:
        client = await manager.connect()
        best = 1.0
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(1000):
                manager.has_broken(client)
            best = min(best, (time.perf_counter() - began) / 1000)
        assert best < 5e-6
        await manager.close(client)

    run(main())


def test_hiredis_is_looked_into(redis: Server, run: Any) -> None:
    """hiredis takes all that has arrived out of asyncio's buffer: what is left over stands in its own."""
    pytest.importorskip("hiredis")

    async def main() -> None:
        manager = RedisConnectionManager(redis.url)
        client = await manager.connect()
        connection = client.tracked
        assert connection.leftover is not None
        await connection.send_packed_command(b"PING\r\nPING\r\n")
        connection.unanswered = 1  # as if nobody had known of the second one
        await asyncio.sleep(0.05)
        assert await connection.read_response() in (b"PONG", "PONG")
        assert (connection.unanswered, len(connection._reader._buffer)) == (0, 0)  # type: ignore[union-attr]
        assert manager.has_broken(client) is True
        await manager.close(client)

    run(main())


def test_replies_are_decoded_as_asked(redis: Server, run: Any) -> None:
    """Settings reach the driver as they are."""

    async def main() -> None:
        manager = RedisConnectionManager(redis.url, decode_responses=True, client_name="mine", db=4)
        client: LeasedRedis = await manager.connect()
        assert await client.echo("grüße") == "grüße"
        assert (await client.client_getname(), (await client.client_info())["db"]) == ("mine", 4)
        assert await manager.is_valid(client) is True
        listener = client.pubsub()
        assert listener.encoder.decode_responses is True
        await manager.close(client)

    run(main())


BLOCKING = [
    ("BLPOP key 7", 7),
    ("BLPOP key other 0.5", 0.5),
    ("brpop key 0", inf),
    ("BRPOPLPUSH a b 7", 7),
    ("BLMOVE a b LEFT RIGHT 7", 7),
    ("BZPOPMIN a 7", 7),
    ("BZPOPMAX a b 7", 7),
    ("BLMPOP 7 1 key LEFT", 7),
    ("BZMPOP 7 1 key MIN", 7),
    ("WAIT 1 7000", 7),
    ("WAITAOF 1 1 7000", 7),
    ("XREAD COUNT 1 BLOCK 7000 STREAMS block 0", 7),
    ("XREAD COUNT 1 STREAMS block 7000", 0),
    ("XREADGROUP GROUP block streams COUNT 1 BLOCK 7000 STREAMS s >", 7),
    ("XREADGROUP GROUP block 7 STREAMS s >", 0),
    ("XREAD BLOCK 0 STREAMS s $", inf),
    ("BLPOP key soon", 0),
    ("BLPOP key nan", 0),
    ("BLPOP key -1", 0),
    ("BLPOP", 0),
    ("LPOP key 7", 0),
]


@pytest.mark.parametrize(("command", "seconds"), BLOCKING, ids=[command for command, _ in BLOCKING])
def test_it_is_known_how_long_a_command_may_block(command: str, seconds: float) -> None:
    """socket_timeout ends what it does not know; within MULTI nothing blocks."""
    connection = RedisConnectionManager("redis://localhost")._settings.sample()
    connection.pack_command(*command.split())
    assert connection.blocking == seconds
    connection = RedisConnectionManager("redis://localhost")._settings.sample()
    connection.pack_commands([("MULTI",), command.encode().split()])
    assert connection.blocking == 0


def test_a_blocking_command_outlives_socket_timeout(redis: Server, run: Any) -> None:
    """redis-py ends BLPOP with timeout=7 after five seconds, its default socket_timeout."""

    async def main() -> None:
        manager = RedisConnectionManager(redis.url, socket_timeout=0.5)
        client, other = await manager.connect(), await manager.connect()
        assert await client.blpop(["pool-redis:none"], timeout=0.8) is None
        assert await client.xread({"pool-redis:none": "0"}, block=800) in ([], {})
        pipe = client.pipeline(transaction=False).blpop(["pool-redis:none"], timeout=0.4)
        assert await pipe.blpop(["pool-redis:none"], timeout=0.4).execute() == [None, None]
        forever: asyncio.Future[Any] = asyncio.ensure_future(client.blpop(["pool-redis:some"], timeout=0))
        await asyncio.sleep(0.8)
        await other.rpush("pool-redis:some", "x")
        assert await forever == (b"pool-redis:some", b"x")
        assert client.tracked.socket_timeout == 0.5
        for each in (client, other):
            assert manager.has_broken(each) is False
            await manager.close(each)

    run(main())


def test_a_server_that_hangs_ends_a_blocking_command_too(redis: Server, run: Any) -> None:
    """The limit is longer, and still there."""

    async def main() -> None:
        with FaultProxy(redis.host, redis.port) as proxy:
            manager = RedisConnectionManager(host=proxy.host, port=proxy.port, socket_timeout=0.5)
            client = await manager.connect()
            proxy.freeze("to_client")
            began = time.monotonic()
            with pytest.raises(RedisTimeoutError):
                await client.blpop(["pool-redis:none"], timeout=0.2)
            assert 0.6 < time.monotonic() - began < 3
            assert manager.has_broken(client) is True
            proxy.heal()
            client = await manager.connect()
            assert await client.blpop(["pool-redis:none"], timeout=0.2) is None
            proxy.freeze("to_client")
            began = time.monotonic()
            with pytest.raises(RedisTimeoutError):  # what does not block ends as before
                await client.ping()
            assert client.tracked.socket_timeout == 0.5
            await manager.close(client)

    run(main())
