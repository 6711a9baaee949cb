"""TLS, of which the driver takes a demand for a wish, and which changes the transport in the middle of a connect."""

import asyncio
import contextlib
import logging
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pymysql
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from mysql_dialects import DIALECTS, Dialect
from pool_core.testing import FaultProxy, acancel_everywhere
from pool_mysql import MySQLConnectionManager, TLSRefusedError

from containers.servers import Server, ServerFactory

HERE = Path(__file__).parent


def _root(server: Any) -> Any:
    return pymysql.connect(host=server.host, port=server.port, user="root", password=server.password)


def dialect_of(server: Server) -> Dialect:
    return DIALECTS[server.name]


def _make_account(server: Any) -> None:
    """Make the account own, with the server's own login method; the server remembers no login of it."""
    with contextlib.closing(_root(server)) as root, root.cursor() as cursor:
        cursor.execute("DROP USER IF EXISTS own@'%'")
        cursor.execute("CREATE USER own@'%' IDENTIFIED BY 'secret'")
        cursor.execute("SELECT plugin FROM mysql.user WHERE user = 'own'")
        assert cursor.fetchone() == (dialect_of(server).login_method,)


def _manager(server: Any, **settings: Any) -> MySQLConnectionManager:
    return MySQLConnectionManager(host=server.host, port=server.port, user="own", password="secret", **settings)


async def _connect_and_close(manager: MySQLConnectionManager) -> None:
    await manager.close(await manager.connect())


@pytest.fixture(scope="module")
def secured(server: ServerFactory, dialect: str) -> Iterator[Any]:
    with server(dialect, fresh=True) as mine:
        if not mine.label.startswith("container"):
            pytest.skip("the server's certificate can be put into a container only")
        certificate, key = ((HERE / f"tls-{name}.pem").read_text() for name in ("cert", "key"))
        script = (
            f"printf '%s' '{certificate}' > /etc/mysql/tls-cert.pem; printf '%s' '{key}' > /etc/mysql/tls-key.pem; "
            "printf '[mysqld]\nssl_cert=/etc/mysql/tls-cert.pem\nssl_key=/etc/mysql/tls-key.pem\n' "
            "> /etc/mysql/conf.d/tls.cnf; chmod a+r /etc/mysql/*.pem /etc/mysql/conf.d/tls.cnf"
        )
        mine._site.execute(["sh", "-c", script])
        mine.stop()
        mine.start()
        yield mine


@pytest.fixture
def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=HERE / "tls-cert.pem")


def test_demanded_and_not_offered_is_refused_before_the_login_is_sent(
    server: ServerFactory, dialect: str, trusting: ssl.SSLContext
) -> None:
    """aiomysql goes on in plain text."""

    async def main(plain: Server) -> None:
        with FaultProxy(plain.host, plain.port) as proxy:
            manager = MySQLConnectionManager(plain.url, port=proxy.port, ssl=trusting)
            with pytest.raises(TLSRefusedError, match="the server does not offer it") as caught:
                await manager.connect()
            assert not manager.is_transient(caught.value)
            assert proxy.forwarded[0] == 0, "something was sent to a server without TLS"
            await asyncio.sleep(0.02)
            assert proxy.open == 0

    with server(dialect, fresh=True, args=dialect_of(server(dialect)).no_tls) as plain:
        asyncio.run(main(plain))


@pytest.mark.parametrize("reset", ["safe", "strict"])
def test_the_servers_own_login_method_works_with_and_without_tls(
    secured: Any, trusting: ssl.SSLContext, reset: Literal["safe", "strict"]
) -> None:
    """MySQL's sends the password itself: inside TLS, or encrypted with the server's key; "strict" logs in again."""
    _make_account(secured)

    async def main() -> None:
        for tls in (None, trusting):
            manager = _manager(secured, ssl=tls, reset=reset)
            conn = await manager.connect()
            for _ in range(2):  # the server remembers the password after the first login
                resetting = manager.reset(conn)
                assert resetting is not None
                await resetting
                assert await manager.is_valid(conn)
            await manager.close(conn)

    asyncio.run(main())


@pytest.mark.parametrize("encrypted", [False, True], ids=["without TLS", "with TLS"])
def test_the_first_login_of_an_account_and_a_later_one_work(
    secured: Any, trusting: ssl.SSLContext, caplog: pytest.LogCaptureFixture, encrypted: bool
) -> None:
    """MySQL's default method sends the password once, and then only proves that it knows it."""
    _make_account(secured)
    manager = _manager(secured, ssl=trusting if encrypted else None)

    async def main() -> list[bool]:
        full = []
        for _ in range(2):
            caplog.clear()
            with caplog.at_level(logging.DEBUG, logger="aiomysql"):
                await manager.close(await manager.connect())
            full.append("Trying full auth" in caplog.text)
        return full

    full = asyncio.run(main())
    assert full == [dialect_of(secured).login_method == "caching_sha2_password", False]


def test_a_login_without_cryptography_says_what_to_install(
    secured: Any, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, connect_error: Any
) -> None:
    """pool-mysql depends on it; an environment that was put together by hand may lack it."""
    _make_account(secured)
    monkeypatch.setattr("pymysql._auth._have_cryptography", False)
    manager = _manager(secured)
    if dialect_of(secured).login_method != "caching_sha2_password":
        return asyncio.run(_connect_and_close(manager))
    error = connect_error(manager)
    assert isinstance(error, ImportError)
    assert "install cryptography, or set ssl=True" in str(error)
    assert not manager.is_transient(error)
    return asyncio.run(_connect_and_close(_manager(secured, ssl=trusting)))


def test_a_wrong_public_key_is_named(secured: Any, connect_error: Any) -> None:
    """The server can only say "access denied"."""
    _make_account(secured)
    key = rsa.generate_private_key(65537, 2048).public_key()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    manager = _manager(secured, server_public_key=pem)
    if dialect_of(secured).login_method != "caching_sha2_password":
        return asyncio.run(_connect_and_close(manager))
    error = connect_error(manager)
    assert error.args[0] == 1045
    assert "server_public_key, which must be this server's key" in str(error)
    assert not manager.is_transient(error)
    return asyncio.run(_connect_and_close(_manager(secured)))


def test_a_connection_is_encrypted_wiped_closed_and_dropped(secured: Any, trusting: ssl.SSLContext) -> None:
    """TLS replaces the socket's transport in the middle of the driver's connect."""

    async def main() -> None:
        with FaultProxy(secured.host, secured.port) as proxy:
            for reset in ("safe", "strict", "none"):
                manager = MySQLConnectionManager(secured.url, port=proxy.port, ssl=trusting, reset=reset)
                conn = await manager.connect()
                await conn.query("SHOW SESSION STATUS LIKE 'Ssl_cipher'")
                assert conn._result.rows[0][1]
                wiping = manager.reset(conn)
                assert wiping is not None
                await wiping
                assert await manager.is_valid(conn)
                assert not manager.has_broken(conn)
                if reset == "strict":
                    manager.terminate(conn)
                else:
                    await manager.close(conn)
                await asyncio.sleep(0.02)
                assert proxy.open == 0
                assert manager.has_broken(conn)

    asyncio.run(main())


def test_a_certificate_that_does_not_fit_is_refused_for_good(secured: Any, connect_error: Any) -> None:
    """Retrying does not change a certificate."""
    manager = MySQLConnectionManager(secured.url, ssl=True)
    error = connect_error(manager)
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
    assert "ssl-ca=FILE" in str(error)
    assert not manager.is_transient(error)


def test_a_server_that_demands_tls_refuses_for_good(secured: Any, connect_error: Any) -> None:
    """The other way round: the setting is missing on our side."""
    with contextlib.closing(_root(secured)) as root, root.cursor() as cursor:
        cursor.execute(f"ALTER USER '{secured.user}'@'%' REQUIRE SSL")
    try:
        manager = MySQLConnectionManager(secured.url)
        error = connect_error(manager)
        assert not manager.is_transient(error)
    finally:
        with contextlib.closing(_root(secured)) as root, root.cursor() as cursor:
            cursor.execute(f"ALTER USER '{secured.user}'@'%' REQUIRE NONE")


@pytest.mark.cancellation
def test_a_connect_cancelled_at_the_end_of_a_handshake_with_a_hung_server_leaves_no_socket(
    secured: Any, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio would wait 30 s for the server's farewell, with a transport that nobody else holds."""
    complete = SSLProtocol._on_handshake_complete

    async def main() -> None:
        with FaultProxy(secured.host, secured.port) as proxy:
            manager = MySQLConnectionManager(secured.url, port=proxy.port, ssl=trusting)

            def complete_and_hang(self: SSLProtocol, error: Exception | None) -> None:
                complete(self, error)
                proxy.freeze()
                connecting.cancel()

            monkeypatch.setattr(SSLProtocol, "_on_handshake_complete", complete_and_hang)
            connecting = asyncio.ensure_future(manager.connect())
            await asyncio.wait({connecting}, timeout=2)
            assert connecting.cancelled()
            async with asyncio.timeout(2):
                while proxy.open:
                    await asyncio.sleep(0.002)

    asyncio.run(main())


@pytest.mark.cancellation
def test_a_connect_cancelled_anywhere_leaves_no_socket(secured: Any, trusting: ssl.SSLContext) -> None:
    """A TLS transport closes by a farewell of up to 30 s, which a hung server never answers: it must be aborted."""

    async def main() -> None:
        with FaultProxy(secured.host, secured.port) as proxy:
            manager = MySQLConnectionManager(secured.url, port=proxy.port, ssl=trusting)

            async def scenario(inject: Any) -> None:
                outcome = await inject(manager.connect())
                if not outcome.cancelled:
                    manager.terminate(outcome.result)
                async with asyncio.timeout(2):
                    while proxy.open:
                        await asyncio.sleep(0.002)

            assert await acancel_everywhere(scenario) > 5
        for moment in range(1, 12):  # behind a server that has hung in the middle, the end of its handshake included
            with FaultProxy(secured.host, secured.port) as proxy:
                manager.update(port=proxy.port)
                task = asyncio.ensure_future(manager.connect())
                await asyncio.sleep(moment * 0.0008)
                proxy.freeze()
                task.cancel()
                await asyncio.wait({task})
                if not task.cancelled() and task.exception() is None:
                    manager.terminate(task.result())
                async with asyncio.timeout(2):
                    while proxy.open:
                        await asyncio.sleep(0.002)

    asyncio.run(main())


def test_terminate_closes_the_socket_when_the_loop_is_closed(secured: Any, trusting: ssl.SSLContext) -> None:
    """A TLS transport lies over another one, and both put their work off to a turn that never comes."""
    manager = MySQLConnectionManager(secured.url, ssl=trusting)
    conn = asyncio.run(manager.connect())
    assert conn.stream is not None
    sock = conn.stream.get_extra_info("socket")
    assert sock.fileno() != -1
    manager.terminate(conn)
    assert sock.fileno() == -1
