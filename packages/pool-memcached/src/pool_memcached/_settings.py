"""What the user has asked for: a URL and keyword arguments."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final

from pool_core import adapters as base

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCHEMES: Final = ("memcached", "memcacheds")
_OPTIONS: Final = base.Options(
    "MemcachedConnectionManager",
    {},
    keywords={
        "host": base.text(),
        "port": base.integer(1, 65535),
        "path": base.text(),
        "user": None,
        "password": None,
        "ssl": None,
        "server_hostname": base.text(),
        "get_flag_handler": None,
        "set_flag_handler": None,
    },
    refused={
        "pool_size": "use the pool's max_size",
        "pool_minsize": "use the pool's min_idle",
        "conn_args": "use host, port, path, ssl and server_hostname",
        "timeout": "use asyncio.timeout() around a command; the pool's create_timeout bounds connecting",
    },
)


class Settings(base.Settings):
    """Where the server is, how to log in, and what aiomcache does with flags."""

    rivals = (frozenset({"host", "path"}), frozenset({"port", "path"}))

    def read(self, url: str) -> Mapping[str, Any]:
        """Take a URL apart."""
        parts = base.URL(
            url, schemes=_SCHEMES, form="memcached://user:password@host:11211, or memcached:///path/socket"
        )
        path = parts.path.rstrip("/")
        if path and parts.hosts:
            raise ValueError(
                "the URL has a path behind the host: memcached has no databases, write memcached://host:11211"
            )
        named = {
            "host": parts.host,
            "port": parts.port,
            "path": path or None,
            "user": parts.user,
            "password": parts.password,
            "ssl": parts.scheme == "memcacheds" or None,
        }
        return {name: value for name, value in named.items() if value is not None} | _OPTIONS.read(parts.query)

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse what cannot be."""
        super().check(values)
        _OPTIONS.check(values)
        tls = values.get("ssl")
        if not isinstance(tls, bool | ssl.SSLContext | None):
            raise TypeError(f"ssl is of type {type(tls).__name__}: expected True, False or an ssl.SSLContext")
        if (values.get("user") is None) != (values.get("password") is None):
            raise ValueError("memcached needs user and password together, or neither of them")
        if values.get("path") and (values.get("host") or values.get("port")):
            raise ValueError("path is a Unix socket, so host and port cannot be given too: leave one of the two out")
        if values.get("path") and tls and not values.get("server_hostname"):
            raise ValueError("TLS over a Unix socket needs server_hostname: the name in the server's certificate")
        for name in ("get_flag_handler", "set_flag_handler"):
            if not (values.get(name) is None or callable(values[name])):
                raise TypeError(f"{name} is of type {type(values[name]).__name__}: expected an async function")

    def place(self) -> str:
        """Say where the server is."""
        values = self.values
        scheme = "memcacheds" if values.get("ssl") else "memcached"
        if path := values.get("path"):
            return f"{scheme}://{path}"
        return f"{scheme}://{base.Host(values.get('host') or 'localhost', values.get('port') or 11211)}"
