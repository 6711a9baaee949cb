"""What a manager takes, and what it says of the rest."""

import pickle
import subprocess
import sys
from typing import Any

import pyodbc
import pytest
from pool_core import Pool
from pool_odbc import DriverMissingError, OdbcConnectionManager
from pool_odbc._settings import Settings

SECRET = "c@nary;} {secret"


async def string(url: str | None = None, **keywords: Any) -> str:
    return (await Settings(url, keywords).arguments())[0]


async def test_a_url_becomes_a_connection_string() -> None:
    """Special characters are wrapped in braces, as ODBC has it."""
    url = "odbc://ada:p%40%3B%7Dss@db.example:5433/shop?driver=PostgreSQL+Unicode&SSLmode=require"
    assert await string(url) == (
        "UID=ada;PWD={p@;}}ss};DATABASE=shop;SERVER=db.example;PORT=5433;DRIVER={PostgreSQL Unicode};SSLMODE=require"
    )


async def test_a_connection_string_is_taken_as_it_is() -> None:
    """Those that a person has already."""
    text = "Driver={ODBC Driver 18 for SQL Server};Server=tcp:h,1433;Uid=ada;Pwd={a;}}b};Encrypt=yes;"
    assert await string(text) == (
        "DRIVER={ODBC Driver 18 for SQL Server};SERVER={tcp:h,1433};UID=ada;PWD={a;}}b};ENCRYPT=yes"
    )


async def test_keywords_win_over_the_url_under_any_spelling() -> None:
    """user and UID are one thing."""
    assert await string("odbc://ada@h/?driver=X", user="bob", PORT=7) == "UID=bob;SERVER=h;DRIVER={X};PORT=7"


async def test_mssql_puts_the_port_where_sql_server_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes the newest of Microsoft's drivers that is installed, then FreeTDS."""
    installed = ["FreeTDS", "ODBC Driver 9 for SQL Server", "ODBC Driver 18 for SQL Server"]
    monkeypatch.setattr(pyodbc, "drivers", lambda: installed)
    assert "SERVER={h,1433}" in await string("mssql://sa:x@h:1433/shop")
    assert "DRIVER={ODBC Driver 18 for SQL Server}" in await string("mssql://sa:x@h:1433/shop")
    del installed[1:]
    assert "DRIVER={FreeTDS}" in await string("mssql://h/shop")
    installed.clear()
    with pytest.raises(DriverMissingError, match=r"msodbcsql18 .* on Debian and Ubuntu, .* on macOS .* on Windows"):
        await string("mssql://h/shop")


@pytest.mark.parametrize(
    ("url", "options", "error", "says"),
    [
        ("odbc://h/db", {}, ValueError, "no ODBC driver is named: give driver=... or dsn=..."),
        (None, {}, ValueError, "no ODBC driver is named"),
        ("postgresql://h/db", {}, ValueError, "must start with odbc:// or mssql://"),
        ("odbc://h:port/db?driver=X", {}, ValueError, "a port of the URL is not a number"),
        ("odbc://h/db?driver=X&Driver=Y", {}, ValueError, "stands twice"),
        (
            "odbc://h/db?driver=X&autocommit=perhaps",
            {},
            ValueError,
            "autocommit='perhaps' in the URL: expected True or False",
        ),
        ("odbc://h/db?driver=X\n", {}, ValueError, "the URL ends with a line break"),
        ("DRIVER=X;nonsense", {}, ValueError, "the connection string cannot be read"),
        ("DRIVER=X;PWD={open", {}, ValueError, "the connection string cannot be read"),
        ("odbc://h/?driver=X", {"reset": "none"}, ValueError, "reset='none': expected one of 'safe', 'rollback'"),
        ("odbc://h/?driver=X", {"cancel_timeout": 0}, ValueError, "cancel_timeout=0: expected a finite number above 0"),
        ("odbc://h/?driver=X", {"timeout": "3"}, TypeError, "timeout is of type str: expected an int"),
        ("odbc://h/?driver=X", {"password": 7}, TypeError, "PWD is of type int: expected a str, or a callable"),
        ("odbc://h/?driver=X", {"user": "a", "UID": "b"}, TypeError, "given twice, under two spellings"),
        ("odbc://h/?driver=X", {"ssl": object()}, TypeError, "SSL is of type object"),
        (7, {}, TypeError, "the URL is of type int"),
    ],
)
def test_bad_settings_are_refused_when_the_manager_is_made(url: Any, options: Any, error: Any, says: str) -> None:
    """Before any I/O, in one sentence."""
    with pytest.raises(error, match=says.replace("(", r"\(")):
        OdbcConnectionManager(url, **options)


def test_no_text_shows_the_password() -> None:
    """Of the manager, its settings, or an error about them."""
    manager = OdbcConnectionManager(f"DRIVER=X;SERVER=h;PWD={{{SECRET.replace('}', '}}')}}}")
    assert SECRET not in repr(manager) + repr(vars(manager)) + repr(vars(manager)["_settings"].values)
    with pytest.raises(ValueError, match="stands twice") as caught:
        OdbcConnectionManager(f"DRIVER=X;PWD={SECRET.split(';')[0]};PWD=b")
    assert "c@nary" not in str(caught.value)


def test_update_keeps_what_is_not_named() -> None:
    """And a bad update changes nothing."""
    manager = OdbcConnectionManager("odbc://ada:x@h/db?driver=X", autocommit=True)
    manager.update(password="y")
    manager.update("odbc://bob:z@other/db?driver=X")
    assert "SERVER=other" in repr(manager)
    with pytest.raises(ValueError, match="port"):
        manager.update("odbc://h:0/db?driver=X")
    assert "SERVER=other" in repr(manager)
    assert manager._settings.values["autocommit"] is True


async def test_a_driver_that_is_not_installed_is_named_with_its_package() -> None:
    """For the three systems, not transient, and with what there is."""
    for driver, package in (
        ("PostgreSQL Unikode", "odbc-postgresql"),
        ("MySQL ODBC", "odbc-mariadb"),
        ("Firebird", "correct its name"),
    ):
        manager = OdbcConnectionManager(driver=driver, host="127.0.0.1")
        with pytest.raises(DriverMissingError, match=package) as caught:
            await manager.connect()
        assert "SQLite3" in str(caught.value)
        assert not manager.is_transient(caught.value)
    with pytest.raises(DriverMissingError, match="'nowhere'"):
        await OdbcConnectionManager(dsn="nowhere").connect()


def test_a_missing_driver_manager_is_an_import_error_that_says_what_to_install() -> None:
    """pyodbc's own words are: libodbc.so.2: cannot open shared object file."""
    program = (
        "import sys, importlib.abc\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'pyodbc': raise ImportError('libodbc.so.2: cannot open shared object file')\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import pool_odbc\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: pyodbc cannot be imported (libodbc.so.2")
    assert "unixodbc on Debian" in done.stderr


def test_the_schemes_are_registered() -> None:
    """Pool.from_url finds the adapter."""
    assert isinstance(Pool.from_url("odbc:///x.db?driver=SQLite3"), Pool)
    assert isinstance(Pool.from_url("mssql://sa:x@h/db?driver=X&pool_max_size=3"), Pool)


def test_errors_survive_pickle() -> None:
    """A process pool would die of one that does not."""
    error = pickle.loads(pickle.dumps(DriverMissingError("IM002", "[IM002] text")))
    assert isinstance(error, DriverMissingError)
    assert error.args == ("IM002", "[IM002] text")
