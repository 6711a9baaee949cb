"""A primary that has stepped down behind one address: who meets it, and how the pool heals."""

import asyncio
from typing import Any

import pytest
from pool_core import CloseReason, Pool, Verdict
from pool_core.testing import FaultProxy
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    DuplicateKeyError,
    NotPrimaryError,
    OperationFailure,
    WriteConcernError,
)

from containers.servers import Server


@pytest.fixture(params=["sessions", "clients"])
def make(request: pytest.FixtureRequest, kind: Any) -> Any:
    """Each of the four managers."""
    return getattr(kind, request.param)


async def write(pool: Pool[Any]) -> None:
    """One lease, one insert."""
    async with pool.get() as lease:
        if type(lease).__name__.endswith("ClientSession"):
            await lease.client.pool.failover.insert_one({}, session=lease)
        else:
            await lease.pool.failover.insert_one({})


async def test_a_failover_behind_one_address_costs_at_most_max_size_errors(
    make: Any, mongo: Server, own: Server, admin: Any
) -> None:
    """The old sockets lead to a server that refuses writes for ever; the pool heals without evict()."""
    errors: list[Exception] = []
    written = 0
    healed = asyncio.Event()

    async def work() -> None:
        nonlocal written
        while not healed.is_set():
            try:
                await write(pool)
                written += 1
            except NotPrimaryError as error:
                errors.append(error)
            await asyncio.sleep(0)

    with FaultProxy(mongo.host, mongo.port) as proxy:
        manager = make(f"mongodb://{proxy.host}:{proxy.port}/?directConnection=true&retryWrites=false")
        async with Pool(manager, max_size=3, min_idle=1, connection_timeout=20) as pool:
            tasks = [asyncio.ensure_future(work()) for _ in range(6)]
            await asyncio.sleep(0.3)
            proxy.retarget(own.host, own.port)
            await admin.fail("insert", times=100_000, errorCode=10107)
            async with asyncio.timeout(20):
                while not errors:
                    await asyncio.sleep(0.01)
                before = written
                while written < before + 20:
                    await asyncio.sleep(0.01)
            healed.set()
            await asyncio.gather(*tasks)
            assert 1 <= len(errors) <= 3


async def test_the_first_error_of_a_failover_retires_the_idle_connections(
    make: Any, mongo: Server, own: Server, admin: Any
) -> None:
    """A caller who comes later must not meet the old server again."""
    with FaultProxy(mongo.host, mongo.port) as proxy:
        manager = make(f"mongodb://{proxy.host}:{proxy.port}/?directConnection=true&retryWrites=false")
        async with Pool(manager, max_size=3, connection_timeout=20) as pool:
            async with pool.get(), pool.get(), pool.get():
                proxy.retarget(own.host, own.port)
                await admin.fail("insert", times=100_000, errorCode=189)
            with pytest.raises(NotPrimaryError):
                await write(pool)
            for _ in range(6):
                await write(pool)
            assert pool.state().statistics.connections_closed[CloseReason.EVICTED] == 2


def _session_on(topology: str) -> Any:
    class Description:
        topology_type_name = topology

    class Client:
        topology_description = Description()

    class Session:
        client = Client()

    return Session()


VERDICTS = [
    *((NotPrimaryError("x", {"code": code}), Verdict.RETIRE_ALL) for code in (10107, 13435, 10058, 11602, 13436, 189)),
    *((OperationFailure("x", code), Verdict.RETIRE_ALL) for code in (11600, 91)),
    (NotPrimaryError("not master"), Verdict.RETIRE_ALL),
    (BulkWriteError({"writeErrors": [], "writeConcernErrors": [{"code": 91}]}), Verdict.RETIRE_ALL),
    (BulkWriteError({"writeErrors": [{"code": 11000}], "writeConcernErrors": []}), Verdict.KEEP),
    (WriteConcernError("x", 189), Verdict.RETIRE_ALL),
    (OperationFailure("x", 18), Verdict.CLOSE),
    (OperationFailure("x", 391), Verdict.CLOSE),
    (OperationFailure("x", 13), Verdict.KEEP),
    (DuplicateKeyError("x", 11000), Verdict.KEEP),
    (AutoReconnect("connection closed"), Verdict.KEEP),
    (ValueError("x"), Verdict.KEEP),
]


@pytest.mark.parametrize(("error", "verdict"), VERDICTS, ids=[f"{error!r}"[:50] for error, _ in VERDICTS])
def test_errors_are_judged_by_their_codes(kind: Any, error: Exception, verdict: Verdict) -> None:
    """Also as the cause of a program's own error; where the driver finds the new primary itself, nothing is retired."""
    manager = kind.sessions()
    outer = RuntimeError("the order could not be written")
    outer.__cause__ = error
    for exc in (error, outer):
        assert manager.judge(exc, _session_on("Single")) is verdict
        elsewhere = Verdict.KEEP if verdict is Verdict.RETIRE_ALL else verdict
        assert manager.judge(exc, _session_on("ReplicaSetWithPrimary")) is elsewhere
