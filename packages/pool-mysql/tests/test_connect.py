"""Connects: those that must fail do so at once, say why without a secret, and leave nothing open."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiomysql
import pytest
from pool_core.testing import FaultProxy, acancel_everywhere
from pool_mysql import MySQLConnectionManager

from containers.servers import ServerFactory

ROOT = {"user": "root"}


def test_a_wrong_password_is_an_error_at_once_and_not_retried(db: Any, connect_error: Any) -> None:
    """Retrying could lock the account."""
    manager = db.manager(password="wrong")
    error = connect_error(manager)
    assert isinstance(error, aiomysql.OperationalError)
    assert error.args[0] == 1045
    assert not manager.is_transient(error)


def test_an_unknown_database_is_not_retried_whether_the_user_sees_it_or_not(db: Any, connect_error: Any) -> None:
    """The server says 1044 to those without rights and 1049 to those with."""
    for user, number in (({}, 1044), (ROOT, 1049)):
        manager = db.manager(db="nowhere", **user)
        error = connect_error(manager)
        assert error.args[0] == number
        assert not manager.is_transient(error)


def test_a_port_where_nobody_listens_is_an_error_at_once_that_may_heal(db: Any, connect_error: Any) -> None:
    """It looks like a restart: the pool retries, open() raises it as it is at its deadline."""
    with FaultProxy(db.host, db.port) as proxy:
        proxy.refuse()
        manager = db.manager(port=proxy.port)
        error = connect_error(manager)
        assert isinstance(error.__cause__, ConnectionRefusedError)
        assert manager.is_transient(error)


def test_a_host_name_that_does_not_exist_is_refused_for_good(connect_error: Any) -> None:
    """A DNS server that does not answer is another error, which may heal."""
    manager = MySQLConnectionManager("mysql://ann:secret@no-such-host.invalid/d")
    error = connect_error(manager)
    assert isinstance(error.__cause__, OSError)
    assert not manager.is_transient(error)


def test_a_server_of_another_kind_is_refused_for_good() -> None:
    """A wrong port may be somebody else's."""

    async def main() -> tuple[MySQLConnectionManager, Exception]:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-OpenSSH_9.2p1\r\n")
            await reader.read()
            writer.close()

        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
            manager = MySQLConnectionManager(
                host="127.0.0.1", port=server.sockets[0].getsockname()[1], password="secret"
            )
            with pytest.raises(aiomysql.MySQLError) as caught:
                await manager.connect()
            await asyncio.sleep(0.01)
            return manager, caught.value

    manager, error = asyncio.run(main())
    assert not manager.is_transient(error)


def test_a_failing_init_command_is_not_retried_and_leaves_no_connection(db: Any, connect_error: Any) -> None:
    """The connection was already open and logged in when it failed."""
    manager = db.manager(init_command="SELECT 1 FROM missing")
    before = db.connected()
    error = connect_error(manager)
    assert error.args[0] == 1146
    assert not manager.is_transient(error)
    assert db.connected() <= before


def test_max_connections_is_worth_a_retry(server: ServerFactory, dialect: str) -> None:
    """Others close theirs."""
    with server(dialect, fresh=True, args=["--max-connections=10"]) as mine:
        manager = MySQLConnectionManager(mine.url)

        async def main() -> Any:
            conns = []
            try:
                with pytest.raises(aiomysql.OperationalError) as caught:
                    for _ in range(11):
                        conns.append(await manager.connect())
                await manager.close(conns.pop())
                async with asyncio.timeout(2):  # the server frees the place a little after the close
                    while True:
                        with contextlib.suppress(aiomysql.OperationalError):
                            conns.append(await manager.connect())
                            break
            finally:
                for conn in conns:
                    await manager.close(conn)
            return caught.value

        error = asyncio.run(main())
        assert error.args[0] == 1040
        assert manager.is_transient(error)


def test_a_password_beyond_latin_1_is_refused_without_being_quoted(connect_error: Any) -> None:
    """The UnicodeEncodeError of Python holds the whole password in its repr."""
    manager = MySQLConnectionManager("mysql://ann:secret\N{EURO SIGN}@127.0.0.1:1/")
    error = connect_error(manager)
    assert isinstance(error, ValueError)
    assert "Latin-1" in str(error)
    assert "\N{EURO SIGN}" not in repr(error) + repr(error.__context__ if not error.__suppress_context__ else "")
    assert not manager.is_transient(error)


@pytest.mark.parametrize("text", ["password = secret", "[client]\npassword = secret\nsecret"])
def test_a_malformed_option_file_is_refused_without_being_quoted(connect_error: Any, tmp_path: Path, text: str) -> None:
    """configparser's errors show the lines that it cannot read."""
    options = tmp_path / "my.cnf"
    options.write_text(text)
    manager = MySQLConnectionManager(host="127.0.0.1", port=1, read_default_file=str(options))
    error = connect_error(manager)
    assert "read_default_file is not an option file" in str(error)
    assert not manager.is_transient(error)


def test_the_password_of_an_option_file_is_checked_too(connect_error: Any, tmp_path: Path) -> None:
    """Python's UnicodeEncodeError holds the whole password."""
    options = tmp_path / "my.cnf"
    options.write_text("[client]\npassword = secret\N{EURO SIGN}\n", encoding="utf-8")
    error = connect_error(MySQLConnectionManager(host="127.0.0.1", port=1, read_default_file=str(options)))
    assert isinstance(error, ValueError)
    assert "Latin-1" in str(error)


def test_credentials_may_be_callables_asked_for_every_connect(db: Any) -> None:
    """Cloud databases hand out passwords for fifteen minutes."""
    calls = []

    def user() -> str:
        calls.append("user")
        return str(db.user)

    async def password() -> str:
        await asyncio.sleep(0)
        calls.append("password")
        return str(db.password)

    manager = MySQLConnectionManager(host=db.host, port=db.port, user=user, password=password)

    async def main() -> None:
        for _ in range(2):
            await manager.close(await manager.connect())

    asyncio.run(main())
    assert calls == ["user", "password"] * 2


def test_a_callable_that_returns_no_text_is_an_error_that_says_so(db: Any, connect_error: Any) -> None:
    """The value itself may be a secret."""
    manager = db.manager(password=lambda: b"secret")
    error = connect_error(manager)
    assert isinstance(error, TypeError)
    assert str(error) == "the callable for password returned bytes: it must return a str"
    assert not manager.is_transient(error)


def test_a_callable_that_fails_may_succeed_later(db: Any, connect_error: Any) -> None:
    """A token service has its bad moments too."""

    class TokenServiceDown(Exception):
        pass

    async def password() -> str:
        raise TokenServiceDown

    manager = db.manager(password=password)
    error = connect_error(manager)
    assert isinstance(error, TokenServiceDown)
    assert manager.is_transient(error)


def test_update_serves_new_connections_and_leaves_old_ones(own: Any) -> None:
    """A rotated password: present connections go on, the next one logs in anew."""

    async def main() -> None:
        manager = own.manager()
        old = await manager.connect()
        own.admin(f"ALTER USER '{own.user}'@'%' IDENTIFIED BY 'rotated'")
        try:
            with pytest.raises(aiomysql.OperationalError):
                await manager.connect()
            manager.update(password="rotated")
            new = await manager.connect()
            assert await manager.is_valid(old)
            assert await manager.is_valid(new)
            await manager.close(old)
            await manager.close(new)
        finally:
            own.admin(f"ALTER USER '{own.user}'@'%' IDENTIFIED BY '{own.password}'")

    asyncio.run(main())


def test_a_silent_server_holds_a_connect_only_until_it_is_cancelled(db: Any) -> None:
    """aiomysql's connect_timeout covers TCP only: without a deadline of ours it waits for ever."""

    async def main() -> None:
        with FaultProxy(db.host, db.port) as proxy:
            proxy.silence()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await db.manager(port=proxy.port).connect()
            await asyncio.sleep(0.02)
            assert proxy.open == 0

    asyncio.run(main())


@pytest.mark.cancellation
def test_a_connect_cancelled_anywhere_leaves_no_socket_with_all_its_steps(db: Any) -> None:
    """sql_mode, init_command and autocommit are steps of their own; the driver closes on errors, not on cancels."""

    async def main() -> None:
        with FaultProxy(db.host, db.port) as proxy:
            manager = db.manager(port=proxy.port, sql_mode="'ANSI'", init_command="SET @x = 1", autocommit=True)

            async def scenario(inject: Any) -> None:
                outcome = await inject(manager.connect())
                if not outcome.cancelled:
                    await manager.close(outcome.result)
                async with asyncio.timeout(2):
                    while proxy.open:
                        await asyncio.sleep(0.002)

            assert await acancel_everywhere(scenario) > 10

    asyncio.run(main())


def test_a_connection_that_no_manager_made_counts_as_broken(db: Any) -> None:
    """Its state when new is not known, so nobody could bring it back."""

    async def main() -> None:
        foreign = await aiomysql.connect(host=db.host, port=db.port, user=db.user, password=db.password)
        try:
            with pytest.raises(AttributeError):  # which a pool takes for broken
                db.manager().has_broken(foreign)
        finally:
            await foreign.ensure_closed()

    asyncio.run(main())


def test_an_error_of_the_last_step_leaves_no_connection(db: Any) -> None:
    """The state of the new session cannot be read: the login stood already."""

    async def main() -> None:
        before = db.connected()
        async with db.front({b"\x03SELECT CAST(DATABASE()": None}) as port:
            with pytest.raises(aiomysql.OperationalError, match="Unknown command"):
                await db.manager(port=port).connect()
            async with asyncio.timeout(2):
                while db.connected() > before:
                    await asyncio.sleep(0.01)

    asyncio.run(main())
