"""What a user says about the server: checked before any I/O, and never shown."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.exceptions import RedisError

from ._connection import TrackedConnection, tracked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SCHEMES: Final = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss", "unix": "unix"}
_POOL_OPTIONS: Final = {"max_connections": "max_size", "timeout": "connection_timeout"}
_RETRIES: Final = ("retry", "retry_on_error", "retry_on_timeout")


class Settings:
    """One set of connection options, as redis-py takes them. Immutable; its repr says where, and nothing else."""

    __slots__ = ("_connection_class", "_options", "where")

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Check `options`. Raises ValueError or TypeError, and does no I/O."""
        options = dict(options)
        _refuse_foreign(options)
        if "unix_socket_path" in options:
            options["path"] = options.pop("unix_socket_path")
        tls = options.pop("ssl", None)
        default = UnixDomainSocketConnection if "path" in options else SSLConnection if tls else Connection
        connection_class = options.pop("connection_class", default)
        if not (inspect.isclass(connection_class) and issubclass(connection_class, AbstractConnection)):
            raise TypeError(
                f"connection_class={connection_class!r}: a subclass of redis-py's asyncio AbstractConnection"
            )
        if tls is not None and bool(tls) != issubclass(connection_class, SSLConnection):
            raise ValueError(f"ssl={tls!r} contradicts the scheme of the URL, the path or the connection_class")
        if (db := options.get("db")) is not None:
            options["db"] = _database(db)
        if (port := options.get("port")) is not None:
            options["port"] = _port(port)
        if issubclass(connection_class, UnixDomainSocketConnection) and not options.get("path"):
            raise ValueError("a unix socket needs a path: unix:///run/redis.sock, or path='/run/redis.sock'")
        self._connection_class = tracked(connection_class)
        self._options = options
        self.where: Final = self._check()

    def __repr__(self) -> str:
        return f"<settings for {self.where}>"

    def connection(self, **extra: Any) -> TrackedConnection:
        """Make a new connection, not yet connected."""
        return self._connection_class(**{**self._options, **extra})

    def merged(self, options: Mapping[str, Any]) -> Settings:
        """These settings with some of them replaced."""
        mine = {"connection_class": self._connection_class, **self._options}
        if {"path", "unix_socket_path"} & options.keys():
            gone = ["connection_class", "host", "port"]
        elif "host" in options and "path" in mine:
            gone = ["connection_class", "path"]
        elif "ssl" in options:
            gone = ["connection_class"]
        else:
            gone = []
        if "credential_provider" in options:
            gone += ["username", "password"]
        elif "password" in options:
            gone += ["credential_provider"]
        return Settings({**{name: value for name, value in mine.items() if name not in gone}, **options})

    @property
    def uses_tls(self) -> bool:
        """Whether TLS is wanted."""
        return issubclass(self._connection_class, SSLConnection)

    def public(self) -> dict[str, Any]:
        """What a client asks its pool about; nothing secret."""
        shown = ("host", "port", "path", "db", "protocol", "legacy_responses", "decode_responses", "encoding")
        return {name: self._options[name] for name in shown if name in self._options}

    def _check(self) -> str:
        """Let redis-py look at the options, and say where they lead. A connection that is not connected does no I/O."""
        try:
            connection = self.connection()
        except TypeError as error:
            raise TypeError(_unknown_option(str(error), self._connection_class)) from None
        except (RedisError, ValueError) as error:
            raise ValueError(f"redis-py refuses these settings: {error}") from None
        return place(connection)


def place(connection: AbstractConnection) -> str:
    """Where a connection leads, for messages."""
    path = getattr(connection, "path", None)
    return str(path) if path else f"{getattr(connection, 'host', '?')}:{getattr(connection, 'port', '?')}"


def from_url(url: str) -> dict[str, Any]:
    """Read `url` into options.

    Raises ValueError without a word of the URL in it: a password with a raw "/", "@", "#" or "?" in it makes any part
    look like another, and redis-py and urllib quote what they cannot read.
    """
    if not isinstance(url, str):
        raise TypeError(f"a URL is a str, not {type(url).__name__}")
    scheme, colon, rest = url.partition("://")
    if not colon or scheme not in _SCHEMES:
        raise ValueError(f"the URL has no scheme that is known here: allowed are {'://, '.join(_SCHEMES)}://")
    url = f"{_SCHEMES[scheme]}://{rest}"
    problem = None
    try:
        parts = urlsplit(url)
        _ = parts.port  # read here, since urllib checks it late
        if parts.fragment or "@" in parts.path + parts.query:
            problem = "it has a raw '#', '/', '?' or '@' where none can be"
        elif scheme != "unix" and not unquote(parts.path).strip("/").isdecimal() and parts.path.strip("/"):
            problem = "the path after the host is the number of a database, such as /0"
        else:
            return dict(parse_url(url))
    except ValueError as error:
        # redis-py names the option whose value it cannot read, and only the option.
        problem = str(error) if str(error).startswith("Invalid value for") else "host, port or path cannot be read"
    raise ValueError(
        f"the {scheme} URL is not valid: {problem}. Percent-encode what is special in a user name or password "
        "('/' is %2F, '@' is %40, '#' is %23, '?' is %3F, ':' is %3A)"
    )


def hosts_from_url(url: str, kind: str) -> tuple[list[tuple[str, int | None]], str, dict[str, Any]]:
    """Read a URL of several hosts: ``redis+<kind>://user:password@host:port,host:port/path?options``.

    Returns:
        The hosts, the path without its first "/", and the options that the URL stands for, host and port excluded.

    Raises:
        ValueError: as `from_url`, without a word of the URL.
    """
    if not isinstance(url, str):
        raise TypeError(f"a URL is a str, not {type(url).__name__}")
    scheme, _, rest = url.partition("://")
    schemes = {f"{plain}+{kind}": plain for plain in ("redis", "rediss")}
    if scheme not in schemes or not rest:
        raise ValueError(f"the URL has no scheme that is known here: allowed are {'://, '.join(schemes)}://")
    end = min((rest.index(mark) for mark in "/?#" if mark in rest), default=len(rest))
    login, at, places = rest[:end].rpartition("@")
    tail = rest[end:]
    path = unquote(tail.partition("?")[0].partition("#")[0].lstrip("/"))
    question, query = ("?", tail.partition("?")[2]) if "?" in tail else ("", "")
    try:
        if "@" in tail or "#" in tail:
            raise ValueError
        hosts = []
        for place in places.split(","):
            parts = urlsplit(f"redis://{place}")
            if not parts.hostname or parts.path:
                raise ValueError
            hosts.append((unquote(parts.hostname), parts.port))
    except ValueError:
        hosts = []
    if not hosts:
        raise ValueError(
            f"the {scheme} URL is not valid: after the login come hosts, host:port,host:port. Percent-encode what is "
            "special in a user name or password ('/' is %2F, '@' is %40, '#' is %23, '?' is %3F, ':' is %3A)"
        )
    options = from_url(f"{schemes[scheme]}://{login}{at}host{question}{query}")
    options.pop("host")
    return hosts, path, options


def _refuse_foreign(options: Mapping[str, Any]) -> None:
    for name in _RETRIES:
        if options.get(name):
            raise ValueError(
                f"{name} is not for leases: a leased connection never reconnects, so a retry could not succeed. Retry "
                "around `async with pool.get()`, or use RedisPool(retry=...), whose clients work as redis-py's own"
            )
    for name, ours in _POOL_OPTIONS.items():
        if name in options:
            raise ValueError(
                f"{name} is an option of redis-py's pools: give the pool {ours} instead (pool_{ours} in a URL)"
            )
    if options.get("single_connection_client"):
        raise ValueError("single_connection_client is what a lease is anyway: leave it out")


def _database(db: object) -> int:
    number = int(db) if isinstance(db, str) and db.isdecimal() else db
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"db={db!r}: the number of a database, from 0")
    return number


def _port(port: object) -> int:
    number = int(port) if isinstance(port, str) and port.isdecimal() else port
    if not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 65536:
        raise ValueError(f"port={port!r}: a TCP port, 1 to 65535")
    return number


def _unknown_option(message: str, connection_class: type) -> str:
    """Make Python's words about an unexpected keyword argument a sentence about settings."""
    _, found, name = message.partition("unexpected keyword argument ")
    if not found:
        return f"redis-py refuses these settings: {message}"
    name = name.split("'")[1] if name.count("'") >= 2 else name
    near = difflib.get_close_matches(name, _known_options(connection_class), 1)
    hint = f"did you mean {near[0]}?" if near else "allowed are those of redis-py's connections, host, port, db, ..."
    return f"{name} is no option of a Redis connection: {hint}"


def _known_options(connection_class: type) -> Iterable[str]:
    for base in connection_class.__mro__:
        if "__init__" in vars(base):
            yield from inspect.signature(vars(base)["__init__"]).parameters
