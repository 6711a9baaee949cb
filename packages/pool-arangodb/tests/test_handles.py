"""Handles, their settings, and what errors mean."""

import asyncio
import time
from typing import Any

import pytest
from arangoasync.exceptions import (
    AQLQueryExecuteError,
    ArangoServerError,
    ClientConnectionAbortedError,
    DatabasePropertiesError,
)
from arangoasync.request import Method, Request
from arangoasync.response import Response
from pool_arangodb import ArangoConnectionManager
from pool_core import CloseReason, ConnectError, Pool, PoolTimeout, Verdict
from pool_core.testing import FaultProxy

from containers.servers import Server, ServerFactory

SECRET = "c@nary/secret"


def through(proxy: FaultProxy, arango: Server, **options: Any) -> ArangoConnectionManager:
    return ArangoConnectionManager(
        host=proxy.host, port=proxy.port, user=arango.user, password=arango.password, **options
    )


async def ask(handle: Any, query: str = "RETURN 42") -> list[Any]:
    return [value async for value in await handle.aql.execute(query)]


async def test_a_handle_has_one_connection_which_serves_all_its_requests(arango: Server) -> None:
    """max_size counts connections, also where a borrower asks several things at once."""
    with FaultProxy(arango.host, arango.port) as proxy:
        async with Pool(through(proxy, arango), max_size=2, min_idle=2) as pool, pool.get() as handle:
            assert await asyncio.gather(*[ask(handle) for _ in range(5)]) == [[42]] * 5
            assert proxy.open == 2
            assert proxy.accepted == 2


async def test_a_request_that_fails_is_sent_once(arango: Server) -> None:
    """The driver would send it three times, an INSERT too."""
    with FaultProxy(arango.host, arango.port) as proxy:
        handle = await (manager := through(proxy, arango)).connect()
        accepted = proxy.accepted
        proxy.fin(new=True)
        with pytest.raises(ClientConnectionAbortedError):
            await ask(handle)
        assert proxy.accepted <= accepted + 2  # aiohttp itself repeats on a new socket what an idle one has not taken
        await manager.close(handle)


async def test_a_connection_that_the_network_has_dropped_costs_no_borrower_anything(arango: Server) -> None:
    """The next request opens another one."""
    with FaultProxy(arango.host, arango.port) as proxy:
        async with Pool(through(proxy, arango), max_size=1, min_idle=1, alive_bypass=0) as pool:
            for _ in range(3):
                async with pool.get() as handle:
                    assert await ask(handle) == [42]
                proxy.reset()
                await asyncio.sleep(0.02)


@pytest.mark.cancellation
async def test_a_cancelled_request_leaves_nothing_to_the_next_borrower(arango: Server) -> None:
    """Its connection is closed, and the handle is used again."""
    async with Pool(ArangoConnectionManager(arango.url), max_size=1, min_idle=1) as pool:
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                async with pool.get() as handle, asyncio.timeout(0.1):
                    await ask(handle, "RETURN SLEEP(20)")
            assert time.monotonic() - began < 1
            async with pool.get(timeout=5) as handle:
                assert await ask(handle) == [42]
        assert pool.state().statistics.connections_created == 1


async def test_a_handle_that_another_task_still_uses_is_not_passed_on(arango: Server) -> None:
    """The borrower has left the block, and a task of it goes on."""
    async with Pool(ArangoConnectionManager(arango.url), max_size=1, min_idle=1) as pool:
        async with pool.get() as handle:
            task = asyncio.ensure_future(ask(handle, "RETURN SLEEP(20)"))
            await asyncio.sleep(0.05)
        async with pool.get(timeout=5) as other:
            assert other is not handle
        assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 1
        task.cancel()
        await asyncio.wait([task])


async def test_killed_and_started_again(arango: Server, server: ServerFactory) -> None:
    """Waiters wait for the server's return."""
    with server("arangodb", fresh=True) as mine:
        async with Pool(ArangoConnectionManager(mine.url), alive_bypass=0, error_sink=lambda error: None) as pool:
            async with pool.get() as handle:
                assert await ask(handle) == [42]
            await asyncio.to_thread(mine.kill)
            with pytest.raises(PoolTimeout) as caught:
                await pool.get(timeout=1.5)
            assert "Connect" in repr(caught.value.__cause__)
            waiters = [asyncio.ensure_future(pool.get(timeout=20)) for _ in range(5)]
            await asyncio.to_thread(mine.start)
            for waiter in waiters:
                lease = await waiter
                assert await ask(lease.conn) == [42]
                lease.release()


async def test_a_refusal_is_told_at_once_with_its_cause_and_without_the_secret(arango: Server) -> None:
    """A wrong password, an unknown database; the right one later works."""
    manager = ArangoConnectionManager(arango.url, password=SECRET)
    async with Pool(manager, error_sink=lambda error: None) as pool:
        with pytest.raises(ConnectError) as caught:
            await pool.get(timeout=10)
        assert isinstance(caught.value.__cause__, DatabasePropertiesError)
        assert SECRET not in repr(caught.value.__cause__) + str(caught.value)
        manager.update(password=arango.password, database="nowhere")
        with pytest.raises(ConnectError, match="database not found"):
            await pool.get(timeout=10)
        manager.update(database="_system")
        async with pool.get() as handle:
            assert await ask(handle) == [42]


async def test_network_errors_are_told_with_their_cause(arango: Server) -> None:
    """The driver says only that it cannot connect within a limit."""
    unknown = ArangoConnectionManager("arangodb://no-such-host.invalid")
    with pytest.raises(ClientConnectionAbortedError) as caught:
        await unknown.connect()
    assert "no-such-host.invalid" in str(caught.value.__cause__)
    assert not unknown.is_transient(caught.value)
    down = ArangoConnectionManager("arangodb://127.0.0.1:9")
    with pytest.raises(ClientConnectionAbortedError) as refused:
        await down.connect()
    assert down.is_transient(refused.value)
    plain = ArangoConnectionManager(f"arangodb+https://{arango.host}:{arango.port}", password=SECRET)
    with pytest.raises(ClientConnectionAbortedError):
        async with asyncio.timeout(5):
            await plain.connect()


async def test_a_login_that_is_a_callable_is_asked_for_each_handle(arango: Server) -> None:
    """Tokens may expire."""
    asked = []

    async def password() -> str:
        asked.append(1)
        return arango.password or ""

    manager = ArangoConnectionManager(host=arango.host, port=arango.port, user="root", password=password)
    async with Pool(manager, max_size=2, min_idle=2) as pool, pool.get() as handle:
        assert await ask(handle) == [42]
    assert len(asked) == 2


def answered(status: int, number: int, kind: type[ArangoServerError] = AQLQueryExecuteError) -> ArangoServerError:
    response = Response(Method.GET, "http://h/", {}, status, "text", b"")
    response.error_code, response.error_message = number, "text"
    return kind(response, Request(Method.GET, "/"))


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (answered(403, 1004), Verdict.RETIRE_ALL),
        (answered(503, 1496), Verdict.RETIRE_ALL),
        (answered(409, 1210), Verdict.KEEP),
        (ValueError("no"), Verdict.KEEP),
    ],
)
def test_verdicts(error: Exception, verdict: Verdict) -> None:
    """A server that takes no writes any more."""
    handle: Any = None
    assert ArangoConnectionManager().judge(error, handle) is verdict


async def test_a_server_that_has_become_read_only_retires_all(arango: Server) -> None:
    """As after a failover."""
    if arango.name != "Protocol double":
        pytest.skip("nothing makes this server read only here")
    async with Pool(ArangoConnectionManager(arango.url), max_size=2, min_idle=2) as pool:
        with pytest.raises(AQLQueryExecuteError):
            async with pool.get() as handle:
                await ask(handle, "INSERT {} INTO readonly")
        async with pool.get() as handle:
            assert await ask(handle) == [42]
        assert pool.state().statistics.connections_created >= 3


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (answered(401, 11), False),
        (answered(403, 11), False),
        (answered(404, 1228), False),
        (answered(503, 1495), True),
        (ClientConnectionAbortedError("Can't connect to host(s) within limit (1)"), True),
    ],
)
def test_transience(error: Exception, transient: bool) -> None:
    """A refusal needs a person; a server that starts does not."""
    assert ArangoConnectionManager().is_transient(error) is transient


@pytest.mark.parametrize(
    ("url", "options", "error", "says"),
    [
        ("http://h", {}, ValueError, "must start with arangodb:// or arangodb.https://"),
        ("arangodb://h:port", {}, ValueError, "a port of the URL is not a number"),
        (
            "arangodb://h?timeout=0",
            {},
            ValueError,
            "timeout='0' in the URL|timeout=0|timeout in the URL|expected a finite",
        ),
        ("arangodb://h?max_connections=5", {}, TypeError, "max_connections is not taken: use the pool's max_size"),
        ("arangodb://h\n", {}, ValueError, "the URL ends with a line break"),
        (None, {"pasword": "x"}, TypeError, "did you mean 'password'"),
        (None, {"port": 0}, ValueError, "port=0: expected an int from 1 to 65535"),
        (None, {"tls": "yes"}, TypeError, "tls is of type str: expected an ssl.SSLContext"),
    ],
)
def test_bad_settings_are_refused_when_the_manager_is_made(url: Any, options: Any, error: Any, says: str) -> None:
    """Before any I/O, without a loop, in one sentence."""
    with pytest.raises(error, match=says):
        ArangoConnectionManager(url, **options)


def test_the_url_is_read_and_its_secret_not_shown() -> None:
    """By Pool.from_url too."""
    manager = ArangoConnectionManager("arangodb+https://ada:c%40nary@[::1]:1/shop?timeout=5")
    assert repr(manager) == "<ArangoConnectionManager https://[::1]:1/shop>"
    assert "c@nary" not in repr(vars(manager)) + repr(manager._settings.values)
    assert isinstance(Pool.from_url("arangodb://ada:x@h/shop?pool_max_size=3"), Pool)
