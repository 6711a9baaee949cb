"""Bad settings fail at once with a clear message, and no text shows a secret."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import traceback
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from pool_core import Pool, SupportsJudge, SupportsReset, SupportsTerminate, SupportsTransient
from pool_postgres import PostgresConnectionManager
from pool_postgres._settings import PostgresSettings

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
        f"postgresql://u:{SECRET}@h/db\n",
        f"postgresql://u:{SECRET}@h/db ?sslmode=require",
    ],
)
def test_a_malformed_dsn_is_refused_at_the_making_and_not_quoted(dsn: str) -> None:
    """The driver's own message for some of these contains a part of the password."""
    with pytest.raises(ValueError, match="URL") as caught:
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
        "postgresql://user@/db?host=h1:5432,[::1]:5433",
        "postgresql://user:[pass\uff03word@h/db",
    ],
)
def test_every_form_that_the_driver_reads_is_taken(dsn: str | None) -> None:
    """The check must be no stricter than the driver where there is no doubt."""
    assert "PostgresConnectionManager" in repr(PostgresConnectionManager(dsn))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reset": "sure"}, ValueError, r"reset='sure': expected one of 'safe', 'strict', 'none'"),
        ({"open_transaction": "keep"}, ValueError, r"open_transaction='keep': expected one of 'rollback', 'close'"),
        ({"test_transaction": "yes"}, TypeError, "test_transaction is of type str: expected True or False"),
        ({"test_transaction": True, "open_transaction": "close"}, ValueError, "cannot hold in a test transaction"),
        ({"cancel_timeout": 0}, ValueError, "cancel_timeout=0: expected a finite number above 0"),
        ({"cancel_timeout": float("nan")}, ValueError, "cancel_timeout=nan: expected a finite number above 0"),
        ({"cancel_timeout": float("inf")}, ValueError, "cancel_timeout=inf: expected a finite number above 0"),
        ({"cancel_timeout": "1"}, TypeError, "cancel_timeout is of type str: expected a finite number"),
        ({"cancel_timeout": True}, TypeError, "cancel_timeout is of type bool: expected a finite number"),
        ({"passwort": SECRET}, TypeError, "'passwort' is not an option of PostgresConnection.*did you mean 'password'"),
        ({"hots": "h"}, TypeError, "did you mean 'host'"),
        ({"hots": None}, TypeError, "did you mean 'host'"),
        ({"loop": object()}, TypeError, "loop is not taken: a connection belongs to the running loop"),
        ({"password": 7}, TypeError, "password is of type int: expected a str, or a callable"),
        ({"password": f"{SECRET}\n"}, ValueError, "password ends with a line break: remove it"),
        ({"user": "me\n"}, ValueError, "user ends with a line break"),
        ({"host": "h\n"}, ValueError, "host ends with a line break"),
        ({"host": ["h1", "h 2"]}, ValueError, "host has white space or a control character"),
        ({"host": ["h1", 2]}, TypeError, "host is of type int: expected a str"),
        ({"database": "db\n"}, ValueError, "database ends with a line break"),
        ({"port": 70000}, ValueError, "port=70000: expected an int from 1 to 65535"),
        (
            {"host": "h", "port": [1, 2]},
            ValueError,
            r"2 ports for 1 host\(s\): expected one port, or one for each host",
        ),
        ({"port": [5432, "x"]}, TypeError, "port is of type str: expected an int"),
        ({"ssl": "sometimes"}, ValueError, "ssl='sometimes': expected one of 'disable', 'allow', 'prefer'"),
        ({"target_session_attrs": "primry"}, ValueError, "target_session_attrs='primry': expected one of 'any'"),
        ({"statement_cache_size": -1}, ValueError, "statement_cache_size=-1: expected an int of at least 0"),
        ({"timeout": 0}, ValueError, "timeout=0: expected a finite number above 0"),
        ({"server_settings": {"jit": 1}}, TypeError, "server_settings: expected a dict of texts to texts"),
        ({"server_settings": "jit=off"}, TypeError, "server_settings: expected a dict of texts to texts"),
        ({"password": b"s3cr3t-canary"}, TypeError, "password is of type bytes"),
        ({"connection_class": dict}, TypeError, "give a class derived from asyncpg.Connection"),
        ({"dsn": 5432}, TypeError, "the URL is of type int: expected a str, postgresql://"),
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


def resolve(dsn: str | None, **options: Any) -> dict[str, Any]:
    """What `asyncpg.connect` is called with."""
    return asyncio.run(PostgresSettings(dsn, options).resolved())


def test_a_url_becomes_the_keywords_of_the_driver() -> None:
    """So that the driver parses no URL: its errors quote passwords, and its urllib differs from Python to Python."""
    assert resolve("postgresql://us%40er:p%2Fw@h1,[::1]:5433/my%20db?application_name=a+b&command_timeout=2.5") == {
        "host": ["h1", "::1"],
        "port": [5432, 5433],
        "user": "us@er",
        "password": "p/w",
        "database": "my db",
        "server_settings": {"application_name": "a b"},
        "command_timeout": 2.5,
    }
    asked = "postgresql:///db?host=/run/pg,h2:5433&user=u&password=p&dbname=other"
    assert resolve(asked) == {
        "host": ["/run/pg", "h2"],
        "port": [5432, 5433],
        "user": "u",
        "password": "p",
        "database": "db",
    }
    assert resolve("postgresql://?host=h1,h2&port=1,2&database=d") == {
        "host": ["h1", "h2"],
        "port": [1, 2],
        "database": "d",
    }
    assert resolve("postgresql://%2Frun%2Fpg:5433") == {"host": ["/run/pg"], "port": [5433]}
    assert resolve("postgresql://") == resolve(None) == {}


def test_keywords_win_over_the_url_and_none_is_not_given() -> None:
    """As asyncpg does it, whose None means "look elsewhere"."""
    url = "postgresql://u:p@h1:1/db?application_name=a&work_mem=1MB"
    options = {"host": None, "password": None, "user": "k", "server_settings": {"work_mem": "2MB"}}
    settled = resolve(url, **options)
    assert (settled["host"], settled["port"], settled["user"], settled["password"]) == (["h1"], [1], "k", "p")
    assert settled["server_settings"] == {"application_name": "a", "work_mem": "2MB"}
    # Another host has another port.
    assert "port" not in resolve(url, host="h2")
    assert resolve(url, host="h2", port=2)["port"] == 2


def test_pgport_is_the_port_of_hosts_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the driver does it where another host of the list has a port."""
    monkeypatch.setenv("PGPORT", "6432")
    assert resolve("postgresql://h1,h2:5433")["port"] == [6432, 5433]


def test_what_an_update_does_not_name_stays() -> None:
    """A new URL replaces the old one; keywords stay."""
    manager = PostgresConnectionManager("postgresql://h1/db?application_name=a", user="u")
    manager.update("postgresql://h2/db")
    assert asyncio.run(manager._settings.resolved()) == {"host": ["h2"], "database": "db", "user": "u"}
    manager.update(password="p")
    assert asyncio.run(manager._settings.resolved()) == {"host": ["h2"], "database": "db", "user": "u", "password": "p"}


@pytest.mark.parametrize(
    ("query", "keywords"),
    [
        ("sslmode=require", {"ssl": "require"}),
        ("sslmode=verify-full&sslrootcert=system", {"ssl": True}),
        ("sslrootcert=system", {"ssl": True}),
        (
            "sslmode=verify-ca&sslrootcert=/a%20b.crt",
            {"ssl": "verify-ca", "dsn": "postgresql:///?sslrootcert=%2Fa+b.crt"},
        ),
        ("sslcert=c&sslkey=k&sslpassword=p%26", {"dsn": "postgresql:///?sslcert=c&sslkey=k&sslpassword=p%26"}),
        ("connect_timeout=15", {"timeout": 15.0}),
        ("connect_timeout=0", {"timeout": None}),
        ("pgbouncer=true", {"statement_cache_size": 0}),
        ("pgbouncer=true&statement_cache_size=9", {"statement_cache_size": 9}),
        ("pgbouncer=false", {}),
        ("channel_binding=prefer", {}),
        ("gssencmode=disable", {}),
        ("target_session_attrs=read-write", {"target_session_attrs": "read-write"}),
        ("statement_cache_size=0", {"statement_cache_size": 0}),
        ("options=-c%20search_path%3Dx", {"server_settings": {"options": "-c search_path=x"}}),
    ],
)
def test_keys_that_hosters_print_are_translated(query: str, keywords: dict[str, Any]) -> None:
    """Users paste the URL that a provider's console shows."""
    assert resolve(f"postgresql://h?{query}") == {"host": ["h"], **keywords}


@pytest.mark.parametrize(
    ("query", "error", "words"),
    [
        (
            "channel_binding=require",
            ValueError,
            "channel_binding=require in the URL: asyncpg cannot do that. Remove it",
        ),
        ("connection_limit=5", TypeError, "connection_limit is not taken: use the pool's max_size"),
        ("pool_timeout=5", TypeError, "pool_timeout is not taken: use the pool's connection_timeout"),
        ("schema=public", TypeError, "schema is not taken: write options=-csearch_path%3Dname"),
        ("keepalives=1", TypeError, "keepalives is not taken: asyncpg has no such setting"),
        ("gssencmode=require", ValueError, "gssencmode='require' in the URL: expected one of 'disable', 'prefer'"),
        ("sslmode=sometimes", ValueError, "sslmode='sometimes' in the URL: expected one of 'disable'"),
        (
            "sslmode=require&sslrootcert=system",
            ValueError,
            "sslrootcert=system in the URL: expected sslmode=verify-full",
        ),
        ("connect_timeout=soon", ValueError, "connect_timeout='soon' in the URL: expected a finite number"),
        ("pgbouncer=maybe", ValueError, "pgbouncer='maybe' in the URL: expected True or False"),
        ("application_name=a&application_name=b", ValueError, "the URL has an option twice"),
    ],
)
def test_keys_that_asyncpg_lacks_are_refused_by_name(query: str, error: type[Exception], words: str) -> None:
    """Otherwise the server would refuse them at the first get, or they would be ignored."""
    with pytest.raises(error, match=words):
        PostgresConnectionManager(f"postgresql://u:{SECRET}@h?{query}")


def test_behind_pgbouncer_nothing_is_reset_unless_it_is_asked_for() -> None:
    """One option of the URL sets both."""
    assert "reset='none'" in repr(PostgresConnectionManager("postgresql://h?pgbouncer=true"))
    assert "reset='strict'" in repr(PostgresConnectionManager("postgresql://h?pgbouncer=true", reset="strict"))
    assert "reset='safe'" in repr(PostgresConnectionManager("postgresql://h?statement_cache_size=0"))


def test_no_text_of_a_manager_shows_a_secret() -> None:
    """Managers end up in logs, tracebacks and debuggers."""
    managers = [
        PostgresConnectionManager(f"postgresql://u:{SECRET}@h/db"),
        PostgresConnectionManager(f"postgresql://u@h/db?password={SECRET}&host=x"),
        PostgresConnectionManager("postgresql://u@h/db", password=SECRET),
        PostgresConnectionManager(host=["h1", "h2"], port=5432, database="db", password=lambda: SECRET),
        PostgresConnectionManager(host=("h1", "/run/pg"), port=(5432, 5433), database="db", password=SECRET),
        PostgresConnectionManager(f"postgresql://h/db?sslcert=c&sslkey=k&sslpassword={SECRET}"),
    ]
    managers[2].update(password=f"{SECRET}2")
    for manager in managers:
        for text in (repr(manager), str(manager), repr(vars(manager)), f"{manager!r}"):
            assert SECRET not in text
        assert "h" in repr(manager)
        assert "db" in repr(manager)


def test_it_has_all_verbs() -> None:
    """The pool finds optional methods by their names."""
    manager: object = PostgresConnectionManager()
    assert isinstance(manager, SupportsReset)
    assert isinstance(manager, SupportsTerminate)
    assert isinstance(manager, SupportsTransient)
    assert isinstance(manager, SupportsJudge)


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
    """The waiters of a pool without a connection must fail at once, not after 30 s."""
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
        (PostgresConnectionManager(good, ssl="require", password=SECRET), ConnectionError),
        (PostgresConnectionManager(f"{good}?sslmode=verify-full&sslrootcert={tmp_path / 'none.crt'}"), OSError),
        (PostgresConnectionManager(f"{good}?ssl_min_protocol_version=TLSv0&sslmode=require"), asyncpg.InterfaceError),
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


async def test_a_server_setting_that_the_server_does_not_know_fails_at_the_start(url: str) -> None:
    """A misspelt key of the URL: by its name, and at once."""
    with pytest.raises(asyncpg.UndefinedObjectError, match='unrecognized configuration parameter "aplication_name"'):
        async with asyncio.timeout(5), Pool.from_url(f"{url}?aplication_name=x", min_idle=1):
            pass


async def test_a_refused_port_is_transient() -> None:
    """The server may be restarting."""
    manager = PostgresConnectionManager("postgresql://u@127.0.0.1:1/db")
    assert manager.is_transient(await failure(manager)) is True
