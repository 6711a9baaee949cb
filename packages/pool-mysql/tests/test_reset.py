"""What a borrower leaves behind, and what of it the next one sees."""

import asyncio
from decimal import Decimal
from typing import Any, Literal

import aiomysql
import pytest
from pool_core import ReplaceConnection
from pool_mysql import Connection, MySQLConnectionManager, SessionStateError

Reset = Literal["safe", "strict", "none"]


async def return_it(manager: MySQLConnectionManager, conn: Connection) -> None:
    """Return it as a pool does."""
    assert not manager.has_broken(conn)
    wiping = manager.reset(conn)
    if wiping is not None:
        await wiping
    assert not manager.has_broken(conn)


@pytest.fixture(params=["first reset", "later reset"], autouse=True)
def _history(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, db: Any) -> None:
    """The first reset of a connection is checked; later ones are compared with it."""
    monkeypatch.setattr(type(db), "resets_first", request.param == "later reset")


@pytest.fixture(params=["safe", "strict"])
def reset(request: pytest.FixtureRequest) -> Any:
    """Both ways that reset sessions."""
    return request.param


# --- transactions and locks: what others would wait for


@pytest.mark.parametrize("way", ["safe", "strict", "none"])
@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize(
    "statements", [["BEGIN", "INSERT INTO things VALUES (77)"], ["SELECT * FROM things FOR UPDATE"]]
)
def test_an_open_transaction_is_rolled_back_in_every_way(
    db: Any, way: Reset, autocommit: bool, statements: list[str]
) -> None:
    """With autocommit off a locking SELECT begins one of which the driver knows nothing."""

    async def main() -> None:
        async with db.connection(reset=way, autocommit=autocommit) as (manager, conn):
            for sql in statements:
                await db.ask(conn, sql)
            await return_it(manager, conn)
            assert not await db.in_transaction(conn)
            assert await db.ask(conn, "SELECT * FROM things WHERE number = 77") == ()

    asyncio.run(main())


def test_the_driver_does_not_know_of_every_transaction(db: Any) -> None:
    """The fact on which the rule "autocommit off: always roll back" rests. A ping's answer has the truth."""

    async def main() -> None:
        async with db.connection() as (_manager, conn):
            await db.ask(conn, "SELECT * FROM things FOR UPDATE")
            assert not conn.get_transaction_status()
            await conn.ping(reconnect=False)
            assert conn.get_transaction_status()

    asyncio.run(main())


def test_nothing_is_done_with_reset_none_and_no_transaction(db: Any) -> None:
    """No task, no round trip: the connection goes straight back."""

    async def main() -> None:
        async with db.connection(reset="none", autocommit=True) as (manager, conn):
            await db.ask(conn, "SET @x = 1")
            assert manager.reset(conn) is None
            assert await db.ask(conn, "SELECT @x") == ((1,),), "and this is what reset='none' means"

    asyncio.run(main())


def test_locks_are_given_up(db: Any, reset: Reset) -> None:
    """GET_LOCK and LOCK TABLES outlive the transaction: others would wait for an idle connection."""

    async def main() -> None:
        async with db.connection(reset=reset) as (manager, conn), db.connection(autocommit=True) as (_, other):
            await db.ask(conn, "SELECT GET_LOCK('mine', 1)")
            await db.ask(conn, "LOCK TABLES things WRITE")
            await return_it(manager, conn)
            async with asyncio.timeout(2):
                assert await db.ask(other, "SELECT GET_LOCK('mine', 1)") == ((1,),)
                await db.ask(other, "INSERT INTO things VALUES (1)")

    asyncio.run(main())


def test_after_xa_prepare_a_connection_is_closed_unless_it_can_write(own: Any, reset: Reset) -> None:
    """MariaDB answers OK to the reset command and leaves a session that cannot write. MySQL's session can."""
    own.admin("CREATE TABLE IF NOT EXISTS things (number INT) ENGINE=InnoDB")

    async def main() -> None:
        async with own.connection(reset=reset, autocommit=True) as (manager, conn):
            for sql in ("XA START 'x'", "INSERT INTO things VALUES (1)", "XA END 'x'", "XA PREPARE 'x'"):
                await own.ask(conn, sql)
            if own.dialect.prepare_detaches:
                await return_it(manager, conn)
                await own.ask(conn, "INSERT INTO things VALUES (2)")
            else:
                with pytest.raises(ReplaceConnection, match="XA"):
                    await manager.reset(conn)

    try:
        asyncio.run(main())
    finally:
        own.admin("XA ROLLBACK 'x'")


# --- the session


@pytest.mark.parametrize(
    ("dirty", "look"),
    [
        ("SET @x = 1", "SELECT @x"),
        ("SET sql_mode = 'ANSI'", "SELECT @@sql_mode"),
        (
            "SET {limit} = 1, wait_timeout = 5, time_zone = '+09:00'",
            "SELECT @@{limit}, @@wait_timeout, @@time_zone",
        ),
        ("SET SESSION TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE", "SELECT {read_only}, {isolation}"),
        ("SET TRANSACTION READ ONLY", "INSERT INTO things VALUES (5)"),
        ("CREATE TEMPORARY TABLE things (mine TEXT)", "SHOW COLUMNS FROM things"),
        ("USE other", "SELECT DATABASE()"),
        ("SET NAMES latin1", "SELECT @@character_set_client, @@character_set_results, @@collation_connection"),
        ("SET NAMES utf8mb4 COLLATE utf8mb4_bin", "SELECT @@collation_connection"),
        ("SET autocommit = 1", "SELECT @@autocommit"),
        ("HANDLER things OPEN AS mine", "HANDLER mine CLOSE"),
        ("PREPARE mine FROM 'SELECT 1'", "EXECUTE mine"),
        ("SELECT LAST_INSERT_ID(7)", "SELECT LAST_INSERT_ID()"),
        ("SET insert_id = 7, timestamp = 7", "SELECT @@insert_id, @@timestamp > 7"),
    ],
    ids=lambda sql: sql.split(" COLLATE")[0][:28],
)
def test_the_next_borrower_sees_what_a_new_connection_sees(db: Any, reset: Reset, dirty: str, look: str) -> None:
    """The peers leave most of it to the next one."""
    dirty, look = (sql.format(**vars(db.dialect)) for sql in (dirty, look))

    async def see(conn: Connection) -> Any:
        try:
            return await db.ask(conn, look)
        except aiomysql.MySQLError as error:
            return error.args[0]

    async def main() -> None:
        async with db.connection() as (_, new), db.connection() as (_, dirtied):
            await db.ask(dirtied, dirty)
            clean = await see(new)
            assert await see(dirtied) != clean, "the test would prove nothing"
        async with db.connection(reset=reset) as (manager, conn):
            await db.ask(conn, dirty)
            await return_it(manager, conn)
            assert await see(conn) == clean

    asyncio.run(main())


def test_the_role_is_that_of_a_new_connection(own: Any, reset: Reset) -> None:
    """COM_RESET_CONNECTION leaves roles as they are: SET ROLE admin would stay in force."""
    own.admin("CREATE ROLE IF NOT EXISTS admin")
    own.admin("CREATE ROLE IF NOT EXISTS reader")
    server = own.dialect
    for role in ("admin", "reader"):
        own.admin(f"GRANT {role} TO '{own.user}'@'%'")

    async def main() -> None:
        for default in ("NONE", "reader"):
            own.admin(server.set_default_role(default, own.user))
            async with own.connection(reset=reset) as (manager, conn):
                clean = server.no_role if default == "NONE" else server.role(default)
                assert await own.ask(conn, "SELECT CURRENT_ROLE()") == ((clean,),)
                await own.ask(conn, "SET ROLE admin")
                assert await own.ask(conn, "SELECT CURRENT_ROLE()") == ((server.role("admin"),),)
                await return_it(manager, conn)
                assert await own.ask(conn, "SELECT CURRENT_ROLE()") == ((clean,),)

    asyncio.run(main())
    own.admin(server.set_default_role("NONE", own.user))


def test_the_settings_of_the_manager_are_in_force_again(db: Any, reset: Reset) -> None:
    """A reset takes them away, too: charset, sql_mode, init_command, autocommit, in the driver's order."""

    async def main() -> None:
        settings = {
            "charset": "latin1",
            "sql_mode": "'ANSI_QUOTES'",
            "init_command": "SET @key = 'k', time_zone = '+02:00', character_set_results = NULL",
            "autocommit": True,
        }
        look = "SELECT @@character_set_client, @@character_set_results, @@collation_connection, @@sql_mode, @key, "
        look += "@@time_zone, @@autocommit, DATABASE()"
        async with db.connection(reset=reset, **settings) as (manager, conn):
            fresh = await db.ask(conn, look)
            assert fresh[0][3] == "ANSI_QUOTES"
            await db.ask(conn, "SET NAMES utf8mb4, sql_mode = '', @key = 'other', time_zone = SYSTEM, autocommit = 0")
            await db.ask(conn, "USE other")
            await return_it(manager, conn)
            assert await db.ask(conn, look) == fresh
            assert conn.get_autocommit()

    asyncio.run(main())


def test_the_servers_own_autocommit_stays_in_force(db: Any, reset: Reset) -> None:
    """autocommit=None: the driver sends nothing, the server decides."""

    async def main() -> None:
        async with db.connection(reset=reset, autocommit=None) as (manager, conn):
            assert conn.get_autocommit()
            await conn.autocommit(False)
            await return_it(manager, conn)
            assert conn.get_autocommit()
            assert conn.autocommit_mode is None

    asyncio.run(main())


def test_what_was_set_on_the_connection_object_is_taken_back(db: Any, reset: Reset) -> None:
    """A session has a Python side: its charset decides how texts are sent, its cursor class what rows look like."""

    async def main() -> None:
        async with db.connection(reset=reset) as (manager, conn):
            conn.cursorclass = aiomysql.DictCursor
            conn.decoders = {}
            await conn.set_charset("latin1")
            await conn.autocommit(True)
            await return_it(manager, conn)
            assert conn.charset == "utf8mb4"
            assert conn.encoding == "utf8"
            assert conn.autocommit_mode is False
            async with conn.cursor() as cursor:
                await cursor.execute("SELECT '\N{EURO SIGN}', 1")
                assert await cursor.fetchone() == ("\N{EURO SIGN}", 1)

    asyncio.run(main())


def test_converters_changed_in_place_reach_no_other_connection(db: Any, reset: Reset) -> None:
    """PyMySQL has one dict of converters for the whole process, and hands it to each connection."""
    number = aiomysql.connection.FIELD_TYPE.NEWDECIMAL

    async def main() -> None:
        async with db.connection(reset=reset) as (manager, conn), db.connection() as (_, other):
            conn.decoders[number] = float
            conn.encoders[Decimal] = str
            assert await db.ask(conn, "SELECT 1.5") == ((1.5,),)
            assert isinstance((await db.ask(other, "SELECT 1.5"))[0][0], Decimal)
            assert aiomysql.connection.decoders[number] is Decimal
            await return_it(manager, conn)
            assert isinstance((await db.ask(conn, "SELECT 1.5"))[0][0], Decimal)
            assert conn.encoders[Decimal] is not str

    asyncio.run(main())


def test_results_of_earlier_statements_are_forgotten(db: Any, reset: Reset) -> None:
    """insert_id() and affected_rows() of a new lease are those of a new aiomysql connection."""
    db.admin("CREATE TABLE IF NOT EXISTS counted (id INT AUTO_INCREMENT PRIMARY KEY, number INT)")

    async def main() -> None:
        settings = {"host": db.host, "port": db.port, "user": db.user, "password": db.password}
        bare = await aiomysql.connect(**settings)
        new = (bare.insert_id(), bare.affected_rows())
        bare.close()
        async with db.connection(reset=reset) as (manager, conn):
            assert (conn.insert_id(), conn.affected_rows()) == new == (0, 0)
            await conn.query("INSERT INTO counted (number) VALUES (1), (2)")
            assert conn.insert_id() > 0
            await return_it(manager, conn)
            assert (conn.insert_id(), conn.affected_rows()) == new

    asyncio.run(main())


def test_init_command_runs_in_the_database_of_the_settings(own: Any, reset: Reset) -> None:
    """COM_RESET_CONNECTION leaves the borrower's database in place: what init_command writes would go there."""
    own.admin("CREATE DATABASE IF NOT EXISTS other")
    own.admin(f"GRANT ALL ON other.* TO '{own.user}'@'%'")
    for table in ("logins", "other.logins"):
        own.admin(f"DROP TABLE IF EXISTS {table}")
        own.admin(f"CREATE TABLE {table} (number INT) ENGINE=InnoDB")

    async def main() -> None:
        async with own.connection(reset=reset, init_command="INSERT INTO logins VALUES (1)") as (manager, conn):
            await conn.select_db("other")
            await return_it(manager, conn)
            assert own.admin("SELECT COUNT(*) FROM other.logins") == ((0,),)
            await own.ask(conn, "INSERT INTO logins VALUES (2)")

    asyncio.run(main())


def test_a_database_whose_name_is_not_ascii_is_found_again_in_any_charset(own: Any, reset: Reset) -> None:
    """The check compares bytes, and USE is sent in the connection's character set."""
    for name in ("gr\u00f6\u00dfe", "GR\u00d6SSE", "it`s"):
        own.admin(f"CREATE DATABASE IF NOT EXISTS `{name.replace('`', '``')}`")
        own.admin(f"GRANT ALL ON `{name.replace('`', '``')}`.* TO '{own.user}'@'%'")

    async def main() -> None:
        for charset in ("utf8mb4", "latin1"):
            for name in ("gr\u00f6\u00dfe", "it`s"):
                async with own.connection(reset=reset, db=name, charset=charset) as (manager, conn):
                    for other in ("GR\u00d6SSE", name):
                        await conn.select_db(other)
                        await return_it(manager, conn)
                        assert await own.ask(conn, "SELECT DATABASE()") == ((name,),)

    asyncio.run(main())


def test_no_database_in_the_settings_and_one_chosen_by_the_borrower(db: Any) -> None:
    """No statement takes it back: "safe" gives the connection up, "strict" logs in without one."""

    async def main() -> None:
        nowhere = {"host": db.host, "port": db.port, "user": db.user, "password": db.password}
        for reset in ("safe", "strict"):
            manager = MySQLConnectionManager(reset=reset, **nowhere)
            conn = await manager.connect()
            try:
                if db.resets_first:
                    await return_it(manager, conn)
                await conn.select_db("other")
                if reset == "safe":
                    with pytest.raises(ReplaceConnection, match="the manager's settings name none"):
                        await return_it(manager, conn)
                else:
                    await return_it(manager, conn)
                    assert await db.ask(conn, "SELECT DATABASE()") == ((None,),)
            finally:
                await manager.close(conn)

    asyncio.run(main())


def test_a_dropped_database_costs_the_connection(own: Any, reset: Reset) -> None:
    """A borrower that drops the database it is in leaves a session without one."""
    own.admin("CREATE DATABASE gone")
    own.admin(f"GRANT ALL ON gone.* TO '{own.user}'@'%'")

    async def main() -> None:
        async with own.connection(reset=reset, db="gone") as (manager, conn):
            await own.ask(conn, "DROP DATABASE gone")
            with pytest.raises(aiomysql.MySQLError):
                await manager.reset(conn)

    asyncio.run(main())


def test_strict_logs_in_again_with_the_rights_of_now(own: Any) -> None:
    """A locked account, a changed password: a pooled session would go on for max_lifetime."""

    async def main() -> None:
        async with own.connection(reset="strict") as (manager, conn), own.connection(reset="safe") as (lax, other):
            own.admin(f"ALTER USER '{own.user}'@'%' ACCOUNT LOCK")
            try:
                await return_it(lax, other)
                with pytest.raises(aiomysql.OperationalError, match="locked"):
                    await return_it(manager, conn)
            finally:
                own.admin(f"ALTER USER '{own.user}'@'%' ACCOUNT UNLOCK")

    asyncio.run(main())


def test_strict_works_for_names_and_attributes_of_any_length(own: Any) -> None:
    """The packet of COM_CHANGE_USER has lengths in it."""
    own.admin("CREATE DATABASE IF NOT EXISTS `gr\u00f6\u00dfe`")
    own.admin("DROP USER IF EXISTS 'j\u00f6rg'@'%'")
    own.admin("CREATE USER 'j\u00f6rg'@'%' IDENTIFIED BY ''")
    own.admin("GRANT ALL ON *.* TO 'j\u00f6rg'@'%'")

    async def main() -> None:
        settings = {"user": "j\u00f6rg", "password": "", "db": "gr\u00f6\u00dfe", "program_name": "p" * 120}
        async with own.connection(reset="strict", **settings) as (manager, conn):
            for _ in range(2):
                await return_it(manager, conn)
                assert await own.ask(conn, "SELECT DATABASE()") == (("gr\u00f6\u00dfe",),)

    asyncio.run(main())


# --- open_transaction="close"


@pytest.mark.parametrize("way", ["safe", "strict", "none"])
def test_close_gives_up_a_connection_that_comes_back_in_a_transaction(db: Any, way: Reset) -> None:
    """diesel's rule; has_broken says it at once where the driver knows."""

    async def main() -> None:
        async with db.connection(reset=way, open_transaction="close", autocommit=True) as (manager, conn):
            assert not manager.has_broken(conn)
            await conn.begin()
            assert manager.has_broken(conn)
            await conn.commit()
            assert not manager.has_broken(conn)
        async with db.connection(reset=way, open_transaction="close") as (manager, conn):
            await db.ask(conn, "SELECT * FROM things FOR UPDATE")
            assert not manager.has_broken(conn)
            with pytest.raises(ReplaceConnection, match="in a transaction"):
                await manager.reset(conn)
            await conn.rollback()
            await return_it(manager, conn)

    asyncio.run(main())


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("strays", [1, 2, 3])
def test_an_answer_that_nobody_has_read_does_not_pass_for_a_reset(
    db: Any, reset: Reset, autocommit: bool, strays: int
) -> None:
    """It arrives after has_broken was called; the next borrower would get the answers of others."""

    async def main() -> None:
        async with db.connection(reset=reset, autocommit=autocommit) as (manager, conn):
            for _ in range(strays):
                conn._writer.write(b"\1\0\0\0\x0e")  # COM_PING
            assert not manager.has_broken(conn)
            with pytest.raises((aiomysql.MySQLError, ValueError, AssertionError)):
                await manager.reset(conn)

    asyncio.run(main())


# --- one round trip


@pytest.mark.parametrize(
    ("settings", "sql", "writes"),
    [
        ({}, None, 1),
        ({"autocommit": True, "sql_mode": "'ANSI'", "charset": "latin1"}, "SET NAMES utf8mb4", 1),
        ({}, "SELECT * FROM things FOR UPDATE", 1),
        ({}, "USE other", 3),
        ({}, "BEGIN", 2),
        ({"init_command": "SET @x = 1"}, None, 3),
        ({"reset": "strict"}, "USE other", None),
        ({"reset": "none"}, None, 1),
        ({"reset": "none", "autocommit": True}, None, 0),
    ],
)
def test_a_reset_takes_as_many_round_trips_as_the_readme_says(
    db: Any, settings: dict[str, Any], sql: str | None, writes: int | None
) -> None:
    """Each write waits for its answer. Only the first reset is checked: one more in the usual case, and not in one write."""

    async def main() -> None:
        async with db.connection(**settings) as (manager, conn):
            if sql is not None:
                await db.ask(conn, sql)
            written: list[bytes] = []
            write = conn._writer.write

            def spy(data: bytes) -> None:
                written.append(bytes(data))
                write(data)

            conn._writer.write = spy
            await return_it(manager, conn)
            del conn._writer.write
            expected: int = db.dialect.second_login + 1 if writes is None else writes
            if writes is None and not db.resets_first and db.dialect.login_method == "caching_sha2_password":
                expected += 1  # it asks for the server's key once
            in_one_write = settings.get("reset", "safe") == "safe"
            checked = not db.resets_first and settings.get("reset") != "none"
            assert len(written) == expected + (checked + (checked and in_one_write))
            assert any(RESET_CONNECTION in data[:5] and b"SET " in data for data in written) is (
                in_one_write and db.resets_first
            )

    asyncio.run(main())


@pytest.mark.parametrize("second", ["is lost", "ends it"])
def test_a_proxy_that_takes_one_command_at_a_time_is_served_so(db: Any, second: str) -> None:
    """Three connections are lost before that is believed: a lost connection may have other causes."""

    async def main() -> None:
        async with db.front({}, second=second) as port:
            manager = db.manager(port=port)
            for failures in range(5):
                conn = await manager.connect()
                await return_it(manager, conn)
                await db.ask(conn, "SET @x = 1")
                resetting = asyncio.ensure_future(manager.reset(conn))
                if failures < 3:
                    await asyncio.wait({resetting}, timeout=0.3)
                    resetting.cancel()  # at reset_timeout
                    with pytest.raises((asyncio.CancelledError, aiomysql.OperationalError)):
                        await resetting
                    assert manager.has_broken(conn)
                else:
                    await resetting
                    assert await db.ask(conn, "SELECT @x") == ((None,),)
                manager.terminate(conn)

    asyncio.run(main())


def test_a_connection_lost_in_a_reset_does_not_end_pipelining(db: Any) -> None:
    """A restart of the server fails resets, too; after one success they say nothing about the server."""

    async def main() -> None:
        manager = db.manager()
        for count in range(6):
            conn = await manager.connect()
            await return_it(manager, conn)
            assert manager._pipelining.allowed
            if count:
                db.admin(f"KILL {conn.thread_id()}")
                with pytest.raises(aiomysql.OperationalError):
                    await manager.reset(conn)
            else:
                await return_it(manager, conn)
            manager.terminate(conn)

    asyncio.run(main())


# --- other servers, played by a front that answers some commands itself

RESET_CONNECTION = b"\x1f"


def test_a_server_without_the_command_costs_the_connection_and_the_error_says_what_to_do(
    db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old servers and some proxies; "strict" needs a command that is much older."""
    monkeypatch.setattr(type(db), "resets_first", False)

    async def main() -> None:
        async with db.front({RESET_CONNECTION: None}) as port:
            async with db.connection(port=port) as (manager, conn):
                with pytest.raises(SessionStateError, match='use reset="strict"'):
                    await manager.reset(conn)
            async with db.connection(port=port, reset="strict") as (manager, conn):
                await db.ask(conn, "SET @x = 1")
                await return_it(manager, conn)
                assert await db.ask(conn, "SELECT @x") == ((None,),)

    asyncio.run(main())


def test_a_server_whose_reset_forgets_the_charset_is_told_again(db: Any) -> None:
    """MySQL's goes to its global settings, MariaDB's to those of the login: both end where the connection began."""

    async def main() -> None:
        look = (
            "SELECT @@character_set_client, @@character_set_connection, @@character_set_results, @@collation_connection"
        )
        async with (
            db.front({RESET_CONNECTION: b"\x03SET NAMES greek"}) as port,
            db.connection(port=port) as (manager, conn),
        ):
            fresh = await db.ask(conn, look)
            await return_it(manager, conn)
            assert await db.ask(conn, look) == fresh

    asyncio.run(main())


def test_what_init_command_wrote_is_committed_after_a_reset_too(own: Any, reset: Reset) -> None:
    """The driver commits after it at connect; with autocommit off at the server it would hang in the air."""
    own.admin("DROP TABLE IF EXISTS logins")
    own.admin("CREATE TABLE logins (number INT) ENGINE=InnoDB")
    own.admin("SET GLOBAL autocommit = 0")

    async def main() -> None:
        async with own.connection(reset=reset, init_command="INSERT INTO logins VALUES (1)") as (manager, conn):
            for times in (1 + own.resets_first, 2 + own.resets_first):
                assert own.admin("SELECT COUNT(*) FROM logins") == ((times,),)
                await return_it(manager, conn)

    try:
        asyncio.run(main())
    finally:
        own.admin("SET GLOBAL autocommit = 1")
