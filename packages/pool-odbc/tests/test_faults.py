"""What goes wrong with servers and networks, and what users of the pool see of it."""

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyodbc
import pytest
from odbc_systems import CANARY, System, run, sqlite
from pool_core import CloseReason, ConnectError, Pool, PoolTimeout
from pool_core.testing import FaultProxy
from pool_odbc import OdbcConnectionManager, _connection

from containers.servers import ServerFactory


async def test_a_connection_that_the_server_has_killed_is_not_passed_on(system: System) -> None:
    """It is known without a query: by the state of its TCP connection."""
    assert system.my_id and system.kill
    async with Pool(system.manager(), max_size=1, min_idle=1, test_on_check_out=False) as pool:
        async with pool.get() as conn:
            ((number,),) = await run(conn, system.my_id)
        await eventually(lambda: pool.state().idle == 1)
        await asyncio.to_thread(system.raw().execute, system.kill.format(number))
        await asyncio.sleep(0.1)
        async with pool.get() as conn:
            assert await run(conn, "SELECT 7") == [(7,)]
        assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 1


async def test_a_connection_killed_while_in_use_is_closed_on_its_return(system: System) -> None:
    """The borrower sees the error, the waiter gets another connection."""
    assert system.my_id and system.kill
    async with Pool(system.manager(), max_size=1, min_idle=1) as pool:
        lease = await pool.get()
        waiter = asyncio.ensure_future(pool.get(timeout=5))
        with pytest.raises(pyodbc.Error):
            async with lease as conn:
                ((number,),) = await run(conn, system.my_id)
                await asyncio.to_thread(system.raw().execute, system.kill.format(number))
                await run(conn, "SELECT 1")
        lease = await waiter
        assert await run(lease.conn, "SELECT 7") == [(7,)]
        lease.release()


async def test_a_server_that_accepts_and_is_silent_ends_the_get_at_its_deadline(system: System) -> None:
    """The thread in the driver ends at the login timeout of psqlodbc; MariaDB's driver waits for the connection's end."""
    assert system.server
    with FaultProxy(system.server.host, system.server.port) as proxy:
        proxy.silence()
        manager = system.manager(proxy.host, proxy.port, timeout=1)
        began = time.monotonic()
        async with Pool(manager, max_size=1, error_sink=lambda error: None) as pool:
            with pytest.raises(PoolTimeout):
                await pool.get(timeout=0.3)
            assert time.monotonic() - began < 1
        if system.name != "postgres":
            proxy.reset()
        await eventually(lambda: not proxy.open and not threads(), 5)


async def test_what_hangs_in_the_driver_is_bounded(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ends a thread in a driver: while some hang, no more are begun."""
    assert system.server
    monkeypatch.setattr(_connection, "_MOST_HUNG", 2)
    with FaultProxy(system.server.host, system.server.port) as proxy:
        proxy.silence()
        manager = system.manager(proxy.host, proxy.port, timeout=4)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await manager.connect()
        with pytest.raises(pyodbc.OperationalError, match="2 earlier connections still hang in the driver") as caught:
            await manager.connect()
        assert manager.is_transient(caught.value)
        proxy.reset()
        await eventually(lambda: not threads())
        proxy.heal()
        await manager.close(await manager.connect())


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("pool-odbc")]


async def eventually(condition: Any, seconds: float = 3.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_a_restart_is_survived(system: System, server: ServerFactory) -> None:
    """Waiters wait for the server's return, and nobody gets a dead connection."""
    if system.name != "postgres":
        pytest.skip("nothing of it depends on the database system")
    with server(system.name, fresh=True) as mine:
        manager = system.manager(mine.host, mine.port)
        async with Pool(manager, max_size=2, min_idle=2, error_sink=lambda error: None) as pool:
            async with pool.get() as conn:
                await run(conn, "SELECT 1")
            await asyncio.to_thread(mine.kill)
            with pytest.raises(PoolTimeout):
                await pool.get(timeout=0.3)
            waiters = [asyncio.ensure_future(pool.get(timeout=20)) for _ in range(5)]
            await asyncio.to_thread(mine.start)
            for waiter in waiters:
                lease = await waiter
                assert await run(lease.conn, "SELECT 7") == [(7,)]
                lease.release()


async def test_a_paused_server_does_not_hold_up_close(system: System, server: ServerFactory) -> None:
    """docker pause: connections stay, nothing answers."""
    if system.name != "postgres":
        pytest.skip("test_a_hung_server_does_not_hold_up_a_cancelled_caller shows it with less time")
    with server(system.name, fresh=True) as mine:
        pool = Pool(system.manager(mine.host, mine.port), min_idle=2, error_sink=lambda error: None)
        await pool.open()
        await asyncio.to_thread(mine.pause)
        began = time.monotonic()
        await pool.close(timeout=1)
        assert time.monotonic() - began < 2.5
        await asyncio.to_thread(mine.unpause)


@pytest.mark.parametrize("wrong", ["password", "user", "database", "TLS"])
async def test_a_refusal_is_told_at_once_and_shows_no_secret(system: System, wrong: str) -> None:
    """No waiting for the end of the get: trying again would not help."""
    options: dict[str, Any] = {
        "password": {"password": CANARY},
        "user": {"user": "nobody", "password": CANARY},
        "database": {"database": "nowhere"},
        "TLS": {"SSLmode": "require"} if system.name == "postgres" else {"FORCETLS": 1, "SSLVERIFY": 1},
    }[wrong]
    if wrong == "TLS" and system.name == "mysql":
        pytest.skip("this server speaks TLS")
    async with Pool(system.manager(**options), error_sink=lambda error: None) as pool:
        began = time.monotonic()
        with pytest.raises(ConnectError) as caught:
            await pool.get(timeout=10)
        assert time.monotonic() - began < 3
        assert isinstance(caught.value.__cause__, pyodbc.Error)
        assert CANARY not in repr(caught.value.__cause__) + str(caught.value)


async def test_a_wrong_host_and_a_wrong_port_are_told(system: System) -> None:
    """A host that does not exist is no server that is down for the moment."""
    unknown = system.manager("no-such-host.invalid", 1)
    with pytest.raises(pyodbc.Error) as caught:
        await unknown.connect()
    assert not unknown.is_transient(caught.value)
    down = system.manager("127.0.0.1", 9)
    with pytest.raises(pyodbc.Error) as refused:
        await down.connect()
    assert down.is_transient(refused.value)


async def test_an_unusable_database_file_is_named(tmp_path: Path) -> None:
    """The driver says "connect failed (14)", and not which file."""
    manager = OdbcConnectionManager(driver="SQLite3", database=str(tmp_path / "no" / "x.db"))
    with pytest.raises(pyodbc.Error, match=r"no/x.db' cannot be opened") as caught:
        await manager.connect()
    assert not manager.is_transient(caught.value)


async def test_a_server_without_the_probe_says_what_to_give(any_system: System) -> None:
    """As Oracle, which has no SELECT without FROM."""
    manager = any_system.manager(probe="SELECT 1 FROM dual_of_another_system")
    with pytest.raises(pyodbc.Error, match="dual_of_another_system"):
        await manager.connect()


@pytest.mark.parametrize("end", ["open", "leased", "in a query", "an exception", "Ctrl-C"])
def test_a_program_ends(tmp_path: Path, end: str) -> None:
    """Whatever is open: threads in a driver keep nothing from ending."""
    _see_the_end(sqlite(tmp_path), end)


def test_a_program_ends_while_a_server_works(system: System) -> None:
    """The same, in the middle of a query over a network."""
    _see_the_end(system, "in a query")


def _see_the_end(any_system: System, end: str) -> None:
    program = f"""
import asyncio, os, signal, sys
from pool_core import Pool
from pool_odbc import OdbcConnectionManager

async def main():
    pool = Pool(OdbcConnectionManager(**{_keywords(any_system)!r}), min_idle=1)
    await pool.open()
    if {end!r} == "open":
        return
    lease = await pool.get()
    cursor = await lease.conn.cursor()
    await cursor.execute("SELECT 1")
    if {end!r} == "in a query":
        asyncio.ensure_future(cursor.execute({any_system.slow!r}))
        await asyncio.sleep(0.1)
    if {end!r} == "an exception":
        raise RuntimeError("the end")
    if {end!r} == "Ctrl-C":
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(5)

asyncio.run(main())
"""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=20)
    assert time.monotonic() - began < 15


def _keywords(system: System) -> dict[str, Any]:
    where = {} if system.server is None else {"host": system.server.host, "port": system.server.port}
    return {**system.options, **where}
