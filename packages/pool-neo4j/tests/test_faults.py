"""What goes wrong with servers, networks and settings, and what users of the pool see of it."""

import asyncio
import time
from typing import Any

import pytest
from neo4j.exceptions import AuthError, DriverError, Neo4jError, ServiceUnavailable
from pool_core import ConnectError, Pool, PoolTimeout
from pool_core.testing import FaultProxy
from pool_neo4j import Neo4jSessionManager

from containers.servers import Server, ServerFactory

SECRET = "c@nary/secret"


def through(proxy: FaultProxy, neo: Server, **options: Any) -> Neo4jSessionManager:
    return Neo4jSessionManager(f"bolt://{proxy.host}:{proxy.port}", user=neo.user, password=neo.password, **options)


async def ask(session: Any) -> Any:
    return (await (await session.run("RETURN 7")).single())[0]


async def test_killed_and_started_again(neo: Server, server: ServerFactory) -> None:
    """Waiters wait for the server's return, and the sessions that are idle are good again."""
    with server("neo4j", fresh=True) as mine:
        manager = Neo4jSessionManager(f"bolt://{mine.host}:{mine.port}", user=mine.user, password=mine.password)
        async with Pool(manager, max_size=2, min_idle=1, alive_bypass=0, error_sink=lambda error: None) as pool:
            lease = await pool.get()
            assert await ask(lease.conn) == 7
            await asyncio.to_thread(mine.kill)
            with pytest.raises((DriverError, Neo4jError)):
                await ask(lease.conn)
            lease.discard()
            with pytest.raises(PoolTimeout):
                await pool.get(timeout=0.3)
            waiters = [asyncio.ensure_future(pool.get(timeout=20)) for _ in range(10)]
            await asyncio.to_thread(mine.start)
            for waiter in waiters:
                lease = await waiter
                assert await ask(lease.conn) == 7
                lease.release()


async def test_connections_that_the_network_has_dropped_cost_no_borrower_anything(neo: Server) -> None:
    """The driver opens new ones; a session is validated before its next use."""
    with FaultProxy(neo.host, neo.port) as proxy:
        async with Pool(through(proxy, neo), max_size=2, min_idle=2, alive_bypass=0) as pool:
            proxy.reset()
            await asyncio.sleep(0.05)
            for _ in range(4):
                async with pool.get() as session:
                    assert await ask(session) == 7


async def test_a_server_that_accepts_and_never_answers_ends_the_get_at_its_deadline(neo: Server) -> None:
    """And leaves nothing open."""
    with FaultProxy(neo.host, neo.port) as proxy:
        proxy.silence()
        async with Pool(through(proxy, neo), error_sink=lambda error: None) as pool:
            began = time.monotonic()
            with pytest.raises(PoolTimeout):
                await pool.get(timeout=0.3)
            assert time.monotonic() - began < 1
        async with asyncio.timeout(2):
            while proxy.open:
                await asyncio.sleep(0.01)


async def test_a_hung_server_holds_up_neither_a_cancelled_caller_nor_close(neo: Server) -> None:
    """Both within a second or so."""
    with FaultProxy(neo.host, neo.port) as proxy:
        pool = Pool(through(proxy, neo), max_size=2, min_idle=1, error_sink=lambda error: None)
        await pool.open()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with pool.get() as session:
                await session.begin_transaction()
                proxy.freeze()
                began = time.monotonic()
                async with asyncio.timeout(0.1):
                    await ask(session._transaction)
        assert time.monotonic() - began < 1
        await pool.close(timeout=1)
        assert time.monotonic() - began < 3


async def test_a_message_in_small_pieces_is_put_together(neo: Server) -> None:
    """All but the four bytes of the handshake, which the driver reads at once or not at all."""
    with FaultProxy(neo.host, neo.port) as proxy:
        manager = through(proxy, neo)
        session = await manager.connect()
        proxy.trickle(delay=0.001, size=3)
        for _ in range(3):
            assert await ask(session) == 7
        await manager.close(session)


async def test_a_handshake_in_pieces_is_an_error_that_passes(neo: Server) -> None:
    """The driver's fault is answered by another try."""
    with FaultProxy(neo.host, neo.port) as proxy:
        proxy.trickle(delay=0.05, size=3)
        manager = through(proxy, neo)
        with pytest.raises(ServiceUnavailable, match="Expected four byte Bolt handshake") as caught:
            await manager.connect()
        assert manager.is_transient(caught.value)


async def test_a_wrong_host_and_a_wrong_port_are_told(neo: Server) -> None:
    """A host that does not exist is no server that is down for the moment."""
    unknown = Neo4jSessionManager("bolt://no-such-host.invalid:7687")
    with pytest.raises((ServiceUnavailable, ValueError)) as caught:
        await unknown.connect()
    assert not unknown.is_transient(caught.value)
    down = Neo4jSessionManager("bolt://127.0.0.1:9")
    with pytest.raises(ServiceUnavailable) as refused:
        await down.connect()
    assert down.is_transient(refused.value)


async def test_tls_on_a_plain_port_is_an_error_in_time_and_never_plain_text(neo: Server) -> None:
    """A server that hangs up in the handshake is what one that restarts shows as well."""
    manager = Neo4jSessionManager(f"bolt+s://{neo.host}:{neo.port}", user="neo4j", password=SECRET)
    async with asyncio.timeout(5):
        with pytest.raises(ServiceUnavailable) as caught:
            await manager.connect()
    assert SECRET not in repr(caught.value)


async def test_a_wrong_password_fails_at_once_and_the_right_one_later_works(original: Server) -> None:
    """update() is enough; no text shows the password."""
    manager = Neo4jSessionManager(f"bolt://{original.host}:{original.port}", user="neo4j", password=SECRET)
    async with Pool(manager, error_sink=lambda error: None) as pool:
        with pytest.raises(ConnectError) as caught:
            await pool.get(timeout=10)
        assert isinstance(caught.value.__cause__, AuthError)
        assert SECRET not in repr(caught.value.__cause__) + str(caught.value)
        manager.update(password=original.password)
        async with pool.get() as session:
            assert await ask(session) == 7


async def test_an_unknown_database_fails_at_once(original: Server) -> None:
    """Not at the borrower's first query."""
    manager = Neo4jSessionManager(
        f"bolt://{original.host}:{original.port}/nowhere", user=original.user, password=original.password
    )
    with pytest.raises(Neo4jError) as caught:
        await manager.connect()
    assert not manager.is_transient(caught.value)


async def test_a_login_that_is_a_callable_is_asked(neo: Server) -> None:
    """By the driver, when it needs it."""
    asked = []

    async def password() -> str:
        asked.append(1)
        return neo.password or ""

    manager = Neo4jSessionManager(f"bolt://{neo.host}:{neo.port}", user=lambda: neo.user or "", password=password)
    async with Pool(manager) as pool, pool.get() as session:
        assert await ask(session) == 7
    assert asked


@pytest.mark.parametrize(
    ("url", "options", "error", "says"),
    [
        (None, {}, ValueError, "no server is named: give a URL, neo4j://user:password@host:7687/database"),
        ("http://h", {}, ValueError, "must start with neo4j:// or neo4j+s://"),
        ("bolt://h:port", {}, ValueError, "a port of the URL is not a number"),
        ("bolt://u:a/b@h", {}, ValueError, "cannot be read without doubt"),
        ("bolt://h?policy=x", {}, TypeError, "an option that bolt:// does not take"),
        ("bolt://h?access_mode=BOTH", {}, ValueError, "access_mode='BOTH'|access_mode in the URL"),
        ("bolt://h?database=a&database=b", {}, ValueError, "stands twice"),
        ("bolt://h\n", {}, ValueError, "the URL ends with a line break"),
        ("bolt://h", {"max_size": 3}, ValueError, "the driver refuses these settings: .*max_size"),
        ("bolt://h", {"access_mode": "write"}, ValueError, "access_mode='write': expected one of 'READ', 'WRITE'"),
        ("bolt://h", {"auth": ("a", "b"), "user": "a"}, ValueError, "auth and user or password are given"),
        ("bolt+s://h", {"encrypted": True}, ValueError, "the driver refuses these settings"),
        ("bolt://h", {"password": 7}, TypeError, "password is of type int"),
    ],
)
def test_bad_settings_are_refused_when_the_manager_is_made(url: Any, options: Any, error: Any, says: str) -> None:
    """Before any I/O, without a loop, in one sentence."""
    with pytest.raises(error, match=says.replace("?", r"\?").replace("+", r"\+")):
        Neo4jSessionManager(url, **options)


def test_the_url_becomes_uri_login_and_options() -> None:
    """The routing context is the driver's; no text shows the password."""
    manager = Neo4jSessionManager("neo4j+s://ada:c%40nary@h:1/shop?policy=eu&access_mode=READ&pool=x")
    assert repr(manager) == "<Neo4jSessionManager neo4j+s://h:1/shop>"
    assert manager._settings.values["uri"] == "neo4j+s://h:1?policy=eu&pool=x"
    assert manager._settings.of_sessions() == {"database": "shop", "default_access_mode": "READ"}
    assert "c@nary" not in repr(vars(manager)) + repr(manager._settings.values)
    assert isinstance(Pool.from_url("bolt+ssc://ada:x@h"), Pool)
