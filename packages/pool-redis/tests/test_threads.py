"""pool_redis.threads on a real server: redis-py's blocking client in the pool for threads."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pool_core.threads import CloseReason, Pool
from pool_redis.threads import LeasedRedis, RedisConnectionManager
from redis.exceptions import RedisError

from containers.servers import Server


@pytest.fixture
def pool(redis: Server) -> Iterator[Pool[LeasedRedis]]:
    with Pool(RedisConnectionManager(redis.url), max_size=4) as pool:
        yield pool


def closed(pool: Pool[Any]) -> int:
    return sum(pool.state().statistics.connections_closed.values())


def test_threads_share_connections(pool: Pool[LeasedRedis]) -> None:
    """Each reply is its own."""
    wrong: list[object] = []

    def work(number: int) -> None:
        for _ in range(20):
            with pool.get() as client:
                if client.echo(f"thread {number}") != f"thread {number}".encode():
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.state().statistics.connections_created <= 4
    assert closed(pool) == 0


def test_a_clean_connection_costs_no_reset(pool: Pool[LeasedRedis]) -> None:
    """It is idle at once."""
    with pool.get() as client:
        client.set("threads:key", "1")
        client.delete("threads:key")
    assert pool.state().idle == 1


def test_what_a_borrower_changed_is_taken_back(redis: Server) -> None:
    """The database, the name, WATCH and MULTI; on the same connection."""
    with Pool(RedisConnectionManager(redis.url), max_size=1) as pool:
        with pool.get() as client:
            number = client.client_id()
            client.execute_command("SELECT", 3)  # type: ignore[no-untyped-call]
            client.client_setname("mine")
            client.execute_command("WATCH", "threads:key")  # type: ignore[no-untyped-call]
        with pool.get() as client:
            assert client.client_id() == number
            assert not client.client_getname()
            assert client.client_info()["db"] == 0


def test_a_subscribed_connection_is_replaced(redis: Server) -> None:
    """Messages could come in between."""
    with Pool(RedisConnectionManager(redis.url), max_size=1) as pool:
        with pool.get() as client:
            number = client.client_id()
            pubsub = client.pubsub()  # type: ignore[no-untyped-call]
            pubsub.subscribe("threads:channel")
        with pool.get() as client:
            assert client.client_id() != number
        pubsub.close()


def test_a_pipeline_and_a_blocking_command_work(redis: Server) -> None:
    """socket_timeout does not count while a command blocks."""
    with Pool(RedisConnectionManager(redis.url, socket_timeout=0.5), max_size=1) as pool, pool.get() as client:
        with client.pipeline() as pipe:
            pipe.set("threads:p", "1")
            pipe.get("threads:p")
            pipe.delete("threads:p")
            assert pipe.execute()[1] == b"1"
        assert client.tracked.unanswered == 0
        began = time.monotonic()
        assert client.blpop(["threads:none"], timeout=1) is None
        assert time.monotonic() - began >= 0.9
        assert client.ping()


def test_a_killed_connection_is_replaced(redis: Server) -> None:
    """By the server, while it was idle: the end of the connection shows without a command."""
    with Pool(RedisConnectionManager(redis.url), max_size=2) as pool:
        with pool.get() as one, pool.get() as other:
            other.client_kill_filter(_id=str(one.client_id()))
            time.sleep(0.1)
        with pool.get() as one, pool.get() as other:
            assert one.ping()
            assert other.ping()
        assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 1


def test_a_lease_never_reconnects(pool: Pool[LeasedRedis]) -> None:
    """A new connection under an old lease would have another session."""
    with pool.get() as client:
        client.tracked.disconnect()
        with pytest.raises(RedisError, match="never reconnects"):
            client.ping()


def test_terminate_ends_a_call_that_is_blocked(redis: Server) -> None:
    """close(timeout) does not wait for BLPOP."""
    pool = Pool(RedisConnectionManager(redis.url, socket_timeout=None))
    pool.open()
    failed: list[BaseException] = []
    running = threading.Event()

    def run() -> None:
        with contextlib.suppress(Exception), pool.get() as client:
            running.set()
            try:
                client.blpop(["threads:none"], timeout=30)
            except Exception as error:
                failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    running.wait(20)
    time.sleep(0.2)
    began = time.monotonic()
    pool.close(0.2)
    thread.join(10)
    assert not thread.is_alive()
    assert time.monotonic() - began < 8
    assert failed


def test_a_wrong_password_fails_at_once_and_is_not_shown(guarded: Server) -> None:
    """Not transient."""
    url = f"redis://:wrong-s3cr3t@{guarded.host}:{guarded.port}/0"
    manager = RedisConnectionManager(url)
    with Pool(manager) as pool:
        began = time.monotonic()
        with pytest.raises(Exception, match="(?i)wrongpass|invalid") as caught:
            pool.get(timeout=20)
        assert time.monotonic() - began < 10
        assert "s3cr3t" not in str(caught.value) + repr(manager)
    with Pool(RedisConnectionManager(guarded.url), max_size=1) as pool, pool.get() as client:
        assert client.ping()


def test_a_url_finds_the_manager_for_threads(redis: Server) -> None:
    """The entry point."""
    with Pool.from_url(redis.url + "?pool_max_size=2") as pool, pool.get() as client:
        assert isinstance(client, LeasedRedis)
        assert pool.config.max_size == 2
