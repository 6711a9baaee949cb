"""What a leased session is, what is reset between two leases, and how long the shared client exists."""

import asyncio
import gc
import warnings
from typing import Any

import pymongo
import pytest
from pool_core import CloseReason, Pool
from pool_core.testing import FaultProxy
from pymongo.client_session import TransactionOptions  # type: ignore[attr-defined]
from pymongo.errors import AutoReconnect, InvalidOperation
from pymongo.write_concern import WriteConcern

from containers.servers import Server


async def test_a_lease_is_the_drivers_own_session(kind: Any, mongo: Server) -> None:
    """No wrapper: isinstance, attributes and documentation are the driver's."""
    async with Pool(kind.sessions(mongo.url), min_idle=1) as pool, pool.get() as session:
        assert type(session).__name__ in {"AsyncClientSession", "AsyncIOMotorClientSession"}
        collection = session.client.pool.things
        await collection.delete_many({}, session=session)
        await collection.insert_one({"_id": 1}, session=session)
        assert await collection.find_one({}, session=session) == {"_id": 1}


async def test_a_pool_is_made_from_a_url(mongo: Server) -> None:
    """Schemes mongodb and mongodb+srv are the adapter's; the pool's own options are cut out, the rest is the driver's."""
    async with Pool.from_url(f"{mongo.url}&pool_max_size=3&maxPoolSize=7", min_idle=1) as pool:
        assert pool.config.max_size == 3
        async with pool.get() as session:
            assert session.client.options.pool_options.max_pool_size == 7
            assert session.client.get_default_database().name == "pool"


async def test_all_sessions_share_one_client_which_ends_with_the_last(kind: Any, mongo: Server) -> None:
    """Ten sessions cost the sockets of one client, and a closed pool costs nothing."""
    async with Pool(kind.sessions(mongo.url), max_size=10) as pool:
        leases = [await pool.get() for _ in range(10)]
        clients = {id(lease.conn.client) for lease in leases}
        assert len(clients) == 1
        client = leases[0].conn.client
        for lease in leases:
            lease.release()
    with pytest.raises(InvalidOperation, match="after close"):
        await client.admin.command("ping")


async def test_an_open_transaction_is_aborted_before_the_next_lease(kind: Any, mongo: Server) -> None:
    """Nothing of it is written, its locks are free, and the next borrower can begin one."""
    async with Pool(kind.sessions(mongo.url), max_size=1, min_idle=1) as pool, kind.client(mongo.url) as other:
        things = other.pool[f"abort_{kind.name}"]
        await things.delete_many({})
        await things.insert_one({"_id": 1, "by": "nobody"})
        async with pool.get() as session:
            mine = session
            await kind.begin(session)
            await session.client.pool[things.name].update_one({}, {"$set": {"by": "the first"}}, session=session)
        async with pool.get() as session:
            assert session is mine
            assert not session.in_transaction
            with pymongo.timeout(2):  # would wait for the lock otherwise
                await things.update_one({"by": "nobody"}, {"$set": {"by": "the other"}})
            await kind.begin(session)
            await session.client.pool[things.name].insert_one({"_id": 2}, session=session)
            await session.commit_transaction()
        assert [thing["_id"] async for thing in things.find().sort("_id")] == [1, 2]
        assert (await things.find_one({"_id": 1}))["by"] == "the other"
        assert pool.state().statistics.connections_created == 1


async def test_a_connection_that_an_ended_transaction_keeps_is_given_back(kind: Any, mongo: Server) -> None:
    """Behind a load balancer the driver holds it until the session is used again, which may be long in a pool."""

    class Held:
        """What the driver keeps it in; there is no load balancer here to make it do so."""

        conn = None
        closed = False

        def close(self) -> Any:
            self.closed = True
            return asyncio.sleep(0) if kind.name == "pymongo" else None

    held = Held()
    async with Pool(kind.sessions(mongo.url), max_size=1, min_idle=1) as pool:
        async with pool.get() as session:
            (session if kind.name == "pymongo" else session.delegate)._transaction.conn_mgr = held
        async with pool.get() as session:
            assert held.closed
            await session.client.admin.command("ping", session=session)
        assert pool.state().statistics.connections_created == 1


async def test_what_is_clean_goes_straight_back(kind: Any, mongo: Server) -> None:
    """A reset is no round trip: without a transaction nothing is sent between two leases."""
    manager = kind.sessions(mongo.url)
    async with Pool(manager, max_size=1, min_idle=1) as pool:
        async with pool.get() as session:
            await session.client.admin.command("ping", session=session)
        assert pool.state().idle == 1
        assert pool.state().resetting == 0


async def test_clocks_do_not_travel_to_the_next_lease(kind: Any, mongo: Server, commands: Any) -> None:
    """With causal consistency a read waits for the own lease's writes, and for nobody else's."""
    manager = kind.sessions(mongo.url, causal_consistency=True, event_listeners=[commands])
    async with Pool(manager, max_size=1, min_idle=1) as pool:
        async with pool.get() as session:
            things = session.client.pool.clocks
            await things.insert_one({}, session=session)
            assert session.operation_time is not None
            await things.find_one({}, session=session)
        async with pool.get() as session:
            assert session.operation_time is None
            assert session.cluster_time is None
            await session.client.pool.clocks.find_one({}, session=session)
    own, next_ones = commands.of("find")
    assert "afterClusterTime" in own["readConcern"]
    assert "afterClusterTime" not in next_ones.get("readConcern", {})


async def test_causal_consistency_is_off_by_default(kind: Any, mongo: Server, commands: Any) -> None:
    """The driver's default is on; a lease that did not ask for it waits for no clock."""
    async with Pool(kind.sessions(mongo.url, event_listeners=[commands]), min_idle=1) as pool, pool.get() as session:
        await session.client.pool.clocks.insert_one({}, session=session)
        await session.client.pool.clocks.find_one({}, session=session)
    assert "afterClusterTime" not in commands.of("find")[0].get("readConcern", {})


async def test_each_lease_takes_its_own_snapshot(kind: Any, mongo: Server, commands: Any) -> None:
    """A session keeps the time of its first read: the next borrower must not read the last one's old data."""
    manager = kind.sessions(mongo.url, snapshot=True, event_listeners=[commands])
    async with Pool(manager, max_size=1, min_idle=1) as pool:
        for _ in range(2):
            async with pool.get() as session:
                await session.client.pool.clocks.find_one({}, session=session)
                await session.client.pool.clocks.find_one({}, session=session)
    first, again, second, _ = commands.of("find")
    assert "atClusterTime" in again["readConcern"], "the driver holds a lease to its snapshot"
    assert "atClusterTime" not in first["readConcern"]
    assert "atClusterTime" not in second["readConcern"]


async def test_default_transaction_options_reach_the_session(kind: Any, mongo: Server, commands: Any) -> None:
    """Also after a reset, which gives motor's sessions a new PyMongo session."""
    options = TransactionOptions(write_concern=WriteConcern(1, wtimeout=4711))
    manager = kind.sessions(mongo.url, default_transaction_options=options, event_listeners=[commands])
    async with Pool(manager, max_size=1, min_idle=1) as pool:
        for _ in range(2):
            async with pool.get() as session:
                await kind.begin(session)
                await session.client.pool.things.insert_one({}, session=session)
                await session.commit_transaction()
    assert [commit["writeConcern"]["wtimeout"] for commit in commands.of("commitTransaction")] == [4711, 4711]


async def test_an_ended_session_is_replaced(kind: Any, mongo: Server) -> None:
    """``async with session`` inside a lease, and bind() by its default, end the session."""
    async with Pool(kind.sessions(mongo.url), max_size=1, min_idle=1) as pool:
        async with pool.get() as session:
            await session.end_session()
        async with pool.get() as session:
            assert not session.has_ended
            await session.client.admin.command("ping", session=session)
        assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 1


async def test_a_session_that_a_network_error_hit_is_not_used_again(kind: Any, mongo: Server, commands: Any) -> None:
    """The drivers' specification: its server session may still be busy with the lost operation."""
    with FaultProxy(mongo.host, mongo.port) as proxy:
        url = f"mongodb://{proxy.host}:{proxy.port}/?directConnection=true"
        manager = kind.sessions(url, event_listeners=[commands], retryWrites=False)
        async with Pool(manager, max_size=1, min_idle=1) as pool:
            async with pool.get() as session:
                proxy.cut(1)
                with pytest.raises(AutoReconnect):
                    await session.client.pool.things.insert_one({}, session=session)
                proxy.heal()
                await session.client.admin.command("ping")  # the client itself is well again
            async with pool.get() as session:
                await session.client.pool.things.insert_one({}, session=session)
    first, second = (command["lsid"] for command in commands.of("insert"))
    assert first != second


async def test_when_the_abort_fails_the_session_is_not_lent_on(
    kind: Any, mongo: Server, admin: Any, commands: Any
) -> None:
    """The driver swallows errors of an abort; the next borrower must not inherit what it left."""
    manager = kind.sessions(mongo.url, event_listeners=[commands])
    async with Pool(manager, max_size=1, min_idle=1, error_sink=lambda error: None) as pool:
        async with pool.get() as session:
            await session.client.pool.things.insert_one({})  # the collection exists: creating it would hold a lock
            await kind.begin(session)
            await session.client.pool.things.insert_one({}, session=session)
            await admin.fail("abortTransaction", times=2, errorCode=91)
        async with pool.get() as session:
            assert not session.in_transaction
            await kind.begin(session)
            await session.client.pool.things.insert_one({}, session=session)
            await session.commit_transaction()
    _, first, second = (command["lsid"] for command in commands.of("insert"))
    assert first != second


async def test_a_cancelled_operation_cannot_reach_into_the_next_lease(kind: Any, mongo: Server, admin: Any) -> None:
    """Motor leaves it running in a thread: there it would write into the next borrower's transaction."""
    manager = kind.sessions(mongo.url, maxPoolSize=1)  # so that the second operation waits for a connection
    async with Pool(manager, max_size=1, min_idle=1) as pool:
        async with pool.get() as session:
            mine = session
            things = session.client.pool[f"straggler_{kind.name}"]
            await things.delete_many({})
            await admin.fail("find", blockConnection=True, blockTimeMS=400)
            slow = asyncio.ensure_future(things.find_one({}))
            await asyncio.sleep(0.05)
            late = asyncio.ensure_future(things.insert_one({"_id": "late"}, session=session))
            await asyncio.sleep(0.05)
            late.cancel()
            await asyncio.wait([late])
        async with pool.get() as session:
            assert session is mine
            await kind.begin(session)
            await things.insert_one({"_id": "next"}, session=session)  # waits behind both, if both are still there
            await session.commit_transaction()
            await slow
            assert [thing["_id"] async for thing in things.find()] == ["next"]


async def test_a_test_transaction_is_seen_by_the_next_lease_and_never_by_others(kind: Any, mongo: Server) -> None:
    """Diesel's test transaction: what a test writes is gone with the pool."""
    name = f"test_transaction_{kind.name}"
    async with kind.client(mongo.url) as other:
        await other.pool[name].drop()
        await other.pool.create_collection(name)
        async with Pool(kind.sessions(mongo.url, test_transaction=True), max_size=1, min_idle=1) as pool:
            async with pool.get() as session:
                await session.client.pool[name].insert_one({"_id": 1}, session=session)
            async with pool.get() as session:
                assert await session.client.pool[name].find_one({}, session=session) == {"_id": 1}
            assert await other.pool[name].find_one({}) is None
            assert pool.state().statistics.connections_created == 1
        assert await other.pool[name].find_one({}) is None


@pytest.mark.parametrize("how", ["abort", "another"])
async def test_a_session_whose_test_transaction_is_over_is_replaced(kind: Any, mongo: Server, how: str) -> None:
    """Else the next test would write for good."""
    async with Pool(kind.sessions(mongo.url, test_transaction=True), max_size=1, min_idle=1) as pool:
        async with pool.get() as session:
            first = session
            await session.abort_transaction()
            if how == "another":
                await kind.begin(session)
        async with pool.get() as session:
            assert session is not first
            assert session.in_transaction
        assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 1


async def test_a_test_transaction_on_a_server_without_transactions_is_refused(kind: Any, locked: Server) -> None:
    """At start, and with what to do: not at the first write of the first test."""
    manager = kind.sessions(locked.url, test_transaction=True)
    with pytest.raises(ValueError, match="needs a replica set or a sharded cluster") as caught:
        await manager.connect()
    assert not manager.is_transient(caught.value)


async def test_update_is_for_new_sessions_and_evict_retires_the_old(kind: Any, mongo: Server, own: Server) -> None:
    """Failover and rotation: the session in use stays until it is returned; its client is closed with it."""
    manager = kind.sessions(mongo.url)
    async with Pool(manager, max_size=3, min_idle=1) as pool:
        lease = await pool.get()
        old = lease.conn.client
        manager.update(own.url)
        assert pool.evict() >= 1
        async with pool.get() as session:
            assert await _port(session) == own.port
            assert session.client is not old
        await lease.conn.client.admin.command("ping", session=lease.conn)
        lease.release()
        await asyncio.sleep(0.3)
        with pytest.raises(InvalidOperation, match="after close"):
            await old.admin.command("ping")
        async with pool.get() as session:
            assert await _port(session) == own.port


async def _port(session: Any) -> int:
    await session.client.admin.command("ping")
    (node,) = session.client.topology_description.server_descriptions()
    return int(node[1])


async def test_an_update_keeps_what_it_does_not_name(kind: Any, locked: Server) -> None:
    """A new password is one word; user, hosts and options stay, however they were given."""
    there = f"{locked.host}:{locked.port}/?directConnection=true"
    manager = kind.sessions(f"mongodb://{locked.user}:wrong@{there}", appname="before", maxPoolSize=3)
    manager.update(password=locked.password, appName="after")
    session = await manager.connect()
    options = session.client.options.pool_options
    assert (options.appname, options.max_pool_size) == ("after", 3)
    await session.client.pool.things.find_one({}, session=session)
    await manager.close(session)


async def test_a_refused_update_changes_nothing(kind: Any, mongo: Server) -> None:
    """A typing mistake during a rotation must not stop the pool."""
    manager = kind.sessions(mongo.url)
    with pytest.raises(ValueError, match="maxPoolSize must be an integer"):
        manager.update(mongo.url, maxPoolSize="many")
    session = await manager.connect()
    await manager.close(session)


async def test_a_borrower_that_closes_the_shared_client_harms_nobody_else_for_long(kind: Any, mongo: Server) -> None:
    """All its sessions are broken then; new ones live on a new client."""
    async with Pool(kind.sessions(mongo.url), max_size=2, min_idle=2) as pool:
        async with pool.get() as session:
            await kind.close(session.client)
        for _ in range(3):
            async with pool.get() as session:
                await session.client.admin.command("ping", session=session)


async def test_a_detached_session_is_closed_by_the_manager(kind: Any, mongo: Server) -> None:
    """It outlives its pool, with the client: manager.close() ends both."""
    manager = kind.sessions(mongo.url)
    async with Pool(manager, min_idle=1) as pool:
        session = (await pool.get()).detach()
    await session.client.admin.command("ping", session=session)
    await manager.close(session)
    with pytest.raises(InvalidOperation, match="after close"):
        await session.client.admin.command("ping")


async def test_a_session_made_elsewhere_can_be_added(kind: Any, mongo: Server) -> None:
    """pool.add: the client it came from stays its owner's."""
    async with kind.client(mongo.url) as client:
        async with Pool(kind.sessions(mongo.url), max_size=1) as pool:
            pool.add(await kind.start_session(client))
            async with pool.get() as session:
                assert session.client is client
                await kind.begin(session)
                await client.pool.things.insert_one({}, session=session)
            async with pool.get() as session:
                assert session.client is client
                assert not session.in_transaction
        await client.admin.command("ping")


def test_one_manager_serves_one_loop_after_another(kind: Any, mongo: Server) -> None:
    """A module-level pool under a test runner that makes a loop for each test."""
    pool = Pool(kind.sessions(mongo.url), min_idle=1)

    async def main() -> None:
        async with pool, pool.get() as session:
            await session.client.admin.command("ping", session=session)

    for _ in range(2):
        asyncio.run(main())


async def test_two_loops_at_once_have_a_client_each(kind: Any, mongo: Server) -> None:
    """A client belongs to one event loop; a manager may be shared by threads that each have one."""
    manager = kind.sessions(mongo.url)
    mine = await manager.connect()

    async def elsewhere() -> bool:
        session = await manager.connect()
        try:
            await session.client.admin.command("ping", session=session)
            return session.client is not mine.client
        finally:
            await manager.close(session)

    assert await asyncio.to_thread(asyncio.run, elsewhere())
    await mine.client.admin.command("ping", session=mine)
    await manager.close(mine)


@pytest.mark.parametrize("lends", ["sessions", "clients"])
async def test_where_the_driver_has_moved_its_insides_nothing_is_lent_twice(
    kind: Any, mongo: Server, lends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new release of PyMongo: slower, and as clean as before."""
    monkeypatch.setattr("pool_mongo._internals.understood", lambda *_: False)
    errors: list[BaseException] = []
    async with Pool(getattr(kind, lends)(mongo.url), max_size=1, min_idle=1, error_sink=errors.append) as pool:
        for _ in range(2):
            async with pool.get() as lease:
                await (lease.client if lends == "sessions" else lease).admin.command("ping")
        statistics = pool.state().statistics
        assert statistics.connections_closed[CloseReason.RESET_FAILED] == 2
    assert f"PyMongo {pymongo.version} has moved" in str(errors[0])


def test_a_pool_left_open_on_a_dead_loop_can_be_opened_again(kind: Any, mongo: Server) -> None:
    """Its sessions and their client belong to a loop that will never run again."""
    pool = Pool(kind.sessions(mongo.url), min_idle=1)

    async def leave() -> None:
        await pool.open()
        async with pool.get() as session:
            await session.client.admin.command("ping", session=session)

    async def again() -> None:
        async with pool, pool.get() as session:
            await session.client.admin.command("ping", session=session)

    asyncio.run(leave())
    with warnings.catch_warnings():  # asyncio's, for each transport whose loop was closed under it
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(again())
        gc.collect()
