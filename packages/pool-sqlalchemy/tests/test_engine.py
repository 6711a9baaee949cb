"""The engine: its options, its pool's errors, events, dispose; and what it costs."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from pool_core import (
    CloseReason,
    ConnectError,
    Pool,
    PoolClosed,
    PoolDeadlock,
    PoolTimeout,
    PoolWarning,
    WrongEventLoop,
)
from pool_core.testing import FakeManager, FaultProxy, Injector, acancel_everywhere
from pool_mysql import MySQLConnectionManager
from pool_postgres import PostgresConnectionManager
from pool_postgres._postgres import RESETS
from pool_psycopg import PsycopgConnectionManager
from pool_sqlalchemy import create_async_engine, engine_over
from pool_sqlite import SqliteConnectionManager
from sqlalchemy import event, exc, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.asyncio import create_async_engine as create_of_sqlalchemy
from sqlalchemy.util import greenlet_spawn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from containers.servers import ServerFactory

MEMORY = "sqlite+aiosqlite://"


def as_any(value: Any) -> Any:
    """What a program without type checks may give."""
    return value


def pool_of(engine: AsyncEngine) -> Pool[Any]:
    """The engine's own pool."""
    found: Any = engine.sync_engine.pool
    pool: Pool[Any] = found._source.pool
    return pool


async def one(engine: AsyncEngine) -> Any:
    """Use a connection."""
    async with engine.connect() as conn:
        return (await conn.execute(text("SELECT 1"))).scalar()


@pytest.fixture(params=["asyncpg", "psycopg", "aiomysql", "aiosqlite"])
def url(request: pytest.FixtureRequest, server: ServerFactory, tmp_path: Path) -> str:
    """A URL of SQLAlchemy's for each driver."""
    if request.param == "aiosqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'x.db'}"
    found = server("mysql" if request.param == "aiomysql" else "postgres")
    scheme = found.url.partition("://")[0]
    return found.url.replace(f"{scheme}://", f"{scheme}+{request.param}://", 1)


# --- from a URL


async def test_a_url_is_all_that_is_needed(url: str) -> None:
    """The first connection opens the engine's pool, dispose() closes it, and the engine can go on."""
    engine = create_async_engine(url, max_size=2, connection_timeout=10)
    pool = pool_of(engine)
    assert pool.config.max_size == 2
    for _ in range(2):
        assert await asyncio.gather(*(one(engine) for _ in range(5))) == [1] * 5
        created = pool.state().statistics.connections_created
        assert 1 <= created - pool.state().statistics.connections_closed[CloseReason.POOL_CLOSED] <= 2
        await engine.dispose()
        with pytest.raises(PoolClosed):
            await pool.get()


async def test_an_engine_may_be_made_at_import_time_and_used_in_several_loops(tmp_path: Path) -> None:
    """Modules make engines, and each test has a loop of its own."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")

    async def use() -> None:
        assert await one(engine) == 1
        await engine.dispose()

    for _ in range(2):
        await asyncio.to_thread(asyncio.run, use())


async def test_the_engines_options_are_taken(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """echo, isolation_level, execution_options, json_serializer: what the engine does is the engine's."""
    engine = create_async_engine(url, echo=True, isolation_level="AUTOCOMMIT", execution_options={"mine": 1})
    async with engine.connect() as conn:
        assert conn.sync_connection is not None
        assert conn.sync_connection.get_execution_options()["mine"] == 1
        await conn.execute(text("DROP TABLE IF EXISTS options"))
        await conn.execute(text("CREATE TABLE options (a int)"))
    for number in range(3):  # nothing is committed, also after a reset
        async with engine.connect() as conn:
            assert (await conn.execute(text("SELECT count(*) FROM options"))).scalar() == number
            await conn.execute(text("INSERT INTO options VALUES (1)"))
    await engine.dispose()
    assert "INSERT INTO options" in caplog.text


async def test_isolation_levels_hold_for_each_session_and_for_one(server: ServerFactory) -> None:
    """A reset takes back what SQLAlchemy sets once in a connection's life: it is set again."""
    for kind, driver in (("postgres", "asyncpg"), ("postgres", "psycopg"), ("mysql", "aiomysql")):
        found = server(kind)
        address = found.url.partition("://")[2]
        scheme = "postgresql" if kind == "postgres" else "mysql"
        engine = create_async_engine(f"{scheme}+{driver}://{address}", isolation_level="SERIALIZABLE", max_size=1)
        for _ in range(2):
            async with engine.connect() as conn:
                assert await conn.get_isolation_level() == "SERIALIZABLE"
            async with engine.connect() as conn:
                await conn.execution_options(isolation_level="READ COMMITTED")
                assert await conn.get_isolation_level() == "READ COMMITTED"
        await engine.dispose()


async def test_connect_args_are_the_managers(server: ServerFactory) -> None:
    """The driver's keywords, passwords as callables, and the adapter's own options."""
    postgres = server("postgres")
    asked = []

    def token() -> str:
        asked.append(1)
        return str(postgres.password)

    engine = create_async_engine(
        f"postgresql+asyncpg://{postgres.user}@{postgres.host}:{postgres.port}/{postgres.database}",
        connect_args={"password": token, "server_settings": {"application_name": "mine"}, "reset": "none"},
    )
    async with engine.connect() as conn:
        assert (await conn.execute(text("SHOW application_name"))).scalar() == "mine"
    assert asked == [1]
    assert "reset='none'" in repr(pool_of(engine).manager)
    await engine.dispose()


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("pool_size", "max_size"),
        ("max_overflow", "max_size"),
        ("pool_timeout", "connection_timeout"),
        ("pool_recycle", "max_lifetime"),
        ("pool_pre_ping", "test_on_check_out"),
        ("pool_use_lifo", "queue_strategy"),
        ("poolclass", "pool_core.Pool"),
        ("pool", "engine_over"),
        ("creator", "connect_args"),
        ("async_creator", "connect_args"),
        ("guard", "SQLAlchemy refuses by itself"),
    ],
)
def test_an_option_of_sqlalchemys_pools_is_refused_with_the_one_to_write(option: str, advice: str) -> None:
    """An option that is taken and ignored is worse than none."""
    with pytest.raises(TypeError, match=f"{option} is not taken: .*{advice}"):
        create_async_engine(MEMORY, **{option: 1})


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: create_async_engine("postgresql+psycopg2://h/db"), ValueError, r"write one of postgresql\+asyncpg://"),
        (lambda: create_async_engine(MEMORY, max_sise=2), TypeError, "max_sise"),
        (lambda: create_async_engine(MEMORY, max_size=0), ValueError, "max_size=0"),
        (lambda: create_async_engine(MEMORY, connect_args={"nonsense": 1}), TypeError, "nonsense"),
        (lambda: engine_over(as_any(MEMORY)), TypeError, "needs a pool_core.Pool, not str"),
        (lambda: engine_over(Pool(FakeManager())), ValueError, "FakeManager is not a manager of"),
        (
            lambda: engine_over(Pool(PostgresConnectionManager()), max_size=2),
            TypeError,
            "max_size is an option of the pool",
        ),
        (lambda: engine_over(Pool(PostgresConnectionManager()), connect_args={}), TypeError, "connect_args belong to"),
        (lambda: engine_over(Pool(PostgresConnectionManager(), guard=True)), ValueError, "leave guard out"),
        (
            lambda: engine_over(Pool(PostgresConnectionManager()), dialect="postgresql+psycopg"),
            ValueError,
            r"the pool has connections for postgresql\+asyncpg",
        ),
    ],
)
def test_bad_input_is_refused_at_once(make: Callable[[], object], error: type[Exception], words: str) -> None:
    """When the engine is made, with what to write."""
    with pytest.raises(error, match=words):
        make()


async def test_a_managers_settings_that_sqlalchemy_cannot_work_with_are_refused(
    server: ServerFactory,
) -> None:
    """With autocommit on, a session's rollback would undo nothing, silently."""
    postgres, mysql = server("postgres"), server("mysql")
    managers: list[tuple[Any, str]] = [
        (PsycopgConnectionManager(postgres.url, autocommit=True), "autocommit=True"),
        (MySQLConnectionManager(mysql.url, autocommit=True), "autocommit=True"),
        (MySQLConnectionManager(mysql.url), "CLIENT.FOUND_ROWS"),
    ]
    for manager, words in managers:
        async with Pool(manager, max_size=1) as pool:
            with pytest.raises(ValueError, match=words):
                await one(engine_over(pool))
            assert pool.state().in_use == 0


def test_a_missing_adapter_is_named_with_what_to_install() -> None:
    """The first error that a newcomer may see."""
    code = (
        "import sys; sys.modules['pool_psycopg'] = None\n"
        "import pool_sqlalchemy\n"
        "try: pool_sqlalchemy.create_async_engine('postgresql+psycopg://h/db')\n"
        "except ImportError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 'needs pool-psycopg: pip install "pool-core[psycopg]"' in said


# --- the pool's errors


async def test_nested_sessions_are_told_and_a_full_pool_times_out() -> None:
    """SQLAlchemy's pool would wait 30 s and say "QueuePool limit"; ours is not wrapped into another error."""
    engine = create_async_engine(MEMORY, max_size=1, connection_timeout=20)
    async with engine.connect() as conn:
        await conn.execute(text("SELECT 1"))
        with pytest.raises(PoolDeadlock):
            await one(engine)

        async def other() -> None:
            async with AsyncSession(engine) as session:
                await session.execute(text("SELECT 1"))

        task = asyncio.create_task(other())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait([task])
    await engine.dispose()
    async with Pool(
        SqliteConnectionManager(MEMORY.replace("+aiosqlite", "")), max_size=1, connection_timeout=0.1
    ) as pool:
        engine = engine_over(pool)
        lease = await pool.get()
        with pytest.raises(PoolTimeout):
            await one(engine)
        lease.release()
        assert await one(engine) == 1


async def test_a_refused_login_is_a_connect_error(server: ServerFactory) -> None:
    """At once, with the driver's own error as its cause."""
    url = server("postgres").url.replace("postgresql", "postgresql+asyncpg").replace(":secret@", ":wrong@")
    engine = create_async_engine(url)
    with pytest.raises(ConnectError) as caught:
        await one(engine)
    assert isinstance(caught.value.__cause__, asyncpg.InvalidPasswordError)
    await engine.dispose()


async def test_a_pool_on_another_loop_is_an_error_at_once() -> None:
    """asyncpg would crash the process, aiomysql hang."""
    async with Pool(SqliteConnectionManager(":memory:")) as pool:
        engine = engine_over(pool)
        assert await one(engine) == 1

        def elsewhere() -> None:
            with pytest.raises(WrongEventLoop):
                asyncio.run(one(engine))

        await asyncio.to_thread(elsewhere)


async def test_a_server_that_has_become_read_only_retires_all(server: ServerFactory) -> None:
    """The manager judges the error within SQLAlchemy's wrapping, though the session closes in a task of its own."""
    async with Pool(PsycopgConnectionManager(server("postgres").url), max_size=3, min_idle=3) as pool:
        engine = engine_over(pool)
        with pytest.raises(exc.DBAPIError):
            async with AsyncSession(engine) as session:
                await session.execute(text("SET TRANSACTION READ ONLY"))
                await session.execute(text("CREATE TABLE never (a int)"))
        async with asyncio.timeout(5):
            while pool.state().statistics.connections_closed[CloseReason.EVICTED] < 3:
                await asyncio.sleep(0.01)


@pytest.mark.cancellation
async def test_wherever_a_session_is_cancelled_no_connection_is_lost(url: str) -> None:
    """At each await of checking out, executing, committing and closing, a cancel leaves a pool that serves."""

    async def scenario(inject: Injector) -> None:
        engine = create_async_engine(url, max_size=1, connection_timeout=10)
        await one(engine)

        async def session() -> None:
            async with AsyncSession(engine) as opened, opened.begin():
                await opened.execute(text("SELECT 1"))

        await inject(session())
        assert await one(engine) == 1
        pool = pool_of(engine)
        assert pool.state().in_use == 0
        records: Any = engine.sync_engine.pool
        assert not records._records
        await engine.dispose()

    assert await acancel_everywhere(scenario) > 3


# --- events and the pool's face


async def test_the_events_of_sqlalchemys_pools_are_dispatched() -> None:
    """connect once in a connection's life; checkout, reset and checkin each time; invalidate and close when it is bad."""
    engine = create_async_engine(MEMORY, max_size=1)
    seen: list[str] = []
    for name in ("first_connect", "connect", "checkout", "reset", "checkin", "invalidate", "soft_invalidate", "close"):
        event.listen(engine.sync_engine, name, lambda *_, name=name: seen.append(name))
    for _ in range(2):
        assert await one(engine) == 1
    assert seen == ["first_connect", "connect", *["checkout", "reset", "checkin"] * 2]
    seen.clear()
    async with engine.connect() as conn:
        await conn.invalidate()
    assert seen == ["checkout", "invalidate", "close", "checkin"]
    seen.clear()
    async with engine.connect() as conn:
        (await conn.get_raw_connection()).invalidate(soft=True)
    assert await one(engine) == 1
    assert pool_of(engine).state().statistics.connections_created == 3
    await engine.dispose()


async def test_info_is_kept_with_the_connection() -> None:
    """As SQLAlchemy's pools keep it."""
    engine = create_async_engine(MEMORY, max_size=1)
    for expected in (None, 1):
        async with engine.connect() as conn:
            info = (await conn.get_raw_connection()).info
            assert info.get("mine") == expected
            info["mine"] = 1
    await engine.dispose()


async def test_a_listener_that_refuses_a_connection_gets_another_one() -> None:
    """DisconnectionError in "checkout": SQLAlchemy's way for a check of one's own."""
    engine = create_async_engine(MEMORY, max_size=2)
    refused = 1

    @event.listens_for(engine.sync_engine, "checkout")
    def check(*_: Any) -> None:
        nonlocal refused
        if refused:
            refused -= 1
            raise exc.DisconnectionError

    assert await one(engine) == 1
    assert await one(engine) == 1
    assert pool_of(engine).state().in_use == 0
    refused = 5
    with pytest.raises(exc.InvalidRequestError):
        await one(engine)
    assert pool_of(engine).state().in_use == 0
    refused = 0
    assert await one(engine) == 1
    await engine.dispose()


async def test_a_listener_that_fails_leaks_nothing() -> None:
    """In connect and in checkout."""
    for name in ("connect", "checkout", "checkin", "reset"):
        engine = create_async_engine(MEMORY, max_size=1, connection_timeout=2)
        fail = True

        @event.listens_for(engine.sync_engine, name)
        def listener(*_: Any) -> None:
            if fail:
                raise LookupError

        try:
            await one(engine)
        except LookupError:
            pass
        fail = False
        assert await one(engine) == 1, name
        assert pool_of(engine).state().in_use == 0
        await engine.dispose()


async def test_a_listener_of_connect_whose_settings_are_reset_is_warned_of(server: ServerFactory) -> None:
    """A setting that the first session has and the second not is a trap; on SQLite it stays."""
    url = server("postgres").url.replace("postgresql", "postgresql+asyncpg")
    for target, told in ((url, 1), (MEMORY, 0)):
        engine = create_async_engine(target)

        @event.listens_for(engine.sync_engine, "connect")
        def listener(*_: Any) -> None: ...

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await one(engine)
        assert [warning.category for warning in caught] == [PoolWarning] * told
        await engine.dispose()


async def test_a_pragma_of_a_connect_listener_stays(tmp_path: Path) -> None:
    """The recipe of SQLAlchemy's documentation for foreign keys on SQLite."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}", max_size=1)

    @event.listens_for(engine.sync_engine, "connect")
    def listener(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    for _ in range(3):
        async with engine.connect() as conn:
            assert (await conn.execute(text("PRAGMA foreign_keys"))).scalar() == 1
    assert pool_of(engine).state().statistics.connections_created == 1
    await engine.dispose()


async def test_do_connect_is_refused_with_the_way_to_give_a_token() -> None:
    """It would be ignored: it is the manager that connects."""
    engine = create_async_engine(MEMORY)
    event.listen(engine.sync_engine, "do_connect", lambda *_: None)
    with pytest.raises(TypeError, match="password as callables"):
        await one(engine)
    await engine.dispose()


async def test_dispose_of_an_engine_in_use_retires_what_there_is() -> None:
    """As SQLAlchemy: what is idle is closed now, what is in use when it comes back; the user's own pool stays open."""
    engine = create_async_engine(MEMORY, max_size=2)
    async with engine.connect() as conn:
        await conn.execute(text("SELECT 1"))
        await engine.dispose()
        assert (await conn.execute(text("SELECT 1"))).scalar() == 1
    pool = pool_of(engine)
    assert await one(engine) == 1
    assert pool.state().statistics.connections_created == 2
    await engine.dispose()
    async with Pool(SqliteConnectionManager(":memory:")) as pool:
        engine = engine_over(pool)
        await one(engine)
        await engine.dispose()
        assert await one(engine) == 1
        assert pool.state().statistics.connections_closed[CloseReason.EVICTED] == 1


async def test_a_detached_connection_is_sqlalchemys() -> None:
    """It leaves the pool, works on, and is closed by its owner."""
    engine = create_async_engine(MEMORY, max_size=1)
    async with engine.connect() as conn:
        await conn.run_sync(lambda sync: sync.detach())
        assert (await conn.execute(text("SELECT 1"))).scalar() == 1
        assert await one(engine) == 1
    assert pool_of(engine).state().statistics.connections_closed[CloseReason.DETACHED] == 1
    await engine.dispose()


async def test_the_pools_numbers_are_seen_from_sqlalchemy() -> None:
    """What monitoring asks of engine.pool."""
    engine = create_async_engine(MEMORY, max_size=3)
    pool: Any = engine.pool
    async with engine.connect():
        assert (pool.size(), pool.checkedin(), pool.checkedout()) == (3, 0, 1)
        assert "1 in use" in pool.status()
    await engine.dispose()


def test_a_session_lost_on_a_loop_that_is_closed_ends_with_it(tmp_path: Path) -> None:
    """The garbage collector may come after the loop."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")

    async def lose() -> AsyncSession:
        session = AsyncSession(engine)
        await session.execute(text("SELECT 1"))
        return session

    session = asyncio.run(lose())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del session
        gc.collect()


# --- what it costs, and what the dialects can


async def test_a_session_sends_what_it_sends_over_sqlalchemys_pool_and_the_reset(server: ServerFactory) -> None:
    """The prepared statements are kept with the connection: else each session prepares anew, two round trips more."""
    postgres = server("postgres")
    with FaultProxy(postgres.host, postgres.port) as proxy:
        address = f"{postgres.user}:{postgres.password}@{proxy.host}:{proxy.port}/{postgres.database}?ssl=disable"
        url = f"postgresql+asyncpg://{address}"
        sent = []
        for engine in (create_async_engine(url, max_size=1), create_of_sqlalchemy(url, pool_size=1, max_overflow=0)):
            before = 0
            for _ in range(4):
                before = proxy.forwarded[0]
                async with AsyncSession(engine) as session:
                    await session.execute(text("SELECT 1"))
                await asyncio.sleep(0.1)  # what the pool does in the background belongs to it
            sent.append(proxy.forwarded[0] - before)
            await engine.dispose()
    ours, theirs = sent
    # A message: its kind, its length, the text and a zero. The statements' names may differ by a few digits.
    assert abs(ours - theirs - (1 + 4 + len(RESETS["safe"]) + 1)) <= 8


async def test_a_strict_reset_does_not_leave_dead_statements(server: ServerFactory) -> None:
    """It drops all prepared statements, SQLAlchemy's too."""
    async with Pool(PostgresConnectionManager(server("postgres").url, reset="strict"), max_size=1) as pool:
        engine = engine_over(pool)
        for _ in range(3):
            assert await one(engine) == 1
        assert pool.state().statistics.connections_created == 1


async def test_a_pool_may_be_shared_with_code_that_uses_the_driver(server: ServerFactory) -> None:
    """What the one has prepared or begun refuses to work in the other's lease."""
    async with Pool(PostgresConnectionManager(server("postgres").url), max_size=1) as pool:
        engine = engine_over(pool)
        past: list[Any] = []
        for _ in range(3):
            assert await one(engine) == 1
            async with pool.get() as conn:
                for statement in past:
                    with pytest.raises(asyncpg.InterfaceError, match="released"):
                        await statement.fetchval()
                past.append(await conn.prepare("SELECT 2"))
        assert pool.state().statistics.connections_created == 1


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_without_reset_on_return_the_pool_still_rolls_back(server: ServerFactory, driver: str) -> None:
    """The adapter of SQLAlchemy must not believe that the transaction is still open."""
    url = server("postgres").url.replace("postgresql", f"postgresql+{driver}")
    engine = create_async_engine(url, max_size=1, pool_reset_on_return=None)
    async with engine.begin() as conn:
        await conn.execute(text("DROP TABLE IF EXISTS unreset"))
        await conn.execute(text("CREATE TABLE unreset (a int)"))

    def insert() -> None:
        raw = engine.sync_engine.raw_connection()
        raw.cursor().execute("INSERT INTO unreset VALUES (1)")
        raw.close()

    await greenlet_spawn(insert)
    async with engine.begin() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM unreset"))).scalar() == 0
        await conn.execute(text("INSERT INTO unreset VALUES (2)"))
        await conn.rollback()
    async with engine.connect() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM unreset"))).scalar() == 0
    await engine.dispose()


async def test_two_phase_transactions_where_the_dialect_has_them(server: ServerFactory) -> None:
    """Prepared at the server, and committed or rolled back; the connection goes on."""
    found = server("mysql")
    engine = create_async_engine(
        found.url.replace("mysql://", "mysql+aiomysql://").replace(f"{found.user}:", "root:"), max_size=1
    )
    async with engine.begin() as conn:
        await conn.execute(text("CREATE TABLE IF NOT EXISTS phases (a int)"))
        await conn.execute(text("DELETE FROM phases"))
    for end in ("commit", "rollback"):

        def phases(sync: Any, end: str = end) -> None:
            transaction = sync.begin_twophase()
            sync.execute(text("INSERT INTO phases VALUES (1)"))
            transaction.prepare()
            getattr(transaction, end)()

        async with engine.connect() as conn:
            await conn.run_sync(phases)
    async with engine.connect() as conn:
        assert (await conn.execute(text("SELECT count(*) FROM phases"))).scalar() == 1
    await engine.dispose()


async def test_rows_are_streamed_in_portions(url: str) -> None:
    """yield_per, and a stream that is left half-read."""
    engine = create_async_engine(url, max_size=1)
    numbers = text(" UNION ALL ".join(f"SELECT {number} AS n" for number in range(30)))
    for _ in range(2):
        async with engine.connect() as conn:
            result = await conn.stream(numbers, execution_options={"yield_per": 7})
            assert [len(part) async for part in result.partitions(7)] == [7, 7, 7, 7, 2]
        async with engine.connect() as conn, conn.stream(numbers, execution_options={"yield_per": 7}) as result:
            assert await result.fetchone() is not None
    assert pool_of(engine).state().in_use == 0
    await engine.dispose()


async def test_after_a_fork_dispose_without_close_gives_a_pool_that_works(tmp_path: Path) -> None:
    """SQLAlchemy's recipe for processes that fork: the child must not touch the parent's connections."""
    code = f"""
import asyncio, os, sys
from pool_sqlalchemy import create_async_engine
from sqlalchemy import text
engine = create_async_engine("sqlite+aiosqlite:///{tmp_path / "x.db"}")
async def use():
    async with engine.connect() as conn:
        print((await conn.execute(text("SELECT 1"))).scalar(), flush=True)
    await engine.dispose()
asyncio.run(use())
if (child := os.fork()) == 0:
    engine.sync_engine.dispose(close=False)
    asyncio.run(use())
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.split() == ["1", "1", "0"], done.stderr
