"""Cluster: a lease is a cluster client of its own, with at most one connection to each node."""

# redis-py types the commands of a pipeline as awaitables, and some of its methods not at all.
# mypy: disable-error-code="no-untyped-call,attr-defined"
# pyright: reportAttributeAccessIssue=false, reportOptionalSubscript=false

import asyncio
import time
import traceback
from collections.abc import Iterator
from typing import Any

import fleet
import pytest
from fleet import Fleet
from load import balanced, load
from pool_core import CloseReason, ConnectError, Pool, PoolTimeout
from pool_redis import LeasedRedisCluster, RedisClusterConnectionManager, WrongServer
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.cluster import LoadBalancingStrategy
from redis.crc import key_slot
from redis.exceptions import RedisClusterException, RedisError

from containers.servers import Server

SECRET = "canary-Sesame"


@pytest.fixture
def whole(cluster: Fleet) -> Iterator[Fleet]:
    """The cluster; whatever the test did to it is healed behind it."""
    yield cluster
    cluster.heal()
    fleet.settled(cluster)


def manager_of(cluster: Fleet, **options: Any) -> RedisClusterConnectionManager:
    """A manager that is told of two nodes."""
    return RedisClusterConnectionManager(nodes=[("127.0.0.1", port) for port in cluster.ports[1:3]], **options)


def clients(cluster: Fleet) -> dict[int, int]:
    """How many ordinary clients each node has, the asking one not counted."""
    return {port: len(cluster.ask(port, "CLIENT", "LIST", "TYPE", "normal").splitlines()) - 1 for port in cluster.ports}


def port_of(client: LeasedRedisCluster, key: str) -> int:
    """The port of the node that a client believes to serve a key."""
    node = client.get_node_from_key(key)
    assert node is not None
    return int(node.port)


async def write(client: LeasedRedisCluster, value: str) -> object:
    """Write and read back what nobody else writes."""
    await client.set(f"pool-redis:{value}", value, ex=60)
    return await client.get(f"pool-redis:{value}")


def test_a_url_names_some_of_the_nodes(whole: Fleet, run: Any) -> None:
    """The others are learnt from them."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in whole.ports[:2])

    async def main() -> None:
        url = f"redis+cluster://{hosts}?decode_responses=1&pool_max_size=2"
        async with Pool.from_url(url) as pool, pool.get() as client:
            for number in range(20):
                assert await write(client, f"x{number}") == f"x{number}"
            assert len(client.get_nodes()) == 6

    run(main())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"redis+cluster://user:{SECRET}/x@host", "percent-encode"),
        (f"redis+cluster://user:{SECRET}@host:port", "a port of the URL is not a number"),
        (f"redis+cluster://host/{SECRET}", "only database 0"),
        (
            f"redis+cluster://host?socket_timeout={SECRET}",
            "socket_timeout in the URL has a value that redis-py cannot read",
        ),
        (f"redis://user:{SECRET}@host", "must start with redis.cluster://"),
        ("redis+cluster://", "the URL names no host"),
    ],
)
def test_a_bad_url_is_refused_without_showing_it(url: str, words: str) -> None:
    """As with one server: nobody may quote the URL."""
    with pytest.raises(ValueError, match=words) as caught:
        RedisClusterConnectionManager(url)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"db": 1}, ValueError, "only database 0"),
        ({"max_connections": 5}, ValueError, "one connection to each node"),
        ({"path": "/run/redis.sock"}, ValueError, "over TCP"),
        ({"pasword": "x"}, TypeError, "pasword"),
        ({"protocol": 9}, ValueError, "protocol"),
    ],
)
def test_bad_settings_are_refused_at_once(options: dict[str, Any], error: type[Exception], words: str) -> None:
    """Before any I/O, with what to do."""
    with pytest.raises(error, match=words):
        RedisClusterConnectionManager(nodes=[("127.0.0.1", 7000)], **options)
    with pytest.raises(ValueError, match="at least one pair"):
        RedisClusterConnectionManager()


def test_no_picture_shows_a_password() -> None:
    """Neither of the manager nor of what redis-py's client keeps."""
    manager = RedisClusterConnectionManager(f"redis+cluster://user:{SECRET}@127.0.0.1:7000")
    client = manager._settings.client(asyncio.run(manager._settings.resolved()), {})
    for thing in (manager, client):
        assert SECRET not in repr(thing) + repr(vars(thing))
    assert SECRET not in repr(client.connection_kwargs)
    manager.update(decode_responses=True)
    with pytest.raises(ValueError, match="only database 0"):
        manager.update(db=3)
    assert manager._settings.values["decode_responses"] is True


def test_a_lease_has_at_most_one_connection_to_each_node(whole: Fleet, run: Any) -> None:
    """What a pool of n leases costs in sockets must be known: n to each node that was needed, and none beside."""

    async def main() -> None:
        before = clients(whole)
        manager = manager_of(whole)
        async with Pool(manager, max_size=3, min_idle=3) as pool:
            assert sum(clients(whole).values()) <= sum(before.values()) + 3
            leases = [await pool.get() for _ in range(3)]
            for lease in leases:
                answers = await asyncio.gather(*(write(lease.conn, f"{id(lease)}-{n}") for n in range(50)))
                assert answers == [f"{id(lease)}-{n}".encode() for n in range(50)]
            now = clients(whole)
            masters = [port for port in whole.ports if whole.role(port) == "master"]
            assert {port: now[port] - before[port] for port in masters} == dict.fromkeys(masters, 3)
            assert sum(now.values()) - sum(before.values()) <= 3 * len(masters) + 3
            for lease in leases:
                lease.release()
            assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 0
        await asyncio.sleep(0.1)
        assert clients(whole) == before

    run(main())


def test_a_lease_does_what_a_cluster_client_does(whole: Fleet, run: Any) -> None:
    """Pipelines over nodes, transactions on a slot, scripts, commands to all nodes."""

    async def main() -> None:
        async with Pool(manager_of(whole), max_size=1) as pool:
            async with pool.get() as client:
                assert isinstance(client, RedisCluster)
                pipe = client.pipeline()
                for number in range(30):
                    pipe.set(f"pool-redis:p{number}", number)
                assert await pipe.execute() == [True] * 30
                async with client.pipeline(transaction=True) as pipe:
                    pipe.set("{pool-redis}a", 1)
                    pipe.incr("{pool-redis}a")
                    assert await pipe.execute() == [True, 2]
                assert await client.eval("return ARGV[1]", 1, "pool-redis:x", "y") == b"y"
                assert await client.ping(target_nodes=RedisCluster.ALL_NODES) is True
                assert await client.mget_nonatomic("pool-redis:p1", "pool-redis:p2") == [b"1", b"2"]
            assert pool.state().idle == 1

    run(main())


def test_pubsub_works_and_costs_the_client(whole: Fleet, run: Any) -> None:
    """As with one server: a client that had a PubSub is not used again."""

    async def main() -> None:
        async with Pool(manager_of(whole), max_size=2) as pool:
            async with pool.get() as listening, pool.get() as talking:
                listener = listening.pubsub()
                await listener.subscribe("pool-redis:news")
                assert (await listener.get_message(timeout=2))["type"] == "subscribe"
                await talking.publish("pool-redis:news", "hello")
                message = None
                for _ in range(20):
                    message = await listener.get_message(timeout=0.2)
                    if message is not None:
                        break
                assert message is not None
                assert message["data"] == b"hello"
                await listener.aclose()
            closed = pool.state().statistics.connections_closed
            assert closed[CloseReason.BROKEN] == 1

    run(main())


def test_what_a_borrower_changes_is_not_lent_on(whole: Fleet, run: Any) -> None:
    """Session state costs one node's connection, a change of the client costs the client; neither a round trip."""

    async def main() -> None:
        manager = manager_of(whole)
        async with Pool(manager, max_size=1) as pool:
            async with pool.get() as client:
                await client.set("pool-redis:x", 1)
                node = client.get_node_from_key("pool-redis:x")
                await client.execute_command("MULTI", target_nodes=node)
                first = client
            async with pool.get() as client:
                assert client is first
                assert await client.get("pool-redis:x") == b"1"
            async with pool.get() as client:
                client.set_response_callback("GET", lambda reply: "mine")
            async with pool.get() as client:
                assert client is not first
                client.set_retry(Retry(NoBackoff(), 1))
                second = client
            async with pool.get() as client:
                assert client is not second
                held = client.get_nodes()[0].acquire_connection()
                third = client
            async with pool.get() as client:
                assert client is not third
            assert held is not None

    run(main())


def test_reading_from_replicas_stays_readonly(whole: Fleet, run: Any) -> None:
    """READONLY belongs to the handshake then: it is neither dirt nor lost by a reset."""

    async def main() -> None:
        manager = manager_of(whole, load_balancing_strategy=LoadBalancingStrategy.ROUND_ROBIN)
        async with Pool(manager, max_size=1) as pool:
            async with pool.get() as client:
                await client.set("pool-redis:r", "x")
                await client.execute_command("WAIT", 1, 1000, target_nodes=client.get_node_from_key("pool-redis:r"))
            for _ in range(6):
                async with pool.get() as client:
                    assert await client.get("pool-redis:r") == b"x"
            assert len([connection for connection in client.sockets if connection.is_connected]) >= 2
            assert pool.state().statistics.connections_created == 1

    run(main())


def test_a_slot_that_moves_is_followed(whole: Fleet, run: Any) -> None:
    """ASK while it moves, MOVED when it has: no borrower sees either, and every answer is right."""
    key = "pool-redis:moving"
    slot = str(key_slot(key.encode()))

    async def main() -> None:
        manager = manager_of(whole)
        async with Pool(manager, max_size=2) as pool:
            async with pool.get() as client:
                await client.set(key, "before")
                source = port_of(client, key)
                target = next(int(node.port) for node in client.get_primaries() if node.port != source)
            names = {port: str(whole.ask(port, "CLUSTER", "MYID")) for port in (source, target)}

            def move(*stages: str) -> None:
                if "ask" in stages:
                    whole.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
                    whole.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
                    whole.ask(source, "MIGRATE", "127.0.0.1", str(target), key, "0", "2000")
                if "moved" in stages:
                    for port in (target, source):
                        whole.ask(port, "CLUSTER", "SETSLOT", slot, "NODE", names[target])

            await asyncio.to_thread(move, "ask")
            for _ in range(5):
                async with pool.get() as one, pool.get() as other:
                    assert await one.get(key) == b"before"
                    assert await other.set(key, "before")
            await asyncio.to_thread(move, "moved")
            for number in range(10):
                async with pool.get() as client:
                    assert await client.set(key, number)
                    assert await client.get(key) == str(number).encode()
            assert port_of(client, key) == target
            balanced(pool)

    run(main())


def test_what_is_no_node_of_a_cluster_is_told_at_once(redis: Server, run: Any) -> None:
    """A single server's address is the commonest mistake."""

    async def main() -> None:
        manager = RedisClusterConnectionManager(nodes=[(redis.host, redis.port)])
        began = time.monotonic()
        async with Pool(manager) as pool:
            with pytest.raises(ConnectError, match="cluster support is disabled") as caught:
                await pool.get()
        assert isinstance(caught.value.__cause__, WrongServer)
        assert time.monotonic() - began < 1

    run(main())


def test_nodes_that_do_not_answer_may_come_back(run: Any) -> None:
    """Nobody listens there: an error in bounded time that may pass."""

    async def main() -> None:
        manager = RedisClusterConnectionManager(nodes=[("127.0.0.1", 1), ("127.0.0.1", 2)])
        with pytest.raises(RedisClusterException, match="cannot be connected") as caught:
            await manager.connect()
        assert manager.is_transient(caught.value) is True

    run(main())


def test_every_waiter_is_served_after_a_master_was_killed(whole: Fleet, run: Any) -> None:
    """SIGKILL of a master under load, then of nobody else: its replica takes over, and all answers are right."""

    async def main() -> None:
        async with Pool(manager_of(whole), max_size=4, min_idle=2, error_sink=lambda _: None) as pool:
            stop = asyncio.Event()
            loading = asyncio.create_task(load(pool, write, stop))
            await asyncio.sleep(0.3)
            victim = next(port for port in whole.ports if whole.role(port) == "master")
            await asyncio.to_thread(whole.nodes[victim].kill)
            await asyncio.sleep(1)
            waiting = [asyncio.create_task(_until_served(pool, f"waiter-{number}")) for number in range(40)]
            _, pending = await asyncio.wait(waiting, timeout=25)
            assert not pending
            await asyncio.gather(*waiting)
            await asyncio.to_thread(whole.nodes[victim].start)
            await asyncio.sleep(0.5)
            stop.set()
            outcome = await loading
            assert outcome.wrong == []
            assert outcome.served > 8
            balanced(pool)

    run(main())


async def _until_served(pool: Pool[LeasedRedisCluster], value: str) -> None:
    while True:
        try:
            async with pool.get() as client:
                assert await write(client, value) == value.encode()
                return
        except RedisError:  # the slot has no master yet; the borrower decides whether to try again
            await asyncio.sleep(0.2)


def test_half_a_cluster_down_is_told_in_bounded_time(whole: Fleet, run: Any) -> None:
    """Most masters and their replicas are gone: an error that says so, within the time given, and recovery later."""

    async def main() -> None:
        masters = [port for port in whole.ports if whole.role(port) == "master"]
        left = masters[-1]
        gone = [port for port in whole.ports if port != left]
        manager = RedisClusterConnectionManager(nodes=[("127.0.0.1", left), ("127.0.0.1", gone[0])])
        async with Pool(manager, error_sink=lambda _: None, max_size=2) as pool:
            async with pool.get() as client:
                key = next(f"x{n}" for n in range(100) if port_of(client, f"x{n}") == masters[0])
                for port in gone:
                    await asyncio.to_thread(whole.nodes[port].kill)
                began = time.monotonic()
                with pytest.raises((RedisError, RedisClusterException)):
                    await client.get(key)
                assert time.monotonic() - began < 10
            down = ""
            began = time.monotonic()
            while not down:  # until the one that is left has noticed
                assert time.monotonic() - began < 15
                asked = time.monotonic()
                try:
                    async with pool.get(timeout=1):
                        pool.evict()
                except PoolTimeout as error:
                    down = str(error)
                assert time.monotonic() - asked < 2
                await asyncio.sleep(0.1)
            assert "the cluster is down: cluster_state is fail" in down
            for port in gone:
                await asyncio.to_thread(whole.nodes[port].start)
            await asyncio.wait_for(_until_served(pool, "again"), 25)

    run(main())
