"""Bad settings fail at once and in words that help, and no text shows a secret."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import traceback
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from pool_core import SupportsReset, SupportsTerminate, SupportsTransient
from pool_postgres import PostgresConnectionManager

if TYPE_CHECKING:
    from pathlib import Path

    from containers.servers import Server

SECRET = "s3cr3t-canary"


@pytest.mark.parametrize(
    "dsn",
    [
        f"mysql://u:{SECRET}@h/db",
        f"u:{SECRET}@h/db",
        f"host=h password={SECRET}",
        f"postgresql:u:{SECRET}@h/db",
        f"postgresql://u:{SECRET}/RET@h/db",
        f"postgresql://u:1/{SECRET}@h/db",
        f"postgresql://u:{SECRET}?x@h/db",
        f"postgresql://u:{SECRET}#x@h/db",
        f"postgresql://u:p@{SECRET}@h/db",
        f"postgresql://u:[{SECRET}@h/db",
        f"postgresql://u:{SECRET}@[::1/db",
        f"postgresql://u:{SECRET}@[::1]5432/db",
        f"postgresql://u:{SECRET}@[]:5432/db",
        f"postgresql://u:{SECRET}@h:port/db",
        f"postgresql://u:{SECRET}@h:0/db",
        f"postgresql://u:{SECRET}@h:70000/db",
        f"postgresql://u:{SECRET}@h1,,h2/db",
        f"postgresql://u:{SECRET}@h1,[::1/db",
        f"postgresql://u:{SECRET}@h1,[::1]5432/db",
        f"postgresql://u:{SECRET}@h1,[::1]:port/db",
        f"postgresql://u:{SECRET}@:5432/db",
        f"postgresql://u@h/db?{SECRET}",
        f"postgresql://u:{SECRET}@/db?host=h&port=x{SECRET}",
        f"postgresql://u:{SECRET}@/db?host=h:x{SECRET}",
        f"postgresql://u:{SECRET}\uff03@h/db",
    ],
)
def test_a_malformed_dsn_is_refused_at_the_making_and_not_quoted(dsn: str) -> None:
    """The driver's own message for some of these contains a part of the password."""
    with pytest.raises(ValueError, match="dsn") as caught:
        PostgresConnectionManager(dsn)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "dsn",
    [
        None,
        "postgres://",
        "postgresql://",
        "POSTGRESQL://h/db",
        "postgresql:///db",
        "postgresql://user@h",
        "postgresql://user:p%40%2F%23w@h:5432/db?application_name=x&sslmode=disable",
        "postgresql://user:pw@h1:5432,h2,[::1]:5433,[fe80::1%25eth0]/db?target_session_attrs=any",
        "postgresql://user@%2Frun%2Fpostgresql:5433/db",
        "postgresql://user@/db?host=/run/postgresql&port=5432",
        "postgresql://user@/db?host=h1,h2&port=5432,5433",
    ],
)
def test_every_form_that_the_driver_reads_is_taken(dsn: str | None) -> None:
    """The check must be no stricter than the driver where there is no doubt."""
    assert "PostgresConnectionManager" in repr(PostgresConnectionManager(dsn))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reset": "sure"}, ValueError, r"reset='sure': allowed are 'safe', 'strict', 'none'"),
        ({"open_transaction": "keep"}, ValueError, r"open_transaction='keep': allowed are 'rollback', 'close'"),
        ({"test_transaction": "yes"}, TypeError, "test_transaction='yes': give True or False"),
        ({"test_transaction": True, "open_transaction": "close"}, ValueError, "cannot hold in a test transaction"),
        ({"cancel_timeout": 0}, ValueError, "cancel_timeout=0: give seconds above 0"),
        ({"cancel_timeout": float("nan")}, ValueError, "cancel_timeout=nan: give seconds above 0"),
        ({"cancel_timeout": float("inf")}, ValueError, "cancel_timeout=inf: give seconds above 0"),
        ({"cancel_timeout": "1"}, TypeError, "cancel_timeout='1': give seconds"),
        ({"cancel_timeout": True}, TypeError, "cancel_timeout=True: give seconds"),
        ({"hots": "h", "passwort": SECRET}, TypeError, "'hots', 'passwort': neither an option of"),
        ({"loop": None}, TypeError, "'loop': neither an option of"),
        ({"password": 7}, TypeError, "password is of type int: give a string or a callable"),
        ({"password": b"s3cr3t-canary"}, TypeError, "password is of type bytes"),
        ({"connection_class": dict}, TypeError, "give a class derived from asyncpg.Connection"),
        ({"dsn": 5432}, TypeError, "dsn is of type int"),
    ],
    ids=str,
)
def test_a_bad_option_is_refused_at_the_making(options: dict[str, Any], error: type[Exception], words: str) -> None:
    """Before any I/O, with what was given and what is allowed, and without a secret."""
    with pytest.raises(error, match=words) as caught:
        PostgresConnectionManager(**options)
    assert SECRET not in str(caught.value)


def test_a_bad_update_changes_nothing() -> None:
    """A rotation that fails must leave a manager that still connects."""
    manager = PostgresConnectionManager("postgresql://h1/db", user="u")
    for dsn, options in (("mysql://h2/db", {}), (None, {"hots": "h2"}), ("postgresql://h2/db", {"hots": 1})):
        with pytest.raises((ValueError, TypeError)):
            manager.update(dsn, **options)
    assert "h1" in repr(manager)
    manager.update("postgresql://h2/db")
    assert "h2" in repr(manager)


def test_no_text_of_a_manager_shows_a_secret() -> None:
    """Managers end up in logs, tracebacks and debuggers."""
    managers = [
        PostgresConnectionManager(f"postgresql://u:{SECRET}@h/db"),
        PostgresConnectionManager(f"postgresql://u@h/db?password={SECRET}&host=x"),
        PostgresConnectionManager("postgresql://u@h/db", password=SECRET),
        PostgresConnectionManager(host=["h1", "h2"], port=5432, database="db", password=lambda: SECRET),
    ]
    managers[2].update(password=f"{SECRET}2")
    for manager in managers:
        for text in (repr(manager), str(manager), repr(vars(manager)), f"{manager!r}"):
            assert SECRET not in text
        assert "h" in repr(manager)
        assert "db" in repr(manager)


def test_it_has_all_verbs() -> None:
    """The pool finds optional verbs by their names."""
    manager: object = PostgresConnectionManager()
    assert isinstance(manager, SupportsReset)
    assert isinstance(manager, SupportsTerminate)
    assert isinstance(manager, SupportsTransient)


def sqlstate(code: str) -> asyncpg.PostgresError:
    """The error that the driver raises for this code."""
    return asyncpg.PostgresError.new({"C": code, "M": "message", "S": "FATAL"})


@pytest.mark.parametrize(
    "error",
    [
        sqlstate("53300"),  # too many connections
        sqlstate("57P03"),  # the server is starting up
        sqlstate("57P01"),  # the server is being shut down
        sqlstate("08006"),
        sqlstate("08P01"),  # PgBouncer says this for much that passes
        sqlstate("XX000"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.InterfaceError("cannot perform operation: connection is closed"),
        asyncpg.TargetServerAttributeNotMatched("no primary among the hosts"),
        ConnectionRefusedError(111, "refused"),
        ConnectionResetError(104, "reset"),
        ConnectionError("unexpected connection_lost() call"),
        TimeoutError(),
        FileNotFoundError(2, "a Unix socket whose server is restarting"),
        OSError(113, "no route to host"),
        socket.gaierror(socket.EAI_AGAIN, "temporary failure in name resolution"),
        ssl.SSLEOFError("cut off in the handshake"),
        RuntimeError("whatever a password callable raises"),
    ],
    ids=repr,
)
def test_what_may_pass_is_transient(error: Exception) -> None:
    """A restart must not fail the waiters."""
    assert PostgresConnectionManager().is_transient(error) is True


@pytest.mark.parametrize(
    "error",
    [
        sqlstate("28P01"),  # wrong password
        sqlstate("28000"),  # no such role, no entry in pg_hba.conf
        sqlstate("3D000"),  # no such database
        sqlstate("42501"),  # no right to connect
        sqlstate("42704"),  # no such setting
        sqlstate("22023"),  # a setting's value
        sqlstate("57P04"),  # the database was dropped
        sqlstate("0A000"),
        ConnectionError('PostgreSQL server at "h:5432" rejected SSL upgrade'),
        ssl.SSLCertVerificationError("certificate has expired"),
        ssl.SSLError("wrong version number"),
        socket.gaierror(socket.EAI_NONAME, "name or service not known"),
        asyncpg.exceptions.ClientConfigurationError("sslmode"),
        asyncpg.InterfaceError("unsupported SASL Authentication methods requested by the server"),
        asyncpg.InternalClientError("unexpected error while performing authentication: no module"),
        ValueError("a setting"),
        TypeError("a setting"),
        OverflowError("port must be 0-65535"),
    ],
    ids=repr,
)
def test_what_will_not_pass_is_not_transient(error: Exception) -> None:
    """The waiters of a pool without a connection must hear of it at once, not after 30 s."""
    assert PostgresConnectionManager().is_transient(error) is False


async def failure(manager: PostgresConnectionManager) -> Exception:
    """What connect raises, within two seconds."""
    async with asyncio.timeout(2):
        with pytest.raises(Exception) as caught:
            await manager.connect()
    error = caught.value
    assert isinstance(error, Exception)
    return error


async def test_each_bad_input_fails_at_once_with_the_drivers_error(
    postgres: Server, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Wrong password, database, role, host, port, TLS, certificate, settings: not after 30 s, and no secret in any text."""
    caplog.set_level(logging.DEBUG)
    address = f"{postgres.host}:{postgres.port}"
    good = f"postgresql://{postgres.user}:{postgres.password}@{address}/{postgres.database}"
    bad: list[tuple[PostgresConnectionManager, type[Exception]]] = [
        (PostgresConnectionManager(f"postgresql://pool:{SECRET}@{address}/pool"), asyncpg.InvalidPasswordError),
        (PostgresConnectionManager(good, password=SECRET), asyncpg.InvalidPasswordError),
        (PostgresConnectionManager(good, user="nobody"), asyncpg.InvalidPasswordError),
        (PostgresConnectionManager(good, database="nowhere"), asyncpg.InvalidCatalogNameError),
        (PostgresConnectionManager(good, host="no-such-host.invalid", password=SECRET), socket.gaierror),
        (PostgresConnectionManager(good, host="127.0.0.1", port=70000), OverflowError),
        (PostgresConnectionManager(good, ssl="require", password=SECRET), ConnectionError),
        (PostgresConnectionManager(f"{good}?sslmode=verify-full&sslrootcert={tmp_path / 'none.crt'}"), OSError),
        (PostgresConnectionManager(f"{good}?sslmode=sometimes"), asyncpg.exceptions.ClientConfigurationError),
        (PostgresConnectionManager(f"{good}?no_such_setting=x"), asyncpg.UndefinedObjectError),
        (PostgresConnectionManager(good, server_settings={"work_mem": "much"}), asyncpg.InvalidParameterValueError),
    ]
    for manager, kind in bad:
        error = await failure(manager)
        assert isinstance(error, kind), (manager, error)
        assert manager.is_transient(error) is False, (manager, error)
        for text in ("".join(traceback.format_exception(error)), str(error), repr(error)):
            assert SECRET not in text
            assert f":{postgres.password}@" not in text
    assert SECRET not in caplog.text


async def test_a_refused_port_is_transient() -> None:
    """The server may be restarting."""
    manager = PostgresConnectionManager("postgresql://u@127.0.0.1:1/db")
    assert manager.is_transient(await failure(manager)) is True
