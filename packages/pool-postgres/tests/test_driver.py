"""Facts about asyncpg that the adapter relies on, checked with the driver and a real server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from pool_core import Pool
from pool_postgres import PostgresConnectionManager, _internals

if TYPE_CHECKING:
    from containers.servers import Server


async def cut_off(conn: Any, query: str = "SELECT pg_sleep(30)") -> None:
    """Cancel a query in the middle."""
    task = asyncio.create_task(conn.execute(query))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_driver_cannot_be_pinged_by_an_empty_statement(url: str) -> None:
    """asyncpg #1259: that is why is_valid sends SELECT 1."""
    conn = await asyncpg.connect(url)
    with pytest.raises(AttributeError):
        await conn.execute("")
    await conn.close()


async def test_a_ping_in_a_failed_transaction_fails(url: str) -> None:
    """A connection that could only answer errors must not pass for valid."""
    manager = PostgresConnectionManager(url)
    conn = await manager.connect()
    await conn.execute("BEGIN")
    with pytest.raises(asyncpg.PostgresSyntaxError):
        await conn.execute("nonsense")
    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        await manager.is_valid(conn)
    await manager.close(conn)


async def test_the_driver_sees_raw_and_failed_transactions(url: str) -> None:
    """Reset decides by this whether to roll back; a BEGIN as plain SQL must not escape it."""
    conn = await asyncpg.connect(url)
    assert not conn.is_in_transaction()
    await conn.execute("BEGIN")
    assert conn.is_in_transaction()
    with pytest.raises(asyncpg.PostgresSyntaxError):
        await conn.execute("nonsense")
    assert conn.is_in_transaction()
    await conn.execute("ROLLBACK")
    assert not conn.is_in_transaction()
    await conn.close()


@pytest.mark.parametrize("options", [{}, {"open_transaction": "close"}, {"test_transaction": True}], ids=str)
async def test_has_broken_can_be_asked_after_terminate(url: str, options: dict[str, Any]) -> None:
    """The driver's is_in_transaction raises AttributeError then: it must not be asked first."""
    manager = PostgresConnectionManager(url, **options)
    conn = await manager.connect()
    assert manager.has_broken(conn) is False
    manager.terminate(conn)
    with pytest.raises(AttributeError):
        conn.is_in_transaction()
    assert manager.has_broken(conn) is True


async def test_a_connection_killed_while_idle_is_known_to_be_broken(url: str, postgres: Server) -> None:
    """has_broken does no I/O, so the driver itself must notice the lost connection."""
    manager = PostgresConnectionManager(url)
    conn, admin = await manager.connect(), await asyncpg.connect(url)
    await admin.execute("SELECT pg_terminate_backend($1, 1000)", conn.get_server_pid())
    await asyncio.sleep(0.05)
    assert manager.has_broken(conn) is True
    await admin.close()


async def test_is_valid_is_one_round_trip_on_its_first_use_too(url: str) -> None:
    """A prepared ping costs two round trips on a new connection, and an entry in the statement cache."""
    manager = PostgresConnectionManager(url)
    conn = await manager.connect()
    assert await manager.is_valid(conn) is True
    prepared = await conn.fetch("SELECT statement FROM pg_prepared_statements")
    assert [row["statement"] for row in prepared] == ["SELECT statement FROM pg_prepared_statements"]
    await manager.close(conn)


async def test_the_driver_has_all_that_the_adapter_relies_on(url: str) -> None:
    """A release of asyncpg that moves it must be noticed here first."""
    conn = await asyncpg.connect(url)
    assert _internals.known(conn)
    await conn.close()


@pytest.mark.parametrize(("name", "moved"), [("_CALLABLE", ("of_a_later_release",)), ("PreparedStatementState", None)])
async def test_with_an_unknown_driver_connections_are_closed_after_use(
    url: str, monkeypatch: pytest.MonkeyPatch, name: str, moved: object
) -> None:
    """A connection that may not be reset completely must not reach another borrower."""
    monkeypatch.setattr(_internals, "_IN_USE", [])
    monkeypatch.setattr(_internals, name, moved)
    manager = PostgresConnectionManager(url)
    conn = await manager.connect()
    assert await conn.fetchval("SELECT 1") == 1
    with pytest.raises(RuntimeError, match=r"asyncpg 0\.\d+.* differs from what pool-postgres knows"):
        manager.reset(conn)
    await manager.close(conn)


async def test_the_lent_object_is_an_asyncpg_connection_of_the_users_class(url: str) -> None:
    """isinstance, repr and the user's own methods must hold."""
    base: Any = asyncpg.Connection

    class Mine(base):  # type: ignore[misc]
        async def answer(self) -> object:
            return await self.fetchval("SELECT 42")

    manager = PostgresConnectionManager(url, connection_class=Mine)
    conn: Any = await manager.connect()
    assert await conn.answer() == 42
    assert isinstance(conn, asyncpg.Connection)
    assert issubclass(type(conn), Mine)
    assert type(conn).__name__ == "Mine"
    await manager.close(conn)


async def test_an_override_of_has_broken_is_asked(url: str) -> None:
    """The shortcut that saves a call must not bypass a subclass."""

    class Distrustful(PostgresConnectionManager):
        distrust = False

        def has_broken(self, conn: Any, /) -> bool:
            return self.distrust or super().has_broken(conn)

    manager = Distrustful(url)
    conn = await manager.connect()
    assert manager.has_broken(conn) is False
    manager.distrust = True
    assert manager.has_broken(conn) is True
    await manager.close(conn)


def test_terminate_works_on_a_closed_loop(url: str) -> None:
    """A pool whose loop is gone still has to free the server's connection slots."""
    loop = asyncio.new_event_loop()
    manager = PostgresConnectionManager(url)
    conn: Any = loop.run_until_complete(manager.connect())
    pid = conn.get_server_pid()
    transport = conn._transport
    loop.close()
    manager.terminate(conn)
    assert manager.has_broken(conn) is True
    transport._sock = None  # or its __del__ would warn that nobody closed it

    async def gone() -> bool:
        admin = await asyncpg.connect(url)
        try:
            for _ in range(100):
                if not await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid):
                    return True
                await asyncio.sleep(0.01)
        finally:
            await admin.close()
        return False

    assert asyncio.run(gone())


@pytest.mark.parametrize("query", ["", "?application_name=mine&port=1&host=nowhere.invalid"])
async def test_an_ipv6_address_in_a_list_of_hosts_is_read_by_every_python(postgres: Server, query: str) -> None:
    """The driver's own parser refuses it since Python 3.14. A host or port of the query stays without effect."""
    login = f"{postgres.user}:{postgres.password}"
    hosts = f"[::1]:1,{postgres.host}:{postgres.port}"
    manager = PostgresConnectionManager(f"postgresql://{login}@{hosts}/{postgres.database}{query}")
    assert repr(manager).startswith(f"<PostgresConnectionManager postgresql://{hosts}/{postgres.database} ")
    conn = await manager.connect()
    assert await conn.fetchval("SHOW application_name") == ("mine" if query else "")
    await manager.close(conn)


async def test_several_hosts_and_target_session_attrs_are_the_drivers(postgres: Server, url: str) -> None:
    """A dead first host does not matter, and target_session_attrs for a standby never gives a primary."""
    login, _, address = url.rpartition("@")
    hosts, _, database = address.partition("/")
    several = f"{login}@127.0.0.1:1,{hosts}/{database}"
    manager = PostgresConnectionManager(f"{several}?target_session_attrs=read-write")
    conn = await manager.connect()
    assert await manager.is_valid(conn)
    await manager.close(conn)
    manager = PostgresConnectionManager(url, target_session_attrs="standby")
    with pytest.raises(asyncpg.TargetServerAttributeNotMatched) as caught:
        await manager.connect()
    assert manager.is_transient(caught.value)


async def test_the_password_may_be_a_callable(postgres: Server) -> None:
    """Tokens that expire are fetched for each connection (asyncpg #291)."""
    asked = []

    async def token() -> str:
        asked.append(1)
        return str(postgres.password)

    manager = PostgresConnectionManager(
        host=postgres.host, port=postgres.port, user=postgres.user, database=postgres.database, password=token
    )
    for _ in range(2):
        await manager.close(await manager.connect())
    assert len(asked) == 2


async def test_update_holds_for_new_connections_only(url: str) -> None:
    """Rotation: present connections stay until they are evicted."""
    manager = PostgresConnectionManager(url, server_settings={"application_name": "old"})
    old = await manager.connect()
    manager.update(server_settings={"application_name": "new"})
    new = await manager.connect()
    assert [await conn.fetchval("SHOW application_name") for conn in (old, new)] == ["old", "new"]
    await manager.close(old)
    await manager.close(new)


@pytest.mark.parametrize("limit", ["0", "15"])
async def test_a_hosters_url_connects_as_it_is_printed(url: str, limit: str) -> None:
    """Vercel's and Supabase's, for Prisma: no prepared statements, no reset."""
    manager = PostgresConnectionManager(
        f"{url}?pgbouncer=true&connect_timeout={limit}&sslmode=prefer&application_name=a"
    )
    conn: Any = await manager.connect()
    assert await conn.fetchval("SELECT current_setting('application_name') || $1::text", "b") == "ab"
    assert await conn.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''") <= 1  # its own
    assert not conn._stmt_cache._entries
    assert manager.reset(conn) is None
    await manager.close(conn)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
async def test_a_url_finds_the_adapter(url: str, scheme: str) -> None:
    """Both schemes work, and options that are not the pool's reach the driver unchanged."""
    address = url.partition("://")[2]
    whole = f"{scheme}://{address}?application_name=a%20b&pool_max_size=3&pool_min_idle=1"
    async with Pool.from_url(whole) as pool:
        assert pool.config.max_size == 3
        async with pool.get() as conn:
            assert await conn.fetchval("SHOW application_name") == "a b"
