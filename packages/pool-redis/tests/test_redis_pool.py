"""RedisPool: our pool under redis-py's own clients."""

# redis-py types the commands of a pipeline as awaitables, and some of its methods not at all.
# mypy: disable-error-code="no-untyped-call,attr-defined"
# pyright: reportAttributeAccessIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false

import asyncio
import gc
import time
from typing import Any

import pytest
from pool_core import CloseReason
from pool_redis import RedisConnectionManager, RedisPool
from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, MaxConnectionsError
from redis.exceptions import ConnectionError as RedisConnectionError

from containers.servers import Server


def test_a_clients_code_stays_as_it_is(manager: RedisConnectionManager, run: Any) -> None:
    """Commands, pipelines, transactions, scripts, locks and PubSub of an ordinary client go through our pool."""

    async def main() -> None:
        async with RedisPool(manager, max_size=5) as pool:
            client = Redis(connection_pool=pool)
            assert await client.set("pool-redis:key", "x")
            assert await client.get("pool-redis:key") == b"x"
            assert await client.pipeline(transaction=True).echo("a").echo("b").execute() == [b"a", b"b"]
            answers = await asyncio.gather(*(client.echo(str(number)) for number in range(50)))
            assert answers == [str(number).encode() for number in range(50)]
            assert await client.register_script("return ARGV[1]")(args=["y"]) == b"y"
            async with client.lock("pool-redis:lock", timeout=2):
                pass
            async with client.pubsub() as listener:
                await listener.subscribe("pool-redis:news")
                assert (await listener.get_message(timeout=2))["type"] == "subscribe"
                await client.publish("pool-redis:news", "hello")
                assert (await listener.get_message(timeout=2))["data"] == b"hello"
            async with client.client() as single:
                assert await single.client_id() == await single.client_id()
            await client.delete("pool-redis:key")
            assert pool.pool.state().in_use == 0
            assert pool.pool.state().statistics.connections_created <= 6
            await client.aclose()
            assert await client.ping()  # a client does not close a pool that it was given

    run(main())


def test_no_session_state_travels_between_commands(manager: RedisConnectionManager, run: Any) -> None:
    """The trap that redis-py's pools leave open: MULTI by one task, QUEUED to the next."""

    async def main() -> None:
        async with RedisPool(manager, max_size=1) as pool:
            client = Redis(connection_pool=pool)
            await client.execute_command("MULTI")
            assert await client.echo("hello") == b"hello"
            await client.select(5)
            assert (await client.client_info())["db"] == 0

    run(main())


def test_it_opens_itself_and_again(redis: Server) -> None:
    """redis-py's pools need no opening, and work after aclose() and in the next event loop."""
    pool = RedisPool(redis.url, max_size=2)

    async def use() -> None:
        client = Redis(connection_pool=pool)
        assert await client.ping()
        await pool.aclose()
        assert await client.ping()
        await pool.aclose()

    asyncio.run(use())
    asyncio.run(use())


def test_a_client_made_from_the_pool_closes_its_connections(redis: Server, run: Any) -> None:
    """Redis.from_pool owns its pool: it closes it, or before redis-py 8.1 disconnects it."""

    async def main() -> None:
        pool = RedisPool(redis.url)
        async with Redis.from_pool(pool) as client:
            assert await client.ping()
        await asyncio.sleep(0.05)
        assert pool.pool.state().idle == 0
        await pool.aclose()

    run(main())


def test_waiters_are_served_in_turn_with_a_deadline(redis: Server, run: Any) -> None:
    """redis-py's ConnectionPool fails at its limit, its BlockingConnectionPool lets newcomers overtake."""

    async def main() -> None:
        async with RedisPool(redis.url, max_size=1, connection_timeout=0.3) as pool:
            client = Redis(connection_pool=pool)
            order: list[int] = []

            async def take(number: int) -> None:
                await client.echo(str(number))
                order.append(number)

            await asyncio.gather(*(take(number) for number in range(20)))
            assert order == list(range(20))
            connection = await pool.get_connection()
            began = time.monotonic()
            with pytest.raises(MaxConnectionsError, match="waited 0.3"):
                await client.ping()
            assert 0.25 < time.monotonic() - began < 1
            await pool.release(connection)
            assert await client.ping()

    run(main())


def test_connect_errors_are_redis_pys(guarded: Server, run: Any) -> None:
    """`except redis.ConnectionError` and `except redis.AuthenticationError` go on working."""

    async def main() -> None:
        wrong = RedisPool(RedisConnectionManager(host=guarded.host, port=guarded.port, password="wrong"))
        with pytest.raises(AuthenticationError):
            await Redis(connection_pool=wrong).ping()
        await wrong.aclose()
        down = RedisPool("redis://127.0.0.1:1", connection_timeout=0.3, error_sink=lambda _: None)
        with pytest.raises(RedisConnectionError, match="(?i)refused|connect call failed"):
            await Redis(connection_pool=down).ping()
        await down.aclose()

    run(main())


def test_a_retry_works_and_the_connection_keeps_its_true_age(redis: Server, run: Any) -> None:
    """A connection that redis-py reconnected under its user is younger than its entry: it is not kept."""

    async def main() -> None:
        manager = RedisConnectionManager(redis.url)
        killer = await manager.connect()
        async with RedisPool(manager, max_size=1, retry=Retry(NoBackoff(), 2)) as pool:
            client = Redis(connection_pool=pool)
            connection = await pool.get_connection()
            await connection.send_command("CLIENT", "ID")
            await killer.client_kill_filter(_id=str(await connection.read_response()))

            async def ping() -> Any:
                await connection.send_command("PING")
                return await connection.read_response()

            async def again(error: Exception) -> None:
                await connection.disconnect()

            assert await connection.retry.call_with_retry(ping, again) in (b"PONG", "PONG")
            await pool.release(connection)
            assert pool.pool.state().statistics.connections_closed[CloseReason.BROKEN] == 1
            assert await client.ping()
            client.set_retry(Retry(NoBackoff(), 1))
            connection = await pool.get_connection()
            assert connection.retry.get_retries() == 1
            await pool.release(connection)
            assert connection.retry.get_retries() == 0
        await manager.close(killer)

    run(main())


def test_a_subscriber_survives_the_loss_of_its_connection(redis: Server, run: Any) -> None:
    """redis-py reconnects and subscribes again: so it does on a connection of ours, which then is not kept."""

    async def main() -> None:
        manager = RedisConnectionManager(redis.url)
        killer = await manager.connect()
        async with RedisPool(manager, max_size=2, retry=Retry(NoBackoff(), 3)) as pool:
            client = Redis(connection_pool=pool)
            async with client.pubsub() as listener:
                await listener.subscribe("pool-redis:news")
                await listener.get_message(timeout=2)
                await killer.client_kill_filter(_type="pubsub")
                await asyncio.sleep(0.05)
                received = None
                for _ in range(20):
                    await client.publish("pool-redis:news", "hello")
                    message = await listener.get_message(timeout=0.2)
                    if message and message["type"] == "message":
                        received = message["data"]
                        break
                assert received == b"hello"
            assert pool.pool.state().in_use == 0
        await manager.close(killer)

    run(main())


def test_disconnect_closes_idle_and_used_connections(redis: Server, run: Any) -> None:
    """As redis-py's: what is used is cut unless it is told not to be."""

    async def main() -> None:
        async with RedisPool(redis.url, max_size=3) as pool:
            gentle, cut = await pool.get_connection(), await pool.get_connection()
            await pool.disconnect(inuse_connections=False)
            await gentle.send_command("PING")
            assert await gentle.read_response() in (b"PONG", "PONG")
            await pool.release(gentle)
            await pool.disconnect()
            assert cut.is_connected is False
            await pool.release(cut)
            await pool.release(cut)  # a second time does nothing
            idle = await pool.get_connection()
            await pool.release(idle)
            pool.reset()
            await asyncio.sleep(0.05)
            assert pool.pool.state().idle == 0
            assert sum(pool.pool.state().statistics.connections_closed.values()) == 3

    run(main())


def test_a_new_token_retires_what_logged_in_with_the_old_one(redis: Server, run: Any) -> None:
    """redis-py's streaming credentials: idle connections would go on as the old user."""

    async def main() -> None:
        async with RedisPool(redis.url, max_size=2) as pool:
            client = Redis(connection_pool=pool)
            old = await client.client_id()
            await pool.re_auth_callback(None)  # type: ignore[arg-type]
            assert await client.client_id() != old

    run(main())


def test_what_a_client_asks_its_pool_is_answered(redis: Server, run: Any) -> None:
    """Encoder, protocol, and the counts of redis-py's metrics."""

    async def main() -> None:
        manager = RedisConnectionManager(redis.url, decode_responses=True, protocol=2)
        async with RedisPool(manager, max_size=2, min_idle=2, name="mine") as pool:
            client = Redis(connection_pool=pool)
            assert await client.echo("grüße") == "grüße"
            assert client.get_encoder().decode_responses is True
            assert pool.get_protocol() == 2
            connection = await pool.get_connection()
            [(idle, idle_is), (used, used_is)] = pool.get_connection_count()
            assert (idle, used) == (1, 1)
            assert idle_is["db.client.connection.state"] != used_is["db.client.connection.state"]
            await pool.release(connection)

    run(main())


def test_a_foreign_connection_is_refused(redis: Server, run: Any) -> None:
    """redis-py raises a bare KeyError."""

    async def main() -> None:
        async with RedisPool(redis.url) as pool:
            with pytest.raises(TypeError, match="is not a connection of this pool"):
                await pool.release(Connection())

    run(main())


def test_guard_is_refused() -> None:
    """An option that could do nothing must not be accepted."""
    with pytest.raises(ValueError, match="guard=True"):
        RedisPool("redis://localhost", guard=True)


def test_an_unused_or_closed_pool_is_left_alone(redis: Server, run: Any) -> None:
    """redis-py's disconnect(), reset() and re_auth_callback() do nothing where nothing is open."""
    pool = RedisPool(redis.url, max_size=2)

    async def nothing_happens() -> None:
        pool.reset()
        await pool.disconnect()
        await pool.disconnect(inuse_connections=False)
        await pool.re_auth_callback(None)  # type: ignore[arg-type]
        await pool.aclose()
        assert pool.get_connection_count()[0][0] == 0

    async def main() -> None:
        await nothing_happens()
        assert await Redis(connection_pool=pool).ping()
        await pool.aclose()
        await nothing_happens()

    pool.reset()  # without an event loop, too
    run(main())
    pool.reset()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_pool_left_open_in_a_loop_that_has_ended_is_left_alone(redis: Server, run: Any) -> None:
    """Tests with a loop each, and a pool of the module: redis-py forgets what belongs to the dead loop."""
    pool = RedisPool(redis.url, max_size=2)

    async def use() -> None:
        assert await Redis(connection_pool=pool).ping()

    asyncio.run(use())
    pool.reset()

    async def again() -> None:
        await pool.disconnect()
        await use()
        await pool.aclose()

    run(again())
    gc.collect()  # what the dead loop has left must not be found in another test


def test_redis_pys_pool_options_in_a_url_are_taken(redis: Server, run: Any) -> None:
    """An application's setting REDIS_URL often says max_connections."""
    url = f"{redis.url}?max_connections=3&timeout=0.25&retry_on_timeout=true&socket_timeout=2"
    pool = RedisPool(url)
    assert (pool.pool.config.max_size, pool.pool.config.connection_timeout) == (3, 0.25)
    assert pool.connection_kwargs["retry"].get_retries() == 1
    assert RedisPool(url, max_size=7).pool.config.max_size == 7
    assert RedisPool(f"{redis.url}?retry_on_timeout=no").connection_kwargs["retry"] is None
    with pytest.raises(ValueError, match="max_connections in the URL: expected a number, for the pool's max_size$"):
        RedisPool(f"{redis.url}?max_connections=many")

    async def main() -> None:
        async with pool:
            connection = await pool.get_connection()
            assert connection.socket_timeout == 2
            assert connection.retry.get_retries() == 1
            await pool.release(connection)

    run(main())


def test_misplaced_pool_options_name_the_right_one() -> None:
    """The advice must fit the place where it is given."""
    with pytest.raises(TypeError, match="max_size"):
        RedisPool("redis://localhost", max_connections=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="max_connections is an option of redis-py's pools: give the pool max_size"):
        RedisConnectionManager("redis://localhost?max_connections=3")
