"""What a user says about the server: checked before any I/O, and never shown."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, TypeAlias
from urllib.parse import urlencode

from pool_core.adapters import URL, Secret, boolean, check_text, did_you_mean
from pool_core.adapters import Settings as BaseSettings
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.exceptions import RedisError

from ._internals import TrackedConnection, tracked

__all__ = ["Address", "Settings", "check_pairs", "named", "read_several"]

Address: TypeAlias = tuple[str, int]

_TLS: Final = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
_FORM: Final = "redis://user:password@host:6379/0"
_POOL_OPTIONS: Final = {"max_connections": "max_size", "timeout": "connection_timeout"}
_RETRIES: Final = ("retry", "retry_on_error", "retry_on_timeout")


def _pair(one: str, *others: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset({one, other}) for other in others)


class Settings(BaseSettings):
    """One set of connection options, as redis-py takes them.

    Class attributes:
        beside: names of settings that are not for connections.
    """

    __slots__ = ()

    kinds: ClassVar[tuple[type, type, type]] = (Connection, SSLConnection, UnixDomainSocketConnection)
    base: ClassVar[type] = AbstractConnection
    tracked: ClassVar[Any] = staticmethod(tracked)
    beside: ClassVar[frozenset[str]] = frozenset()

    credentials: ClassVar[tuple[str, ...]] = ("username", "password")
    secret: ClassVar[frozenset[str]] = frozenset({"password", "ssl_password"})
    rivals: ClassVar[tuple[frozenset[str], ...]] = (
        *_pair("path", "host", "port", "ssl", "connection_class"),
        *_pair("credential_provider", "username", "password"),
    )

    def read(self, url: str) -> dict[str, Any]:
        """Turn a URL into options; redis-py converts those of its query."""
        parts = URL(url, schemes=(*_TLS, "unix"), form=_FORM)
        options = _login_and_query(parts)
        if parts.scheme == "unix":
            if parts.hosts:
                raise ValueError("a unix URL has no host: write unix:///run/redis.sock")
            return {**options, "path": parts.path}
        number = parts.path.strip("/")
        if number:
            if not (number.isascii() and number.isdecimal()):
                raise ValueError(f"the URL's path after the host is the number of a database: write {_FORM}")
            options.setdefault("db", int(number))
        return {**options, **_where(parts)}

    def check(self, values: Mapping[str, Any]) -> None:
        """Let redis-py look at the options: a connection that is not connected does no I/O."""
        super().check(values)
        _refuse_foreign(values)
        check_text("host", values.get("host"), space=False)
        check_text("path", values.get("path"))
        if "path" in values and not values["path"]:
            raise ValueError("a unix socket needs a path: unix:///run/redis.sock, or path='/run/redis.sock'")
        db, port = values.get("db"), values.get("port")
        if db is not None and _number(db) < 0:
            raise ValueError(f"db={db!r}: the number of a database, from 0")
        if port is not None and not 0 < _number(port) < 65536:
            raise ValueError(f"port={port!r}: a TCP port, 1 to 65535")
        try:
            self._make(self.harmless(values))
        except TypeError as error:
            raise TypeError(_unknown_option(str(error), self._class(values))) from None
        except (RedisError, ValueError) as error:
            raise ValueError(f"redis-py refuses these settings: {error}") from None

    def place(self) -> str:
        """Say where they lead."""
        values = self.values
        return values.get("path") or f"{values.get('host', 'localhost')}:{values.get('port', 6379)}"

    @property
    def uses_tls(self) -> bool:
        """Whether TLS is wanted."""
        return issubclass(self._class(self.values), self.kinds[1])

    async def connection(self, **extra: Any) -> TrackedConnection:
        """Make a connection, not yet connected, with credentials that are asked for now."""
        return self._make({**await self.resolved(), **extra})

    def sample(self) -> TrackedConnection:
        """Make a connection with placeholders for its credentials, to look at."""
        return self._make(self.harmless(self.values))

    def harmless(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Put placeholders in the place of secrets and of what is called for them."""
        return {
            name: "placeholder"
            if isinstance(value, Secret) or (name in self.credentials and callable(value))
            else value
            for name, value in values.items()
        }

    def _make(self, options: Mapping[str, Any]) -> TrackedConnection:
        rest = {name: value for name, value in options.items() if name not in {*self.beside, "connection_class", "ssl"}}
        for name in ("db", "port"):
            if isinstance(rest.get(name), str):
                rest[name] = int(rest[name])
        made: TrackedConnection = self.tracked(self._class(options))(**rest)
        return made

    def _class(self, options: Mapping[str, Any]) -> type[Any]:
        plain, with_tls, unix = self.kinds
        tls = options.get("ssl")
        default = unix if "path" in options else with_tls if tls else plain
        chosen = options.get("connection_class", default)
        if not (inspect.isclass(chosen) and issubclass(chosen, self.base)):
            raise TypeError(f"connection_class={chosen!r}: a subclass of {self.base.__module__}.{self.base.__name__}")
        if tls is not None and bool(tls) != issubclass(chosen, with_tls):
            raise ValueError(f"ssl={tls!r} contradicts the path or the connection_class")
        return chosen

    def public(self) -> dict[str, Any]:
        """What a client asks its pool about; nothing secret."""
        shown = ("host", "port", "path", "db", "protocol", "legacy_responses", "decode_responses", "encoding")
        return {name: value for name, value in self.values.items() if name in shown}


def named(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same under the names that connections know: `Redis()` says unix_socket_path."""
    return {"path" if name == "unix_socket_path" else name: value for name, value in options.items()}


def read_several(url: str, kind: str, form: str, default_port: int) -> tuple[list[Address], str, dict[str, Any]]:
    """Read a URL of several hosts, ``redis+<kind>://`` or ``rediss+<kind>://``.

    Returns:
        The hosts, the path without its first "/", and the options of connections that the URL stands for.

    Raises:
        TypeError, ValueError: as `URL`.
    """
    parts = URL(url, schemes=(f"redis+{kind}", f"rediss+{kind}"), form=form, several_hosts=True)
    if not parts.hosts:
        raise ValueError(f"the URL names no host: write {form}")
    options = _login_and_query(parts)
    if parts.scheme.startswith("rediss"):
        options["ssl"] = True
    return [(host.name, host.port or default_port) for host in parts.hosts], parts.path.removeprefix("/"), options


def check_pairs(name: str, pairs: Iterable[Address]) -> list[Address]:
    """Refuse what are no pairs of host and port, or none at all."""
    chosen = [(host, int(port)) for host, port in pairs]
    if not chosen:
        raise ValueError(f"{name}: at least one pair of host and port, in the URL or as an argument")
    return chosen


def _login_and_query(parts: URL) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in parts.query:
        if name in options:
            raise ValueError(f"{name} stands twice in the URL: give it once")
        if name == "decode_responses":  # redis-py takes any text for True
            options[name] = boolean().read(name, value)
            continue
        try:
            options[name] = parse_url(f"redis://h?{urlencode({name: value})}").get(name, value)
        except ValueError:
            raise ValueError(f"{name} in the URL has a value that redis-py cannot read: correct it") from None
    if parts.user is not None:
        options["username"] = parts.user
    if parts.password is not None:
        options["password"] = parts.password
    return options


def _where(parts: URL) -> dict[str, Any]:
    found: dict[str, Any] = {"host": parts.host, "port": parts.port}
    return {
        **{name: value for name, value in found.items() if value is not None},
        **({"ssl": True} if _TLS[parts.scheme] else {}),
    }


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


def _number(value: object) -> int:
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value
    return number if isinstance(number, int) and not isinstance(number, bool) else -1


def _unknown_option(message: str, connection_class: type) -> str:
    """Make Python's words about an unexpected keyword argument a sentence about settings."""
    _, found, name = message.partition("unexpected keyword argument ")
    if not found:
        return f"redis-py refuses these settings: {message}"
    name = name.split("'")[1] if name.count("'") >= 2 else name
    known = _known_options(connection_class)
    near = did_you_mean(name, known) or "; the options are those of redis-py's connections"
    return f"{name} is not an option of a Redis connection{near}"


def _known_options(connection_class: type) -> Iterable[str]:
    for base in connection_class.__mro__:
        if "__init__" in vars(base):
            yield from inspect.signature(vars(base)["__init__"]).parameters
