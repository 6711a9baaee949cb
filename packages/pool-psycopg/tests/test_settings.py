"""Bad settings fail at once and in words that help, and no text shows a secret."""

from __future__ import annotations

import asyncio
import logging
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pool_postgres
import pool_psycopg
import psycopg
import pytest
from pool_core import SupportsJudge, SupportsReset, SupportsTerminate, SupportsTransient, Verdict
from pool_psycopg import PsycopgConnectionManager

if TYPE_CHECKING:
    from containers.servers import Server

SECRET = "s3cr3t-canary"


def test_what_is_postgresqls_is_the_same_in_both_packages() -> None:
    """Neither package may need the other's driver; a mistake must not be mended in one of them only."""
    ours, theirs = (Path(package.__path__[0], "_postgres.py").read_text() for package in (pool_psycopg, pool_postgres))
    assert ours == theirs


@pytest.mark.parametrize(
    "conninfo",
    [
        f"mysql://u:{SECRET}@h/db",
        f"u:{SECRET}@h/db",
        f"host=h password {SECRET}",
        f"host=h password={SECRET} no_such={SECRET}",
        f"host=h password='{SECRET}",
        f"postgresql:u:{SECRET}@h/db",
        f"postgresql://u:{SECRET}/RET@h/db",
        f"postgresql://u:1/{SECRET}@h/db",
        f"postgresql://u:{SECRET}?x@h/db",
        f"postgresql://u:{SECRET}#x@h/db",
        f"postgresql://u:p@{SECRET}@h/db",
        f"postgresql://u:{SECRET}@[::1/db",
        f"postgresql://u:{SECRET}@h:port/db",
        f"postgresql://u:{SECRET}@h:70000/db",
        f"postgresql://u:{SECRET}@h1,,h2/db",
        f"postgresql://u:{SECRET}@:5432/db",
        f"postgresql://u@h/db?{SECRET}",
        f"postgresql://u:{SECRET}@h/db\n",
        f"postgresql://u:{SECRET}%zz@h/db",
    ],
)
def test_a_malformed_connection_string_is_refused_at_once_and_not_quoted(conninfo: str) -> None:
    """libpq's own message for some of these contains a part of the password."""
    with pytest.raises(ValueError, match="URL|string|port") as caught:
        PsycopgConnectionManager(conninfo)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "conninfo",
    [
        None,
        "postgres://",
        "postgresql+psycopg://h/db",
        "postgresql:///db",
        "postgresql://user:p%40%2F%23w@h:5432/db?application_name=x&sslmode=disable",
        "postgresql://user:pw@h1:5432,h2,[::1]:5433/db?target_session_attrs=any",
        "postgresql://user@%2Frun%2Fpostgresql:5433/db",
        "postgresql://user@/db?host=/run/postgresql&port=5432",
        "postgresql://user@/db?host=h1,h2&port=5432,5433&ssl=true",
        "host=h dbname=db user=u password='a b'",
    ],
)
def test_every_form_that_the_driver_reads_is_taken(conninfo: str | None) -> None:
    """The check must be no stricter than the driver where there is no doubt."""
    manager = PsycopgConnectionManager(conninfo)
    assert "PsycopgConnectionManager postgresql://" in repr(manager)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reset": "sure"}, ValueError, r"reset='sure': expected one of 'safe', 'strict', 'none'"),
        ({"open_transaction": "keep"}, ValueError, "open_transaction='keep': expected one of 'rollback', 'close'"),
        ({"test_transaction": "yes"}, TypeError, "test_transaction is of type str"),
        ({"test_transaction": True, "open_transaction": "close"}, ValueError, "cannot hold in a test transaction"),
        ({"cancel_timeout": 0}, ValueError, "cancel_timeout=0: expected a finite number above 0"),
        ({"cancel_timeout": float("nan")}, ValueError, "cancel_timeout=nan"),
        ({"cancel_timeout": "1"}, TypeError, "cancel_timeout is of type str"),
        ({"hots": "h", "passwort": SECRET}, TypeError, "'hots' is not an option of .*; did you mean 'host'"),
        ({"database": "db"}, TypeError, "database is not taken: write dbname"),
        ({"server_settings": {}}, TypeError, "server_settings is not taken: write options="),
        ({"password": 7}, TypeError, "password is of type int"),
        ({"password": f"{SECRET}\n"}, ValueError, "password ends with a line break"),
        ({"port": 70000}, ValueError, "port: expected a number from 1 to 65535"),
        ({"connection_class": dict}, TypeError, "expected a class derived from psycopg.AsyncConnection"),
        ({"connection_class": psycopg.Connection}, TypeError, "derived from psycopg.AsyncConnection"),
        ({"conninfo": 5432}, TypeError, "is of type int"),
        ({"conninfo": "postgresql://u@h/db?supa=x"}, TypeError, "'supa' is not an option"),
        ({"conninfo": "postgresql://u@h/db?connection_limit=9"}, TypeError, "use the pool's max_size"),
    ],
    ids=str,
)
def test_a_bad_option_is_refused_at_once(options: dict[str, Any], error: type[Exception], words: str) -> None:
    """Before any I/O, with what was given and what is allowed, and without a secret."""
    with pytest.raises(error, match=words) as caught:
        PsycopgConnectionManager(**options)
    assert SECRET not in str(caught.value)


def test_a_bad_update_changes_nothing() -> None:
    """A rotation that fails must leave a manager that still connects."""
    manager = PsycopgConnectionManager("postgresql://h1/db", user="u")
    for conninfo, options in (("mysql://h2/db", {}), (None, {"hots": "h2"}), ("postgresql://h2/db", {"port": "x"})):
        with pytest.raises((ValueError, TypeError)):
            manager.update(conninfo, **options)
    assert "h1" in repr(manager)
    manager.update("postgresql://h2/db")
    assert "h2" in repr(manager)


def test_no_text_of_a_manager_shows_a_secret() -> None:
    """Managers end up in logs, tracebacks and debuggers."""
    managers = [
        PsycopgConnectionManager(f"postgresql://u:{SECRET}@h/db"),
        PsycopgConnectionManager(f"host=h dbname=db password={SECRET} sslpassword={SECRET}"),
        PsycopgConnectionManager("postgresql://u@h/db", password=SECRET),
        PsycopgConnectionManager(host="h", dbname="db", password=lambda: SECRET),
    ]
    managers[2].update(password=f"{SECRET}2")
    for manager in managers:
        for text in (repr(manager), str(manager), repr(vars(manager)), repr(manager._settings.values)):
            assert SECRET not in text
        assert "postgresql://h/db" in repr(manager)


def test_it_has_all_methods() -> None:
    """The pool finds optional methods by their names."""
    manager: object = PsycopgConnectionManager()
    assert isinstance(manager, SupportsReset)
    assert isinstance(manager, SupportsTerminate)
    assert isinstance(manager, SupportsTransient)
    assert isinstance(manager, SupportsJudge)


def refused(words: str) -> psycopg.OperationalError:
    """The error that the driver raises for a connection that was not made."""
    return psycopg.OperationalError(f'connection failed: connection to server at "h", port 5432 failed: {words}')


@pytest.mark.parametrize(
    "error",
    [
        refused("FATAL:  sorry, too many clients already"),
        refused("FATAL:  the database system is starting up"),
        refused("Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?"),
        refused("server closed the connection unexpectedly"),
        refused("FATAL:  pgbouncer cannot connect to server"),
        refused("session is read-only"),
        psycopg.OperationalError("failed to resolve host 'h': [Errno -3] Temporary failure in name resolution"),
        psycopg.errors.ConnectionTimeout("connection timeout expired"),
        psycopg.errors.TooManyConnections(),
        psycopg.errors.CannotConnectNow(),
        psycopg.OperationalError(
            "x\nMultiple connection attempts failed. All failures were:\n- host: 'a': no pg_hba.conf entry\n- host: 'b': refused"
        ),
        ConnectionRefusedError(111, "refused"),
        TimeoutError(),
        RuntimeError("whatever a password callable raises"),
    ],
    ids=repr,
)
def test_what_may_pass_is_transient(error: Exception) -> None:
    """A restart must not fail the waiters."""
    assert PsycopgConnectionManager().is_transient(error) is True


@pytest.mark.parametrize(
    "error",
    [
        refused('FATAL:  password authentication failed for user "u"'),
        refused('FATAL:  database "nowhere" does not exist'),
        refused('FATAL:  no pg_hba.conf entry for host "h"'),
        refused("server does not support SSL, but SSL was required"),
        refused("SSL error: certificate verify failed"),
        refused("fe_sendauth: no password supplied"),
        refused('FATAL:  unrecognized configuration parameter "x"'),
        refused("FATAL:  no such database: nowhere"),
        psycopg.OperationalError("failed to resolve host 'h': [Errno -2] Name or service not known"),
        psycopg.errors.InvalidPassword(),
        psycopg.errors.InsufficientPrivilege(),
        psycopg.ProgrammingError('invalid connection option "x"'),
        psycopg.NotSupportedError("libpq"),
        ValueError("a setting"),
        TypeError("a setting"),
    ],
    ids=repr,
)
def test_what_will_not_pass_is_not_transient(error: Exception) -> None:
    """The waiters of a pool without a connection must hear of it at once, not after 30 s."""
    assert PsycopgConnectionManager().is_transient(error) is False


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (psycopg.errors.ReadOnlySqlTransaction(), Verdict.RETIRE_ALL),
        (psycopg.errors.AdminShutdown(), Verdict.CLOSE),
        (psycopg.errors.UniqueViolation(), Verdict.KEEP),
        (psycopg.OperationalError("the connection is lost"), Verdict.KEEP),
        (LookupError(), Verdict.KEEP),
    ],
    ids=repr,
)
def test_an_error_of_a_borrower_is_judged_by_its_sqlstate(error: Exception, verdict: Verdict) -> None:
    """Also where a library has wrapped it."""
    manager = PsycopgConnectionManager()
    conn: Any = type("Conn", (), {})()
    assert manager.judge(error, conn) is verdict
    wrapped = RuntimeError("by a library")
    wrapped.__cause__ = error
    assert manager.judge(wrapped, conn) is verdict


async def test_each_bad_input_fails_at_once_with_the_drivers_error(
    postgres: Server, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Wrong password, database, role, host, TLS, certificate, settings: not after 30 s, and no secret in any text."""
    caplog.set_level(logging.DEBUG)
    address = f"{postgres.host}:{postgres.port}"
    good = f"postgresql://{postgres.user}:{postgres.password}@{address}/{postgres.database}"
    bad = [
        PsycopgConnectionManager(f"postgresql://pool:{SECRET}@{address}/pool"),
        PsycopgConnectionManager(good, password=SECRET),
        PsycopgConnectionManager(good, user="nobody"),
        PsycopgConnectionManager(good, dbname="nowhere"),
        PsycopgConnectionManager(good, host="no-such-host.invalid", password=SECRET),
        PsycopgConnectionManager(good, sslmode="require", password=SECRET),
        PsycopgConnectionManager(f"{good}?sslmode=verify-full&sslrootcert={tmp_path / 'none.crt'}"),
        PsycopgConnectionManager(f"{good}?sslmode=sometimes"),
        PsycopgConnectionManager(good, options="-c no_such_setting=x"),
        PsycopgConnectionManager(good, options="-c work_mem=much"),
    ]
    for manager in bad:
        async with asyncio.timeout(2):
            with pytest.raises(psycopg.Error) as caught:
                await manager.connect()
        error = caught.value
        assert manager.is_transient(error) is False, (manager, error)
        for text in ("".join(traceback.format_exception(error)), str(error), repr(error)):
            assert SECRET not in text
            assert f":{postgres.password}@" not in text
    assert SECRET not in caplog.text


async def test_a_refused_port_is_transient() -> None:
    """The server may be restarting."""
    manager = PsycopgConnectionManager("postgresql://u@127.0.0.1:1/db")
    with pytest.raises(psycopg.OperationalError) as caught:
        await manager.connect()
    assert manager.is_transient(caught.value) is True


def test_pgbouncer_in_a_url_means_no_prepared_statements_and_no_reset() -> None:
    """Hosters print it into the URLs of their poolers; libpq refuses it."""
    manager = PsycopgConnectionManager("postgresql://u@h/db?pgbouncer=true&application_name=x")
    assert "reset='none'" in repr(manager)
    assert manager._settings.values["prepare_threshold"] is None
    assert "reset='safe'" in repr(PsycopgConnectionManager("postgresql://u@h/db?pgbouncer=false"))
    assert "reset='safe'" in repr(PsycopgConnectionManager("postgresql://u@h/db?pgbouncer=true", reset="safe"))
