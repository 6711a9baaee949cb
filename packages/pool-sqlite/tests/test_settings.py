"""What a manager is given: which database that names, what is refused, and what is never shown."""

import asyncio
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from pool_sqlite import SqliteConnectionManager


def file_of(manager: SqliteConnectionManager) -> str:
    """The main database's file, as SQLite itself says it."""

    async def ask() -> str:
        conn = await manager.connect()
        rows = list(await conn.execute_fetchall("PRAGMA database_list"))
        await manager.close(conn)
        return str(rows[0][2])

    return asyncio.run(ask())


def pragma(manager: SqliteConnectionManager, name: str) -> Any:
    """A PRAGMA's value on a new connection."""

    async def ask() -> Any:
        conn = await manager.connect()
        ((value,),) = await conn.execute_fetchall(f"PRAGMA {name}")
        await manager.close(conn)
        return value

    return asyncio.run(ask())


def test_a_path_a_pathlike_and_urls_name_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to write a file means that file, and nothing else."""
    monkeypatch.chdir(tmp_path)
    wanted = str(tmp_path / "a b.db")
    for database in (
        "a b.db",
        Path("a b.db"),
        wanted,
        "sqlite:///a%20b.db",
        f"sqlite:///{tmp_path}/a%20b.db",
        f"sqlite+aiosqlite:///{tmp_path}/a%20b.db",
        f"file:{tmp_path}/a%20b.db",
        f"sqlite:///{tmp_path}/a%20b.db?mode=rwc",
    ):
        assert file_of(SqliteConnectionManager(database)) == wanted, database
    assert os.listdir() == ["a b.db"]


def test_a_path_is_taken_as_it_is_written(tmp_path: Path) -> None:
    """Percent and question marks belong to a path's name: only URLs are decoded."""
    name = str(tmp_path / "100%25?mode=ro#1.db")
    assert file_of(SqliteConnectionManager(name)) == name


def test_a_later_chdir_opens_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool may connect again after an hour, in another working directory."""
    monkeypatch.chdir(tmp_path)
    manager = SqliteConnectionManager("app.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert file_of(manager) == str(tmp_path / "app.db")


def test_making_a_manager_touches_no_file(tmp_path: Path) -> None:
    """A pool is made without I/O, often at import."""
    SqliteConnectionManager(tmp_path / "nowhere" / "app.db", wal=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ({"wal": True}, "journal_mode", "wal"),
        ({}, "journal_mode", "delete"),
        ({"busy_timeout": 1234}, "busy_timeout", 1234),
        ({"timeout": 1.5}, "busy_timeout", 1500),
        ({}, "busy_timeout", 5000),
        ({"foreign_keys": True}, "foreign_keys", 1),
        ({"foreign_keys": False}, "foreign_keys", 0),
    ],
)
def test_options_reach_sqlite(tmp_path: Path, options: dict[str, Any], name: str, value: object) -> None:
    """Every option does what it says."""
    assert pragma(SqliteConnectionManager(tmp_path / "app.db", **options), name) == value


def test_a_url_may_carry_options_and_keywords_win(tmp_path: Path) -> None:
    """Pool.from_url has only the URL to configure a manager with."""
    url = f"sqlite:///{tmp_path}/app.db?wal=true&busy_timeout=77&foreign_keys=on"
    assert pragma(SqliteConnectionManager(url), "journal_mode") == "wal"
    assert pragma(SqliteConnectionManager(url), "busy_timeout") == 77
    assert pragma(SqliteConnectionManager(url), "foreign_keys") == 1
    assert pragma(SqliteConnectionManager(url, foreign_keys=False), "foreign_keys") == 0
    assert pragma(SqliteConnectionManager(f"sqlite:///{tmp_path}/app.db?timeout=0.25"), "busy_timeout") == 250


def test_the_drivers_own_options_are_passed_on(tmp_path: Path) -> None:
    """Settings go to the driver as they are."""

    class Own(sqlite3.Connection):
        pass

    async def look() -> None:
        manager = SqliteConnectionManager(
            tmp_path / "app.db",
            isolation_level=None,
            detect_types=sqlite3.PARSE_DECLTYPES,
            factory=Own,
            iter_chunk_size=3,
            cached_statements=0,
        )
        conn = await manager.connect()
        assert conn.isolation_level is None
        assert isinstance(conn._conn, Own)
        await conn.execute("CREATE TABLE days (day DATE)")
        async with conn.execute("SELECT 1") as cursor:
            assert cursor.iter_chunk_size == 3
        await manager.close(conn)

    asyncio.run(look())


@pytest.mark.parametrize(
    ("database", "text"),
    [
        ("", "database is empty: name a file"),
        ("a\0b", "^database has white space or a control character"),
        ("app.db\n", "^database ends with a line break: remove it"),
        (" app.db", "^database has white space or a control character"),
        ("file:app.db\n", "^database ends with a line break"),
        ("sqlite:///app.db\n", "^the URL ends with a line break"),
        ("sqlite:///my app.db", "^the URL has white space .*a space is %20"),
        ("sqlite:///app.db%0A", "^the URL's path ends with a line break"),
        ("sqlite:///", "empty path"),
        ("sqlite://host/app.db", "no host and no user"),
        ("sqlite://me:canary@host/app.db", "without doubt|no host and no user|a port of the URL"),
        ("sqlite:app.db", "^the URL must start with sqlite:// or sqlite\\+aiosqlite://, but it has no scheme"),
        ("sqlite:///a#b.db", "without doubt.*# is %23"),
        ("postgresql://me:canary@host/db", "scheme 'postgresql'"),
        ("sqlite:///app.db?wal=maybe", "wal='maybe' in the URL: expected True or False"),
        ("sqlite:///app.db?busy_timeout=5s", "busy_timeout='5s' in the URL: expected an int from 0 to"),
        ("sqlite:///app.db?open_transaction=commit", "expected one of 'rollback', 'close'"),
        ("sqlite://?mode=ro", "takes no SQLite parameters"),
        ("sqlite://?wal=1", "no write-ahead log"),
    ],
)
def test_a_wrong_database_is_refused_at_once(database: str, text: str) -> None:
    """A mistake raises where it is made, and the message does not show what may be a password."""
    with pytest.raises(ValueError, match=text) as caught:
        SqliteConnectionManager(database)
    assert "canary@" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_unknown_option_of_a_url_is_a_type_error() -> None:
    """As everywhere; the nearest one is named."""
    with pytest.raises(TypeError, match="'wall' is not an option of SqliteConnectionManager; did you mean 'wal'"):
        SqliteConnectionManager("sqlite:///app.db?wall=1")
    with pytest.raises(TypeError, match="detect_types cannot be given in a URL: give it as a keyword argument"):
        SqliteConnectionManager("sqlite:///app.db?detect_types=1")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"busy_timout": 1}, TypeError, "'busy_timout' is not an option of .*; did you mean 'busy_timeout'"),
        ({"busy_timout": None}, TypeError, "did you mean 'busy_timeout'"),
        ({"loop": 1}, TypeError, "'loop' is not an option of SqliteConnectionManager"),
        ({"wal": 1}, TypeError, "wal is of type int: expected True or False"),
        ({"foreign_keys": "on"}, TypeError, "foreign_keys is of type str: expected True or False"),
        ({"busy_timeout": 1.5}, TypeError, "busy_timeout is of type float: expected an int from 0 to"),
        ({"busy_timeout": True}, TypeError, "busy_timeout is of type bool: expected an int"),
        ({"busy_timeout": -1}, ValueError, "busy_timeout=-1"),
        ({"timeout": "5"}, TypeError, "timeout is of type str: expected a finite number from 0"),
        ({"timeout": -1}, ValueError, "timeout=-1"),
        ({"timeout": float("nan")}, ValueError, "timeout=nan"),
        ({"timeout": 1, "busy_timeout": 1}, ValueError, "give one of them"),
        ({"open_transaction": "commit"}, ValueError, "expected one of 'rollback', 'close'"),
        ({"isolation_level": "SNAPSHOT"}, ValueError, "isolation_level='SNAPSHOT'"),
        ({"factory": dict}, TypeError, "subclass of sqlite3.Connection"),
        ({"iter_chunk_size": 0}, ValueError, "iter_chunk_size=0: expected an int of at least 1"),
        ({"cached_statements": "1"}, TypeError, "cached_statements is of type str: expected an int"),
    ],
)
def test_a_wrong_option_is_refused_at_once(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """A mistake raises where it is made, and names the option, its value and what is allowed."""
    with pytest.raises(error, match=text):
        SqliteConnectionManager("app.db", **options)


def test_a_database_that_is_no_path_is_refused() -> None:
    """The error for neither a str nor a path names what is allowed."""
    with pytest.raises(TypeError, match="database is of type int"):
        SqliteConnectionManager(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="database is None: expected a str or a path"):
        SqliteConnectionManager(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="database is of type bytes"):
        SqliteConnectionManager(b"app.db")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_autocommit_is_checked_for_this_python() -> None:
    """sqlite3 has it from 3.12 on; before, it would be refused only when connecting."""
    if sys.version_info < (3, 12):
        with pytest.raises(ValueError, match=r"needs Python 3\.12"):
            SqliteConnectionManager("app.db", autocommit=True)
        return
    with pytest.raises(ValueError, match="autocommit=7"):
        SqliteConnectionManager("app.db", autocommit=7)
    with pytest.raises(ValueError, match="would close every connection"):
        SqliteConnectionManager("app.db", autocommit=False, open_transaction="close")


def test_an_update_holds_for_new_connections_only(tmp_path: Path) -> None:
    """Diesel's update_database_url: a connection in use does not change."""

    async def look() -> None:
        manager = SqliteConnectionManager(tmp_path / "one.db", busy_timeout=11)
        old = await manager.connect()
        manager.update(tmp_path / "two.db", foreign_keys=True)
        new = await manager.connect()
        for conn, name, keys in ((old, "one.db", 0), (new, "two.db", 1)):
            rows = list(await conn.execute_fetchall("PRAGMA database_list"))
            assert rows[0][2] == str(tmp_path / name)
            assert list(await conn.execute_fetchall("PRAGMA foreign_keys")) == [(keys,)]
            assert list(await conn.execute_fetchall("PRAGMA busy_timeout")) == [(11,)]
            await manager.close(conn)

    asyncio.run(look())


def test_an_update_may_give_the_other_time_limit(tmp_path: Path) -> None:
    """busy_timeout and timeout contradict each other only when both are asked for."""
    manager = SqliteConnectionManager(tmp_path / "app.db", timeout=1)
    manager.update(busy_timeout=22)
    assert pragma(manager, "busy_timeout") == 22


def test_what_an_update_does_not_name_stays(tmp_path: Path) -> None:
    """A new URL replaces all that the old one said; keywords stay, and win."""
    manager = SqliteConnectionManager(f"sqlite:///{tmp_path}/one.db?busy_timeout=11&wal=true", foreign_keys=True)
    manager.update(f"sqlite:///{tmp_path}/two.db?foreign_keys=off")
    assert (pragma(manager, "busy_timeout"), pragma(manager, "journal_mode")) == (5000, "delete")
    assert pragma(manager, "foreign_keys") == 1
    manager.update(busy_timeout=22)
    assert (pragma(manager, "busy_timeout"), pragma(manager, "foreign_keys")) == (22, 1)
    assert file_of(manager) == str(tmp_path / "two.db")


def test_none_is_not_given(tmp_path: Path) -> None:
    """What a configuration leaves open is the driver's default."""
    manager = SqliteConnectionManager(tmp_path / "app.db", timeout=None, wal=None, foreign_keys=None)  # type: ignore[arg-type]
    assert pragma(manager, "busy_timeout") == 5000


def test_a_refused_update_changes_nothing(tmp_path: Path) -> None:
    """The pool goes on as it was."""
    manager = SqliteConnectionManager(tmp_path / "app.db", busy_timeout=11)
    with pytest.raises(ValueError, match="busy_timeout=-1"):
        manager.update(tmp_path / "other.db", busy_timeout=-1)
    assert file_of(manager) == str(tmp_path / "app.db")
    assert pragma(manager, "busy_timeout") == 11


def test_no_secret_is_shown(tmp_path: Path) -> None:
    """SQLite has no passwords, but its encrypting relatives take a key in the URI."""
    manager = SqliteConnectionManager(f"file:{tmp_path}/app.db?key=canary")
    assert repr(manager) == f"SqliteConnectionManager('file:{tmp_path}/app.db?...')"
    assert "canary" not in repr(manager) + str(manager) + repr(vars(manager)) + repr(vars(manager)["_settings"])
    assert repr(SqliteConnectionManager("sqlite://")) == "SqliteConnectionManager(':memory:')"
