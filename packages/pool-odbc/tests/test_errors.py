"""What errors mean: by SQLSTATE, and by each system's own numbers. Those of SQL Server are from its documentation."""

import pyodbc
import pytest
from pool_core import Verdict
from pool_odbc import OdbcConnectionManager
from pool_odbc._dialects import DEFAULT, MYSQL, POSTGRES, SQL_SERVER, SQLITE, Dialect, dialect_of, native_of


def odbc(state: str, text: str, number: int = 0, kind: type[pyodbc.Error] = pyodbc.Error) -> pyodbc.Error:
    return kind(state, f"[{state}] {text} ({number}) (SQLExecDirectW)")


MICROSOFT = "[Microsoft][ODBC Driver 18 for SQL Server][SQL Server]"


@pytest.mark.parametrize(
    ("spoken", "error", "verdict"),
    [
        (POSTGRES, odbc("57P01", "terminating connection due to administrator command", 26), Verdict.CLOSE),
        (POSTGRES, odbc("08S01", "Communication link failure", 35), Verdict.CLOSE),
        (POSTGRES, odbc("HY000", "server closed the connection unexpectedly", 35), Verdict.CLOSE),
        (POSTGRES, odbc("25006", "cannot execute INSERT in a read-only transaction", 1), Verdict.RETIRE_ALL),
        (POSTGRES, odbc("23505", "duplicate key", 1), None),
        (POSTGRES, odbc("40001", "could not serialize", 1), None),
        (MYSQL, odbc("HY000", "[ma-3.1.15]Server has gone away", 2006), Verdict.CLOSE),
        (MYSQL, odbc("70100", "[ma-3.1.15]Connection was killed", 1927), Verdict.CLOSE),
        (MYSQL, odbc("HY000", "[ma-3.1.15]running with the --read-only option", 1290), Verdict.RETIRE_ALL),
        (MYSQL, odbc("40001", "[ma-3.1.15]Deadlock found", 1213), None),
        (SQL_SERVER, odbc("08S01", f"{MICROSOFT}Communication link failure", 10054), Verdict.CLOSE),
        (
            SQL_SERVER,
            odbc("HY000", f"{MICROSOFT}Cannot continue, the session is in the kill state.", 596),
            Verdict.CLOSE,
        ),
        (SQL_SERVER, odbc("HY000", f"{MICROSOFT}The service has encountered an error", 40197), Verdict.CLOSE),
        (SQL_SERVER, odbc("42000", f"{MICROSOFT}the database is read-only", 3906), Verdict.RETIRE_ALL),
        (SQL_SERVER, odbc("40001", f"{MICROSOFT}deadlock victim", 1205), None),
        (SQLITE, odbc("HY000", "[SQLite]database is locked (5)", 5), None),
        (DEFAULT, odbc("08003", "Connection not open"), Verdict.CLOSE),
        (DEFAULT, odbc("22003", "overflow"), None),
        (DEFAULT, ValueError("[08001] not ours"), None),
    ],
)
def test_verdicts(spoken: Dialect, error: Exception, verdict: Verdict | None) -> None:
    """Lost: this connection. A server that takes no writes any more: all of them."""
    assert spoken.verdict(error) is verdict


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (odbc("08001", "connection to server failed: Connection refused", 101), True),
        (odbc("08001", 'FATAL:  password authentication failed for user "pool"', 101), False),
        (odbc("08001", 'FATAL:  database "no" does not exist', 101), False),
        (odbc("08001", "FATAL:  sorry, too many clients already", 101), True),
        (odbc("08001", "FATAL:  the database system is starting up", 101), True),
        (odbc("08001", "could not translate host name: Name or service not known", 101), False),
        (odbc("08001", "could not translate host name: Temporary failure in name resolution", 101), True),
        (odbc("08001", "server does not support SSL, but SSL was required", 101), False),
        (odbc("HY000", "[ma-3.1.15]Can't connect to server on 'h' (115)", 2002), True),
        (odbc("08004", "[ma-3.1.15]Too many connections", 1040), True),
        (odbc("28000", "[ma-3.1.15]Access denied for user", 1045), False),
        (odbc("42000", "[ma-3.1.15]Unknown database 'no'", 1049), False),
        (odbc("HY000", "[ma-3.1.15]TLS/SSL error: SSL is required", 2026), False),
        (odbc("HY000", "[ma-3.1.15]Unknown server host 'h' (-2)", 2005), False),
        (odbc("HY000", "[ma-3.1.15]Unknown server host 'h' (-3)", 2005), True),
        (odbc("28000", f"{MICROSOFT}Login failed for user 'sa'.", 18456), False),
        (odbc("42000", f"{MICROSOFT}Cannot open database", 4060), False),
        (odbc("42000", f"{MICROSOFT}not allowed to access the server: firewall", 40615), False),
        (odbc("HY000", f"{MICROSOFT}Database on server is not currently available", 40613), True),
        (odbc("42000", f"{MICROSOFT}The service is currently busy", 40501), True),
        (odbc("42000", f"{MICROSOFT}Resource ID: 1", 10928), True),
        (odbc("42000", f"{MICROSOFT}Cannot process request", 49918), True),
        (odbc("HYT00", f"{MICROSOFT}Login timeout expired"), True),
        (odbc("IM002", "Data source name not found"), False),
        (TypeError("a mistake"), False),
        (OSError("anything"), True),
    ],
)
def test_transience(error: Exception, transient: bool) -> None:
    """A server that is down, full or moved is worth another try; a refusal is not."""
    assert OdbcConnectionManager(driver="X").is_transient(error) is transient


def test_the_dialect_is_what_the_driver_says() -> None:
    """SQL_DBMS_NAME, as drivers give it."""
    names = {
        "Microsoft SQL Server": SQL_SERVER,
        "PostgreSQL": POSTGRES,
        "MySQL": MYSQL,
        "MariaDB": MYSQL,
        "SQLite": SQLITE,
        "Oracle": DEFAULT,
        "": DEFAULT,
    }
    assert {name: dialect_of(name) for name in names} == names


def test_native_numbers_are_read_from_the_end_of_the_text() -> None:
    """Not any other number in brackets."""
    assert native_of(odbc("42000", "Resource (7) of (8)", 10928)) == 10928
    assert native_of(pyodbc.Error("HY000", "no number")) is None
    assert native_of(ValueError("(7)")) is None
