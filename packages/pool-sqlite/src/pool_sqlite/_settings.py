"""What a manager is given, checked before any I/O and turned into what sqlite3 takes."""

from __future__ import annotations

import difflib
import os
import re
import sqlite3
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any, Literal, TypedDict
from urllib.parse import parse_qsl, quote, unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Database", "Settings", "SqliteOptions"]

Database = str | os.PathLike[str]


class SqliteOptions(TypedDict, total=False):
    """The options of ``SqliteConnectionManager``: five of its own, then those of ``aiosqlite.connect``."""

    wal: bool
    busy_timeout: int
    foreign_keys: bool
    open_transaction: Literal["rollback", "close"]
    test_transaction: bool

    timeout: float
    detect_types: int
    isolation_level: Literal["DEFERRED", "IMMEDIATE", "EXCLUSIVE", ""] | None
    autocommit: bool | int
    check_same_thread: bool
    factory: type[sqlite3.Connection]
    cached_statements: int
    uri: bool
    iter_chunk_size: int


_OWN = ("wal", "busy_timeout", "foreign_keys", "open_transaction", "test_transaction")
_ALL = tuple(SqliteOptions.__annotations__)
_FLAGS = ("wal", "foreign_keys", "test_transaction", "check_same_thread", "uri")
_IN_URL = {**dict.fromkeys(("wal", "foreign_keys", "test_transaction"), bool), "busy_timeout": int, "timeout": float}
_WORDS = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}
# https://www.sqlite.org/uri.html: what SQLite itself understands after the question mark.
_SQLITE_KEYS = ("mode", "cache", "immutable", "nolock", "psow", "vfs", "modeof")
_MEMORY = re.compile(r"[?&](mode=memory|vfs=memdb)(&|$)")


class Settings:
    """One set of settings, never changed. Its repr shows the file, but no URI's query: extensions take keys there."""

    __slots__ = ("_given", "_name", "_target", "in_memory", "iter_chunk_size", "options", "shown")

    def __init__(self, database: Database, options: Mapping[str, Any], kept: Mapping[str, Any] | None = None) -> None:
        """Check everything; see ``SqliteConnectionManager`` for what is allowed and raised. `kept` is weaker."""
        self._name, from_url = _target(database)
        given = {**from_url, **options}
        merged = dict(kept or {})
        for name, rival in (("timeout", "busy_timeout"), ("busy_timeout", "timeout")):
            if name in given:
                merged.pop(rival, None)
        merged.update(given)
        _check(merged)
        self._given = dict(merged)
        uri = merged.setdefault("uri", self._name.startswith("file:"))
        self.shown = self._name.partition("?")[0] + "?..." if uri and "?" in self._name else self._name
        self.in_memory = self._name == ":memory:" or (uri and _MEMORY.search(self._name) is not None)
        if self.in_memory and merged.get("wal"):
            msg = "wal=True: a memory database has no write-ahead log; leave the option out, or name a file"
            raise ValueError(msg)
        self._target = self._name
        if self._name == ":memory:":
            self._target = _new_memory()
            merged["uri"] = True
        self.iter_chunk_size: int = merged.pop("iter_chunk_size", 64)
        self.options = merged

    def __repr__(self) -> str:
        return f"<settings of {self.shown!r}>"

    def changed(self, options: Mapping[str, Any]) -> Settings:
        """Return a copy with these options more, of the very same database, also in memory."""
        made = Settings(self._name, options, self._given)
        made._target = self._target
        return made

    def moved(self, database: Database, options: Mapping[str, Any]) -> Settings:
        """Return a copy for another database, with these options more."""
        return Settings(database, options, self._given)

    def anchor(self) -> sqlite3.Connection:
        """Open the connection that keeps a memory database alive. It may be closed from any thread."""
        connection: sqlite3.Connection = sqlite3.connect(self._target, uri=True, check_same_thread=False)
        return connection

    def open(self) -> sqlite3.Connection:
        """Open one connection, in the thread that will use it, and set it up.

        Raises:
            sqlite3.Error: as sqlite3 raises it; NotSupportedError where the database refuses ``wal`` or
                ``foreign_keys``.
        """
        options = {name: value for name, value in self.options.items() if name not in _OWN}
        # Set last: most PRAGMAs do nothing within a transaction, and autocommit=False begins one.
        autocommit = options.pop("autocommit", None)
        raw: sqlite3.Connection = sqlite3.connect(self._target, **options)
        try:
            self._set_up(raw)
            if autocommit is not None and not self.options.get("test_transaction"):
                raw.autocommit = autocommit  # type: ignore[attr-defined, unused-ignore]
        except BaseException:
            raw.close()
            raise
        return raw

    def _set_up(self, raw: sqlite3.Connection) -> None:
        if (milliseconds := self.options.get("busy_timeout")) is not None:
            raw.execute(f"PRAGMA busy_timeout = {milliseconds}")
        if self.options.get("wal"):
            mode = _switch_to_wal(raw)
            if mode != "wal":
                msg = f"wal=True: the database stays in journal mode {mode!r}"
                raise sqlite3.NotSupportedError(msg)
        if (wanted := self.options.get("foreign_keys")) is not None:
            raw.execute(f"PRAGMA foreign_keys = {int(wanted)}")
            if raw.execute("PRAGMA foreign_keys").fetchone() != (int(wanted),):
                msg = f"foreign_keys={wanted}: this SQLite was built without foreign keys"
                raise sqlite3.NotSupportedError(msg)


def _switch_to_wal(raw: sqlite3.Connection) -> object:
    # Of two connections that switch a file at once SQLite fails one straight away, without its busy timeout: each
    # holds the read lock that the other would have to wait for. By the next try the file has been switched.
    (milliseconds,) = raw.execute("PRAGMA busy_timeout").fetchone()
    deadline = time.monotonic() + milliseconds / 1000
    while True:
        try:
            return raw.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(0.001)


def _new_memory() -> str:
    # One database for all connections. SQLite's memory VFS (from 3.36 on) locks as a file does, so that busy_timeout
    # works; in the older shared cache a writer's neighbours fail with "database table is locked" at once.
    name = f"pool-sqlite-{uuid.uuid4().hex}"
    if sqlite3.sqlite_version_info >= (3, 36, 0):
        return f"file:/{name}?vfs=memdb"
    return f"file:{name}?mode=memory&cache=shared"


def _target(database: object) -> tuple[str, dict[str, Any]]:
    """Return the file name or URI for sqlite3, and the options that a URL carried."""
    if not isinstance(database, (str, os.PathLike)):
        msg = f"database must be a path, ':memory:' or a URL like 'sqlite:///app.db', not {type(database).__name__}"
        raise TypeError(msg)
    name = os.fspath(database)
    if not isinstance(name, str):
        msg = f"database must be a str path, not {type(name).__name__}"
        raise TypeError(msg)
    if isinstance(database, str) and re.match(r"sqlite(\+\w+)?:", database):
        return _from_url(database)
    if name == ":memory:" or name.startswith("file:"):
        return name, {}
    if isinstance(database, str) and (scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", database)):
        msg = (
            f"database is a URL of scheme {scheme[1]!r}: pool-sqlite takes 'sqlite:///relative.db', "
            "'sqlite:////abs/path.db', 'sqlite://' (memory) or a path"
        )
        raise ValueError(msg)
    return _path(name), {}


def _path(name: str) -> str:
    if not name or "\0" in name:
        what = "empty" if not name else "a path with a NUL character"
        msg = f"database is {what}: name a file, or ':memory:' for one database in memory"
        raise ValueError(msg)
    return os.path.abspath(name)  # noqa: PTH100 - resolve() would follow links; a later chdir must not open another file


def _from_url(url: str) -> tuple[str, dict[str, Any]]:
    # Nothing of the URL is quoted in an error: it may hold what somebody takes for a password.
    rest, _, query = url.partition("?")
    if not re.match(r"sqlite(\+aiosqlite)?://", rest):
        msg = "the database's URL must begin with 'sqlite://'"
        raise ValueError(msg)
    authority, slash, path = rest.partition("://")[2].partition("/")
    if authority and authority != ":memory:":
        msg = (
            "a database URL of SQLite names no host and no user: write 'sqlite:///relative.db' with three slashes, "
            "'sqlite:////abs/path.db' with four, or 'sqlite://' for memory"
        )
        raise ValueError(msg)
    if slash and not path:
        msg = "the database's URL has an empty path: write 'sqlite://' for memory, or name a file after 'sqlite:///'"
        raise ValueError(msg)
    options, for_sqlite = _query(query)
    name = unquote(path) if slash else ":memory:"
    if name == ":memory:":
        if for_sqlite:
            msg = "a memory database takes no SQLite parameters in its URL; for a special one write 'file:...' yourself"
            raise ValueError(msg)
        return name, options
    name = _path(name)
    return (f"file:{quote(name)}?{'&'.join(for_sqlite)}" if for_sqlite else name), options


def _query(query: str) -> tuple[dict[str, Any], list[str]]:
    options: dict[str, Any] = {}
    for_sqlite = []
    for pair in filter(None, query.split("&")):
        ((key, value),) = parse_qsl(pair, keep_blank_values=True) or [(pair, "")]
        if key in _SQLITE_KEYS:
            for_sqlite.append(pair)
        elif key == "open_transaction":
            options[key] = value
        elif key in _IN_URL:
            try:
                options[key] = _WORDS[value.lower()] if _IN_URL[key] is bool else _IN_URL[key](value)
            except (KeyError, ValueError):
                allowed = "one of 1, 0, true, false, on, off" if _IN_URL[key] is bool else "a number"
                msg = f"{key} in the database's URL: must be {allowed}"
                raise ValueError(msg) from None
        else:
            allowed = ", ".join((*_IN_URL, "open_transaction", *_SQLITE_KEYS))
            msg = f"{key!r} in the database's URL is not known; allowed are: {allowed}"
            raise ValueError(msg)
    return options, for_sqlite


def _check(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in _ALL:
            near = difflib.get_close_matches(name, _ALL, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            msg = f"{name!r} is no option of SqliteConnectionManager; {hint}allowed are: {', '.join(_ALL)}"
            raise TypeError(msg)
    for name in _FLAGS:
        if not isinstance(value := options.get(name, False), bool):
            msg = f"{name}={value!r}: must be True or False"
            raise TypeError(msg)
    _check_times(options)
    for name in ("iter_chunk_size", "cached_statements"):
        least = int(name == "iter_chunk_size")
        value = options.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int):
            msg = f"{name}={value!r}: must be an int, not {type(value).__name__}"
            raise TypeError(msg)
        if value < least:
            msg = f"{name}={value!r}: must be at least {least}"
            raise ValueError(msg)
    level = options.get("isolation_level", "")
    if level is not None and (
        not isinstance(level, str) or level.upper() not in ("", "DEFERRED", "IMMEDIATE", "EXCLUSIVE")
    ):
        msg = f"isolation_level={level!r}: must be 'DEFERRED', 'IMMEDIATE', 'EXCLUSIVE' or None"
        raise ValueError(msg)
    factory = options.get("factory", sqlite3.Connection)
    if not (isinstance(factory, type) and issubclass(factory, sqlite3.Connection)):
        msg = f"factory={factory!r}: must be a subclass of sqlite3.Connection"
        raise TypeError(msg)
    _check_transactions(options)


def _check_times(options: Mapping[str, Any]) -> None:
    busy_timeout = options.get("busy_timeout", 0)
    if isinstance(busy_timeout, bool) or not isinstance(busy_timeout, int):
        msg = f"busy_timeout={busy_timeout!r}: must be an int, in milliseconds as in PRAGMA busy_timeout"
        raise TypeError(msg)
    if not 0 <= busy_timeout <= 2**31 - 1:
        msg = f"busy_timeout={busy_timeout!r}: must be 0 to {2**31 - 1} milliseconds"
        raise ValueError(msg)
    timeout = options.get("timeout", 0)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        msg = f"timeout={timeout!r}: must be a number of seconds"
        raise TypeError(msg)
    if not 0 <= timeout <= 2**31 / 1000 - 1:  # NaN too
        msg = f"timeout={timeout!r}: must be a number of seconds, 0 or more"
        raise ValueError(msg)
    if "busy_timeout" in options and "timeout" in options:
        msg = "busy_timeout (milliseconds) and timeout (seconds) set the same thing: give one of them"
        raise ValueError(msg)


def _check_transactions(options: Mapping[str, Any]) -> None:
    rule = options.get("open_transaction", "rollback")
    if rule not in ("rollback", "close"):
        msg = f"open_transaction={rule!r}: must be 'rollback' or 'close'"
        raise ValueError(msg)
    if "autocommit" not in options:
        return
    if sys.version_info < (3, 12):
        msg = "autocommit: needs Python 3.12 or newer; isolation_level=None is the older way to autocommit"
        raise ValueError(msg)
    autocommit = options["autocommit"]
    if not isinstance(autocommit, int) or autocommit not in (True, False, sqlite3.LEGACY_TRANSACTION_CONTROL):
        msg = f"autocommit={autocommit!r}: must be True, False or sqlite3.LEGACY_TRANSACTION_CONTROL"
        raise ValueError(msg)
    if autocommit == 0 and rule == "close":
        msg = "open_transaction='close' with autocommit=False would close every connection: one is always open"
        raise ValueError(msg)
