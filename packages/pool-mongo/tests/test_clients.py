"""Clients as leases: what one costs, and that nobody finds it busy with the last borrower's work."""

import asyncio
import threading
from typing import Any

import pymongo
import pytest
from pool_core import CloseReason, Pool
from pymongo.errors import InvalidOperation

from containers.servers import Server


async def test_a_lease_is_a_client_with_one_connection(kind: Any, mongo: Server) -> None:
    """And it may be given more."""
    async with Pool(kind.clients(mongo.url), min_idle=1) as pool, pool.get() as client:
        assert isinstance(client, kind.client_class)
        assert client.options.pool_options.max_pool_size == 1
    async with Pool(kind.clients(mongo.url, maxpoolsize=3), min_idle=1) as pool, pool.get() as client:
        assert client.options.pool_options.max_pool_size == 3


async def test_what_the_readme_says_a_client_costs(kind: Any, mongo: Server, sockets: Any) -> None:
    """Three sockets; with PyMongo five tasks, with motor three threads. A release of the driver may change it."""
    manager = kind.clients(mongo.url)
    sockets_before, tasks = sockets(), len(asyncio.all_tasks())
    clients = [await manager.connect() for _ in range(4)]
    await asyncio.sleep(0.3)  # the second monitor starts after the first answer of the server
    assert len(sockets() - sockets_before) == 4 * 3
    cost = (len(asyncio.all_tasks()) - tasks, _monitors() if kind.name == "motor" else 0)
    assert cost == ((4 * 5, 0) if kind.name == "pymongo" else (0, 4 * 3))
    for client in clients:
        await manager.close(client)


def _monitors() -> int:
    return sum(thread.name.startswith("pymongo_") for thread in threading.enumerate())


async def test_sessions_cost_one_client_and_a_socket_for_each_that_is_at_work(
    kind: Any, mongo: Server, admin: Any, sockets: Any
) -> None:
    """The other half of the README's table."""
    manager = kind.sessions(mongo.url)
    before = sockets()
    leased = [await manager.connect() for _ in range(10)]
    await asyncio.sleep(0.3)
    assert len(sockets() - before) == 3
    await admin.fail("find", times=4, blockConnection=True, blockTimeMS=1200)
    work = [asyncio.ensure_future(one.client.pool.things.find_one({}, session=one)) for one in leased[:4]]
    await asyncio.sleep(0.9)  # and the one who set the fail point has hung up
    assert len(sockets() - before) == 2 + 4
    await asyncio.gather(*work)
    for session in leased:
        await manager.close(session)


async def test_a_client_that_is_still_busy_is_waited_for_before_it_is_lent_on(
    kind: Any, mongo: Server, admin: Any
) -> None:
    """A cancelled operation of motor's goes on in its thread, on the client's only connection."""
    async with Pool(kind.clients(mongo.url), max_size=1, min_idle=1) as pool:
        async with pool.get() as client:
            mine = client
            await admin.fail("find", blockConnection=True, blockTimeMS=300)
            slow = asyncio.ensure_future(client.pool.things.find_one({}))
            await asyncio.sleep(0.1)
            slow.cancel()
            await asyncio.wait([slow])
        async with pool.get() as client:
            assert client is mine
            with pymongo.timeout(0.25):  # so long it must not take any more
                await client.admin.command("ping")
        assert pool.state().statistics.connections_created == 1


async def test_a_client_that_does_not_get_free_is_replaced(kind: Any, mongo: Server, admin: Any) -> None:
    """Whatever still runs on it, for whatever reason."""
    async with Pool(
        kind.clients(mongo.url, ping_timeout=0.3), max_size=1, min_idle=1, error_sink=lambda error: None
    ) as pool:
        async with pool.get() as client:
            first = client
            await admin.fail("find", blockConnection=True, blockTimeMS=1500)
            forgotten = asyncio.ensure_future(client.pool.things.find_one({}))
            await asyncio.sleep(0.1)
        async with pool.get() as client:
            assert client is not first
            await client.admin.command("ping")
        assert pool.state().statistics.connections_closed[CloseReason.RESET_FAILED] == 1
        await asyncio.wait([forgotten])
        assert forgotten.exception() is not None


async def test_a_closed_client_is_replaced(kind: Any, mongo: Server) -> None:
    """``async with client`` inside a lease closes it for good."""
    async with Pool(kind.clients(mongo.url), max_size=1, min_idle=1) as pool:
        async with pool.get() as client:
            await kind.close(client)
        async with pool.get() as client:
            await client.admin.command("ping")
        assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 1


async def test_clients_are_closed_with_their_pool(kind: Any, mongo: Server) -> None:
    """All of them; and a borrower that kept one is told so."""
    async with Pool(kind.clients(mongo.url), min_idle=2) as pool, pool.get() as client:
        await client.admin.command("ping")
    with pytest.raises(InvalidOperation, match="after close"):
        await client.admin.command("ping")


async def test_credentials_are_asked_for_with_each_client(kind: Any, locked: Server) -> None:
    """A token that expires, a password that is rotated: new clients take the new one."""
    asked: list[str] = []

    async def password() -> str:
        asked.append("")
        return locked.password or ""

    url = f"mongodb://{locked.host}:{locked.port}/?directConnection=true"
    manager = kind.clients(url, username=lambda: locked.user, password=password, authSource="admin")
    clients = [await manager.connect() for _ in range(2)]
    for client in clients:
        await client.pool.things.find_one({})
        await manager.close(client)
    assert len(asked) == 2


async def test_a_callable_that_returns_no_string_is_an_error_that_says_so(kind: Any) -> None:
    """Not the driver's, much later."""
    with pytest.raises(TypeError, match="the callable for password returned bytes: it must return a str"):
        await kind.clients("mongodb://127.0.0.1", username="u", password=lambda: b"secret").connect()
