"""What a manager is given, checked before any I/O and turned into what sqlite3 takes."""

from __future__ import annotations

import os
import re
import sqlite3
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict
from urllib.parse import quote

from pool_core.adapters import URL, Kind, Options, Settings, boolean, check_text, choice, integer, number

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Database", "SqliteOptions", "SqliteSettings"]

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


_OWN: Final = ("wal", "busy_timeout", "foreign_keys", "open_transaction", "test_transaction", "iter_chunk_size")
_LEVELS: Final = ("", "DEFERRED", "IMMEDIATE", "EXCLUSIVE")
_OPTIONS: Final = Options(
    "SqliteConnectionManager",
    {
        **dict.fromkeys(("wal", "foreign_keys", "test_transaction"), boolean()),
        "busy_timeout": integer(0, 2**31 - 1),  # milliseconds, as in the PRAGMA
        "timeout": number(0, 2**31 / 1000 - 1),  # seconds, as for sqlite3
        "open_transaction": choice("rollback", "close"),
    },
    keywords={
        **dict.fromkeys(("check_same_thread", "uri"), boolean()),
        "detect_types": integer(0),
        "cached_statements": integer(0),
        "iter_chunk_size": integer(1),
        "isolation_level": Kind(
            f"one of {', '.join(map(repr, _LEVELS))} or None", (str,), str, lambda level: level.upper() in _LEVELS
        ),
        "autocommit": None,
        "factory": None,
    },
)
# https://www.sqlite.org/uri.html: what SQLite itself understands after the question mark.
_SQLITE_KEYS: Final = ("mode", "cache", "immutable", "nolock", "psow", "vfs", "modeof")
_MEMORY: Final = re.compile(r"[?&](mode=memory|vfs=memdb)(&|$)")
_FORM: Final = "'sqlite:///relative.db', 'sqlite:////abs/path.db', or 'sqlite://' for memory"


class SqliteSettings(Settings):
    """Which database, and how. Its repr shows the file, but no URI's query: extensions take keys there."""

    __slots__ = ()
    credentials = ()
    secret = frozenset()
    rivals = (frozenset({"timeout", "busy_timeout"}),)

    def read(self, url: object) -> Mapping[str, Any]:
        """Turn a path, a URL or a SQLite URI into `name`, as it is given, `target`, as sqlite3 takes it, and options."""
        if not isinstance(url, (str, os.PathLike)) or not isinstance(name := os.fspath(url), str):
            kind = type(url if not isinstance(url, os.PathLike) else os.fspath(url)).__name__
            raise TypeError(f"database is of type {kind}: expected a str or a path, as in {_FORM}")
        options: dict[str, Any] = {}
        if isinstance(url, str) and re.match(r"sqlite(\+\w+)?:", url):
            name, options = _from_url(url)
        elif isinstance(url, str) and (scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", url)):
            if scheme[1] != "file":
                raise ValueError(f"database is a URL of scheme {scheme[1]!r}: expected a path, or {_FORM}")
        elif name != ":memory:" and not name.startswith("file:"):
            name = _path(name)
        else:
            check_text("database", name)
        return {**options, "name": name, "target": _new_memory() if name == ":memory:" else name}

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse options that SQLite would overlook, or refuse later."""
        super().check(values)
        if "name" not in values:
            raise TypeError(f"database is None: expected a str or a path, as in {_FORM}")
        _OPTIONS.check(self._keywords)
        if "busy_timeout" in values and "timeout" in values:
            raise ValueError("busy_timeout (milliseconds) and timeout (seconds) set the same thing: give one of them")
        if self.in_memory and values.get("wal"):
            raise ValueError("wal=True: a memory database has no write-ahead log; leave it out, or name a file")
        factory = values.get("factory", sqlite3.Connection)
        if not (isinstance(factory, type) and issubclass(factory, sqlite3.Connection)):
            raise TypeError(f"factory={factory!r}: must be a subclass of sqlite3.Connection")
        if "autocommit" in values:
            _check_autocommit(values["autocommit"], closes=values.get("open_transaction") == "close")

    def place(self) -> str:
        """The file, or the URI without its query."""
        name: str = self.values["name"]
        return f"{name.partition('?')[0]}?..." if "?" in name and self.is_uri else name

    @property
    def values(self) -> dict[str, Any]:
        """None is not given, but for isolation_level, where it has a meaning."""
        return {name: value for name, value in super().values.items() if value is not None or name == "isolation_level"}

    @property
    def is_uri(self) -> bool:
        """Whether sqlite3 is to read the name as a URI."""
        values = self.values
        return bool(values.get("uri", values["name"].startswith("file:")))

    @property
    def in_memory(self) -> bool:
        """Whether the data is gone with the last connection."""
        name: str = self.values["name"]
        return name == ":memory:" or (self.is_uri and _MEMORY.search(name) is not None)

    def anchor(self) -> sqlite3.Connection:
        """Open the connection that keeps a memory database alive. It may be closed from any thread."""
        connection: sqlite3.Connection = sqlite3.connect(self.values["target"], uri=True, check_same_thread=False)
        return connection

    def open(self, **forced: Any) -> sqlite3.Connection:
        """Open one connection, in the thread that will use it, and set it up. ``forced`` options win over those given.

        Raises:
            sqlite3.Error: as sqlite3 raises it; NotSupportedError where the database refuses ``wal`` or
                ``foreign_keys``.
        """
        given = {**self.values, **forced}
        target = given.pop("target")
        uri = target != given.pop("name") or self.is_uri
        options = {name: value for name, value in given.items() if name not in _OWN}
        # Set last: most PRAGMAs do nothing within a transaction, and autocommit=False begins one.
        autocommit = options.pop("autocommit", None)
        raw: sqlite3.Connection = sqlite3.connect(target, **{**options, "uri": uri})
        try:
            _set_up(raw, given)
            if autocommit is not None and not given.get("test_transaction"):
                raw.autocommit = autocommit  # type: ignore[attr-defined, unused-ignore]
        except BaseException:
            raw.close()
            raise
        return raw


def _set_up(raw: sqlite3.Connection, options: Mapping[str, Any]) -> None:
    if (milliseconds := options.get("busy_timeout")) is not None:
        raw.execute(f"PRAGMA busy_timeout = {milliseconds}")
    if options.get("wal") and (mode := _switch_to_wal(raw)) != "wal":
        raise sqlite3.NotSupportedError(f"wal=True: the database stays in journal mode {mode!r}")
    if (wanted := options.get("foreign_keys")) is not None:
        raw.execute(f"PRAGMA foreign_keys = {int(wanted)}")
        if raw.execute("PRAGMA foreign_keys").fetchone() != (int(wanted),):
            raise sqlite3.NotSupportedError(f"foreign_keys={wanted}: this SQLite was built without foreign keys")


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


def _path(name: str) -> str:
    if not name:
        raise ValueError("database is empty: name a file, or ':memory:' for one database in memory")
    check_text("database", name)
    return os.path.abspath(name)  # noqa: PTH100 - resolve() would follow links; a later chdir must not open another file


def _from_url(url: str) -> tuple[str, dict[str, Any]]:
    # An "@" has no special meaning here, since there is no user.
    plain = url.replace("://:memory:", "://", 1).replace("@", "%40")
    parts = URL(plain, schemes=("sqlite", "sqlite+aiosqlite"), form=_FORM)
    if parts.hosts or parts.user or parts.password:
        raise ValueError(f"a database URL of SQLite names no host and no user: write {_FORM}")
    for_sqlite = [f"{quote(key)}={quote(value)}" for key, value in parts.query if key in _SQLITE_KEYS]
    options = _OPTIONS.read(pair for pair in parts.query if pair[0] not in _SQLITE_KEYS)
    path = parts.path[1:] if parts.path else ":memory:"
    if path == ":memory:":
        if for_sqlite:
            raise ValueError(
                "a memory database takes no SQLite parameters: for a special one write 'file:...' yourself"
            )
        return path, options
    if not path:
        raise ValueError(f"the database's URL has an empty path: write {_FORM}")
    path = _path(path)
    return (f"file:{quote(path)}?{'&'.join(for_sqlite)}" if for_sqlite else path), options


def _check_autocommit(autocommit: object, *, closes: bool) -> None:
    if sys.version_info < (3, 12):
        raise ValueError("autocommit: needs Python 3.12 or newer; isolation_level=None is the older way to autocommit")
    if not isinstance(autocommit, int) or autocommit not in (True, False, sqlite3.LEGACY_TRANSACTION_CONTROL):
        raise ValueError(f"autocommit={autocommit!r}: must be True, False or sqlite3.LEGACY_TRANSACTION_CONTROL")
    if autocommit == 0 and closes:
        raise ValueError(
            "open_transaction='close' with autocommit=False would close every connection: one is always open"
        )
