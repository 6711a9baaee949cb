"""What goes wrong with servers and networks, and what users of the pool see of it."""

import asyncio
import contextlib
import logging
import struct
import time
import traceback
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote_plus

import bson
import pymongo
import pytest
from pool_core import CloseReason, ConnectError, Pool, PoolTimeout
from pool_core.testing import FaultProxy, Injector, acancel_everywhere
from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

from containers.servers import Server


@pytest.fixture(params=["sessions", "clients"])
def make(request: pytest.FixtureRequest, kind: Any) -> Any:
    """Each of the four managers, and how a lease of it pings."""
    return getattr(kind, request.param)


async def ping(lease: Any) -> None:
    """A request on a session's client, or on a client."""
    client = lease.client if type(lease).__name__.endswith("ClientSession") else lease
    await client.admin.command("ping")


async def ignore(awaitable: Any) -> None:
    """Wait for it; the server is being disturbed."""
    try:
        await awaitable
    except (PyMongoError, PoolTimeout):
        pass


async def test_a_server_that_is_down_is_named_with_the_drivers_reason(make: Any, mongo: Server) -> None:
    """Within ping_timeout, from open() unchanged, from get() as the cause."""
    with FaultProxy(mongo.host, mongo.port) as proxy:
        proxy.refuse()
        manager = make(f"mongodb://{proxy.host}:{proxy.port}/?directConnection=true", ping_timeout=0.3)
        began = time.monotonic()
        with pytest.raises(ServerSelectionTimeoutError, match=f"{proxy.port}: .*Errno 111") as caught:
            async with Pool(manager, min_idle=1, retry_connection=False):
                pass
        assert time.monotonic() - began < 1
        assert manager.is_transient(caught.value)
        async with Pool(manager, error_sink=lambda error: None) as pool:
            with pytest.raises(PoolTimeout, match="Errno 111") as late:
                await pool.get(timeout=0.6)
            assert isinstance(late.value.__cause__, ServerSelectionTimeoutError)


async def test_an_unknown_host_is_an_error_in_bounded_time(make: Any) -> None:
    """And transient: DNS fails as servers do."""
    manager = make("mongodb://no-such-host.invalid/", ping_timeout=0.3)
    began = time.monotonic()
    with pytest.raises(ServerSelectionTimeoutError, match="no-such-host.invalid:27017: ") as caught:
        await manager.connect()
    assert time.monotonic() - began < 2
    assert manager.is_transient(caught.value)


async def test_a_get_that_ends_before_the_driver_gives_up_has_the_cause(make: Any, mongo: Server) -> None:
    """The driver goes on asking for ping_timeout, which is 3 s by default; what it knows by then must not be lost."""
    with FaultProxy(mongo.host, mongo.port) as proxy:
        proxy.refuse()
        for url, reason in (
            (f"mongodb://{proxy.host}:{proxy.port}/?directConnection=true", "Errno 111"),
            ("mongodb://no-such-host.invalid/", "no-such-host.invalid:27017: "),
        ):
            began = time.monotonic()
            async with Pool(make(url), error_sink=lambda error: None) as pool:
                with pytest.raises(PoolTimeout, match=reason) as caught:
                    await pool.get(timeout=1)
            assert isinstance(caught.value.__cause__, ServerSelectionTimeoutError)
            assert isinstance(caught.value.__cause__.__cause__, PyMongoError), "the server's own error"
            assert time.monotonic() - began < 2.5


@contextlib.asynccontextmanager
async def lonely_secondary() -> AsyncIterator[int]:
    """The wire protocol of a replica set's only member that can be reached, and that is no primary; yields its port."""
    port = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        facts = {"ok": 1, "helloOk": True, "isWritablePrimary": False, "secondary": True, "setName": "rs0"}
        facts |= {"setVersion": 1, "hosts": [f"127.0.0.1:{port}"], "minWireVersion": 0, "maxWireVersion": 21}
        answer = bson.encode(facts)
        try:
            while head := await reader.read(16):
                length, number, _, operation = struct.unpack("<4i", head)
                await reader.readexactly(length - 16)
                # OP_QUERY is answered by OP_REPLY, and OP_MSG by OP_MSG.
                body = struct.pack("<iqii", 8, 0, 0, 1) if operation == 2004 else struct.pack("<ib", 0, 0)
                kind = 1 if operation == 2004 else 2013
                writer.write(struct.pack("<4i", 16 + len(body) + len(answer), 0, number, kind) + body + answer)
        except OSError:
            pass  # the client has gone
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield port
    finally:
        server.close()
        await asyncio.sleep(0.05)


async def test_a_replica_set_without_a_primary_is_told_at_once(make: Any) -> None:
    """All servers have answered and none may be read from: the pool asks again, and knows why."""
    async with lonely_secondary() as port:
        manager = make(f"mongodb://127.0.0.1:{port}/?replicaSet=rs0")
        began = time.monotonic()
        with pytest.raises(
            ServerSelectionTimeoutError, match="no server can be used for reads .*RSSecondary"
        ) as caught:
            await manager.connect()
        assert time.monotonic() - began < 1.5
        assert manager.is_transient(caught.value)
        manager = make(f"mongodb://127.0.0.1:{port}/?replicaSet=rs0", readPreference="secondary")
        async with Pool(manager, max_size=1) as pool, pool.get() as lease:
            assert lease is not None


async def test_a_server_that_accepts_and_never_answers_ends_the_get_at_its_deadline(make: Any, mongo: Server) -> None:
    """And leaves nothing open."""
    with FaultProxy(mongo.host, mongo.port) as proxy:
        proxy.silence()
        manager = make(f"mongodb://{proxy.host}:{proxy.port}/?directConnection=true", ping_timeout=0.5)
        began = time.monotonic()
        async with Pool(manager, error_sink=lambda error: None) as pool:
            with pytest.raises(PoolTimeout):
                await pool.get(timeout=0.3)
            assert time.monotonic() - began < 0.8


async def test_a_wrong_password_fails_at_once_and_the_right_one_later_works(
    kind: Any, make: Any, locked: Server
) -> None:
    """The get does not wait for its timeout, and update() is enough: no new pool."""
    there = f"{locked.host}:{locked.port}/?directConnection=true"
    manager = make(f"mongodb://{locked.user}:wrong@{there}")
    began = time.monotonic()
    with pytest.raises(OperationFailure) as caught:
        async with Pool(manager, min_idle=1):
            pass
    assert not manager.is_transient(caught.value)
    async with Pool(manager, error_sink=lambda error: None) as pool:
        with pytest.raises(ConnectError) as refused:
            await pool.get()
        assert isinstance(refused.value.__cause__, OperationFailure)
        assert time.monotonic() - began < 2
        manager.update(f"mongodb://{locked.user}:{quote_plus(locked.password or '')}@{there}")
        async with pool.get() as lease:
            await ping(lease)


async def test_one_refused_login_in_a_healthy_pool_fails_nobody(make: Any, locked: Server) -> None:
    """A rotation that is not everywhere yet: who waits gets a connection that comes back."""
    there = f"{locked.host}:{locked.port}/?directConnection=true"
    manager = make(f"mongodb://{locked.user}:{quote_plus(locked.password or '')}@{there}")
    async with Pool(manager, max_size=2, error_sink=lambda error: None) as pool:
        lease = await pool.get()
        manager.update(f"mongodb://{locked.user}:wrong@{there}")
        waiter = asyncio.ensure_future(pool.get(timeout=5))
        await asyncio.sleep(0.3)
        assert not waiter.done()
        lease.release()
        (await waiter).release()


async def test_no_secret_shows_anywhere(make: Any, locked: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Manager, pool, errors with their causes, logs: a canary in each place where a password can be given."""
    caplog.set_level(logging.DEBUG)
    canary, texts = "c@nary/5", []
    there = f"{locked.host}:{locked.port}"
    wrong = make(f"mongodb://{locked.user}:{quote_plus(canary)}@{there}/?directConnection=true")
    given = make(host=locked.host, port=locked.port, username="pool", password=canary, directConnection=True)
    fetched = make(f"mongodb://{there}/", username=lambda: "pool", password=lambda: canary, directConnection=True)
    down = make(f"mongodb://{locked.user}:{quote_plus(canary)}@127.0.0.1:9/?directConnection=true", ping_timeout=0.2)
    for manager in (wrong, given, fetched, down):
        async with Pool(manager) as pool:
            with pytest.raises((ConnectError, PoolTimeout)) as caught:
                await pool.get(timeout=0.5)
            texts += ["".join(traceback.format_exception(caught.value)), repr(caught.value)]
            texts += [repr(manager), repr(vars(manager)), repr(pool), repr(pool.state())]
    right = make(f"mongodb://{locked.user}:{quote_plus(locked.password or '')}@{there}/?directConnection=true")
    async with Pool(right, min_idle=1) as pool, pool.get():
        texts += [repr(right), repr(vars(right)), repr(pool), repr(pool.holders())]
    texts.append(caplog.text)
    for secret in (canary, quote_plus(canary), locked.password or "", quote_plus(locked.password or "")):
        assert not any(secret in text for text in texts)


async def test_a_server_that_does_not_speak_tls_is_not_used(make: Any, mongo: Server) -> None:
    """Be it silent or hang up: an error in bounded time, and never plain text."""
    with FaultProxy(mongo.host, mongo.port) as proxy:
        manager = make(f"mongodb://{proxy.host}:{proxy.port}/?directConnection=true&tls=true", ping_timeout=0.4)
        for silent, says in ((True, "No servers found yet"), (False, "SSL handshake failed")):
            proxy.heal()
            if silent:
                proxy.silence()
            else:
                proxy.fin(new=True)
            began = time.monotonic()
            with pytest.raises(ServerSelectionTimeoutError, match=says) as caught:
                await manager.connect()
            assert time.monotonic() - began < 2
            assert manager.is_transient(caught.value), "the same is seen while a server behind a proxy restarts"


def test_a_certificate_that_does_not_verify_is_not_transient(make: Any) -> None:
    """Trying again will not help; a handshake cut off in the middle may."""
    manager = make()
    verify = "h:1: SSL handshake failed: h:1: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (_ssl.c:1006)"
    cut = "h:1: SSL handshake failed: h:1: [SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred (_ssl.c:1006)"
    assert not manager.is_transient(ServerSelectionTimeoutError(verify))
    assert manager.is_transient(ServerSelectionTimeoutError(cut))


async def test_a_replica_set_of_another_name_is_not_transient(make: Any, mongo: Server) -> None:
    """A typing mistake, which the driver reports like a server that is down."""
    manager = make(mongo.url, replicaSet="another", ping_timeout=0.5)
    with pytest.raises(ServerSelectionTimeoutError) as caught:
        await manager.connect()
    assert not manager.is_transient(caught.value), repr(caught.value.__cause__)


async def test_a_failed_ping_costs_the_connection_and_not_the_get(make: Any, mongo: Server, admin: Any) -> None:
    """The server steps down for a moment: the next connection is good."""
    async with Pool(make(mongo.url), max_size=1, min_idle=1, alive_bypass=0, error_sink=lambda error: None) as pool:
        await admin.fail("ping", errorCode=91)
        async with pool.get() as lease:
            await ping(lease)
        closed = pool.state().statistics.connections_closed
        assert closed[CloseReason.INVALID] + closed[CloseReason.BROKEN] == 1


@pytest.mark.cancellation
async def test_a_get_cancelled_anywhere_loses_nothing(make: Any, mongo: Server) -> None:
    """Cold, the longest way: connecting is the pool's, and serves the next get."""

    async def scenario(inject: Injector) -> None:
        async with Pool(make(mongo.url), max_size=1) as pool:
            outcome = await inject(pool.get())
            if not outcome.cancelled:
                outcome.result.release()
            async with asyncio.timeout(5), pool.get() as lease:
                await ping(lease)
            state = pool.state()
            assert state.idle == state.statistics.connections_created == 1
            assert state.statistics.gets_started == state.statistics.gets_cancelled + 1 + (not outcome.cancelled)

    assert await acancel_everywhere(scenario, modes=("single", "success")) > 0


@pytest.mark.cancellation
async def test_a_cancelled_request_is_back_at_once_though_the_server_hangs(make: Any, mongo: Server) -> None:
    """And the pool closes in time."""
    with FaultProxy(mongo.host, mongo.port) as proxy:
        manager = make(f"mongodb://{proxy.host}:{proxy.port}/?directConnection=true", ping_timeout=1)
        pool = Pool(manager, max_size=2, min_idle=1, error_sink=lambda error: None)
        await pool.open()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with pool.get() as lease:
                proxy.freeze()
                began = time.monotonic()
                async with asyncio.timeout(0.2):
                    await ping(lease)
        assert time.monotonic() - began < 1
        await pool.close(timeout=1)
        assert time.monotonic() - began < 3.2


@pytest.mark.cancellation
async def test_an_operation_cancelled_in_a_transaction_leaves_nothing(kind: Any, mongo: Server, admin: Any) -> None:
    """The next borrower has a clean session, and others are not locked out."""
    name = f"cancelled_{kind.name}"
    async with Pool(kind.sessions(mongo.url), max_size=1, min_idle=1) as pool, kind.client(mongo.url) as other:
        await other.pool[name].delete_many({})
        await other.pool[name].insert_one({"_id": 1})
        async with pool.get() as session:
            things = session.client.pool[name]
            await kind.begin(session)
            await things.update_one({"_id": 1}, {"$set": {"by": "the cancelled"}}, session=session)
            await admin.fail("insert", blockConnection=True, blockTimeMS=300)
            task = asyncio.ensure_future(things.insert_one({"_id": 2}, session=session))
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.wait([task])
        async with pool.get() as session:
            assert not session.in_transaction
            await kind.begin(session)
            await session.client.pool[name].insert_one({"_id": 3}, session=session)
            await session.commit_transaction()
        await asyncio.sleep(0.3)
        with pymongo.timeout(3):
            await other.pool[name].update_one({"_id": 1}, {"$set": {"by": "the other"}})
        assert [thing async for thing in other.pool[name].find().sort("_id")] == [
            {"_id": 1, "by": "the other"},
            {"_id": 3},
        ]


async def test_killed_and_started_again(make: Any, own: Server) -> None:
    """The borrower sees an error, the waiter waits for the server's return, and nobody is served a dead connection."""
    manager = make(own.url, ping_timeout=1, serverSelectionTimeoutMS=300)
    async with Pool(manager, max_size=1, min_idle=1, error_sink=lambda error: None) as pool:
        lease = await pool.get()
        await ping(lease.conn)
        waiter = asyncio.ensure_future(pool.get(timeout=20))
        await asyncio.to_thread(own.kill)
        with pytest.raises(PyMongoError):
            await ping(lease.conn)
        lease.release()
        with pytest.raises(PoolTimeout):
            await pool.get(timeout=0.3)
        assert not waiter.done()
        await asyncio.to_thread(own.start)
        back = time.monotonic()
        lease = await waiter
        assert time.monotonic() - back < 4
        await ping(lease.conn)
        lease.release()


async def test_fifty_waiters_over_a_restart_are_all_served(make: Any, own: Server) -> None:
    """In turn, and without a herd of connects."""
    manager = make(own.url, ping_timeout=1, serverSelectionTimeoutMS=1000)
    async with Pool(manager, max_size=4, min_idle=1, error_sink=lambda error: None) as pool:
        served = 0

        async def work() -> None:
            nonlocal served
            async with pool.get(timeout=30) as lease:
                await ignore(ping(lease))
                served += 1

        await asyncio.to_thread(own.stop)
        tasks = [asyncio.ensure_future(work()) for _ in range(50)]
        await asyncio.sleep(0.5)
        await asyncio.to_thread(own.start)
        await asyncio.gather(*tasks)
        assert served == 50
        assert pool.state().statistics.connects_failed < 20


async def test_a_paused_server_is_found_out_and_its_return_as_well(make: Any, own: Server) -> None:
    """docker pause: connections stay, nothing answers."""
    manager = make(own.url, ping_timeout=0.5)
    async with Pool(manager, max_size=2, min_idle=1, alive_bypass=0, error_sink=lambda error: None) as pool:
        async with pool.get() as lease:
            await ping(lease)
        await asyncio.to_thread(own.pause)
        began = time.monotonic()
        with pytest.raises(PoolTimeout):
            await pool.get(timeout=1)
        assert time.monotonic() - began < 1.5
        await asyncio.to_thread(own.unpause)
        async with pool.get(timeout=10) as lease:
            await ping(lease)


async def test_closing_is_bounded_while_the_server_hangs(kind: Any, make: Any, own: Server) -> None:
    """The driver's own close() ends each session on the server, and waits ten seconds and more for the answer."""
    pool = Pool(make(own.url, ping_timeout=0.5), min_idle=2, error_sink=lambda error: None)
    await pool.open()
    async with pool.get() as lease:
        client = lease.client if type(lease).__name__.endswith("ClientSession") else lease
        await client.pool.things.insert_one({})
    await asyncio.to_thread(own.pause)
    began = time.monotonic()
    await pool.close(timeout=2)
    assert time.monotonic() - began < 3
    await asyncio.to_thread(own.unpause)


async def test_a_goodbye_to_a_hung_server_takes_no_longer_than_ping_timeout(kind: Any, make: Any, own: Server) -> None:
    """Also without a pool that bounds it, and motor's must not hold up the event loop meanwhile."""
    manager = make(own.url, ping_timeout=0.5)
    lease = await manager.connect()
    client = lease.client if type(lease).__name__.endswith("ClientSession") else lease
    await client.pool.things.insert_one({})
    await asyncio.to_thread(own.pause)
    began = time.monotonic()
    closing = asyncio.ensure_future(manager.close(lease))
    await asyncio.sleep(0.05)
    assert time.monotonic() - began < 0.4
    await closing
    assert time.monotonic() - began < 1.5
    await asyncio.to_thread(own.unpause)


async def test_evict_moves_everybody_to_the_new_primary(make: Any, mongo: Server, own: Server) -> None:
    """After a failover that the driver cannot see, as when a name now leads to another server."""
    with FaultProxy(mongo.host, mongo.port) as old, FaultProxy(own.host, own.port) as new:
        manager = make(f"mongodb://{old.host}:{old.port}/?directConnection=true")
        async with Pool(manager, max_size=2, min_idle=2) as pool:
            lease = await pool.get()
            manager.update(f"mongodb://{new.host}:{new.port}/?directConnection=true")
            assert pool.evict() == 2
            async with pool.get() as other:
                await ping(other)
            assert old.open > 0  # the one in use stays until it is returned
            await ping(lease.conn)
            lease.release()
            async with asyncio.timeout(3):
                while old.open:
                    await asyncio.sleep(0.01)
            for _ in range(3):
                async with pool.get() as other:
                    await ping(other)
            assert old.open == 0
