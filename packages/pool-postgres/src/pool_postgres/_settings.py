"""The settings: a URL, the keywords of ``asyncpg.connect``, and the options in the URLs of hosting providers."""

from __future__ import annotations

import inspect
import itertools
import os
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import asyncpg
from pool_core.adapters import URL, Host, Kind, Options, Settings, boolean, check_text, choice, integer, number, text

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PostgresSettings"]

_SCHEMES: Final = ("postgresql", "postgres")
_FORM: Final = "postgresql://user:password@host:5432/database"
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# Options of a URL that asyncpg.connect takes as keywords of the same names.
_SAME: Final[dict[str, Kind[Any]]] = {
    **dict.fromkeys(("passfile", "service", "servicefile", "krbsrvname"), text()),
    "gsslib": choice("gssapi", "sspi"),
    "target_session_attrs": choice("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
    **dict.fromkeys(
        ("statement_cache_size", "max_cached_statement_lifetime", "max_cacheable_statement_size"), integer(0)
    ),
    "command_timeout": number(above=0),
}
# asyncpg reads these from a URL only.
_ONLY_IN_URL: Final[dict[str, Kind[Any]]] = {
    **dict.fromkeys(("sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword"), text()),
    "sslnegotiation": choice("postgres", "direct"),
    **dict.fromkeys(("ssl_min_protocol_version", "ssl_max_protocol_version"), text()),
}
_TRANSLATED: Final[dict[str, Kind[Any]]] = {
    "sslmode": choice(*_SSL_MODES),
    "connect_timeout": number(),
    "pgbouncer": boolean(),
    "channel_binding": choice("disable", "prefer", "require"),
    "gssencmode": choice("disable", "prefer"),
}
_URL_OPTIONS: Final = Options(
    "a PostgreSQL URL",
    {**_SAME, **_ONLY_IN_URL, **_TRANSLATED},
    refused={
        "connection_limit": "use the pool's max_size",
        "pool_timeout": "use the pool's connection_timeout",
        "schema": "write options=-csearch_path%3Dname",
        "fallback_application_name": "write application_name",
        **dict.fromkeys(
            # libpq's, Prisma's and others' (https://www.postgresql.org/docs/current/libpq-connect.html).
            (
                *("hostaddr", "require_auth", "keepalives", "keepalives_idle", "keepalives_interval"),
                *("keepalives_count", "tcp_user_timeout", "requiressl", "sslcompression", "sslkeylogfile"),
                *("sslcertmode", "sslcrldir", "sslsni", "sslaccept", "sslidentity", "requirepeer", "gssdelegation"),
                *("min_protocol_version", "max_protocol_version", "load_balance_hosts", "socket_timeout"),
                *("scram_client_key", "scram_server_key", "uselibpqcompat", "supa"),
            ),
            "asyncpg has no such setting; remove it from the URL",
        ),
    },
)
_KEYWORDS: Final = Options(
    "PostgresConnectionManager or asyncpg.connect",
    {},
    keywords={
        **{name: None for name in inspect.signature(asyncpg.connect).parameters if name not in {"dsn", "loop"}},
        **{name: kind for name, kind in _SAME.items() if not name.endswith("file")},  # those are pathlib.Path too
        "timeout": number(above=0),
        "direct_tls": boolean(),
    },
    refused={"loop": "a connection belongs to the running loop"},
)


class PostgresSettings(Settings):
    """Keywords for ``asyncpg.connect``; ``dsn`` holds what asyncpg reads from a URL only."""

    __slots__ = ()
    secret = frozenset({"password", "dsn"})  # the latter may hold sslpassword

    def read(self, url: str) -> Mapping[str, Any]:
        """Read a URL as asyncpg does; the README lists what is translated. Unknown options are server settings."""
        parts = URL(url, schemes=_SCHEMES, form=_FORM, several_hosts=True)
        query = dict(parts.query)
        if len(query) < len(parts.query):
            raise ValueError("the URL has an option twice: give each once")
        place = {name: query.pop(name, "") for name in ("host", "port", "user", "password", "dbname", "database")}
        hosts = parts.hosts or _hosts(place["host"])
        named = {
            "host": [host.name for host in hosts],
            "port": _ports(hosts, "" if parts.hosts else place["port"]),
            "user": parts.user or place["user"],
            "password": parts.password or place["password"],
            "database": parts.path[1:] or place["dbname"] or place["database"],
        }
        given = _URL_OPTIONS.read((name, value) for name, value in query.items() if name in _URL_OPTIONS)
        settings = {name: value for name, value in query.items() if name not in _URL_OPTIONS}
        if settings:
            named["server_settings"] = settings
        return {**{name: value for name, value in named.items() if value}, **_translated(given)}

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse now what asyncpg would refuse at the first connection attempt, or send to the server."""
        super().check(values)
        _KEYWORDS.check(self._keywords)
        hosts, ports = _listed(values.get("host")), _listed(values.get("port"))
        for host in hosts:
            check_text("host", host, space=str(host).startswith("/"))
        check_text("database", values.get("database"))
        for port in ports:
            integer(1, 65535).check("port", int(port) if isinstance(port, str) and port.isdecimal() else port)
        if hosts and len(ports) > 1 and len(ports) != len(hosts):
            raise ValueError(f"{len(ports)} ports for {len(hosts)} host(s): expected one port, or one for each host")
        if isinstance(mode := values.get("ssl"), str) and mode not in _SSL_MODES:
            raise ValueError(
                f"ssl={mode!r}: expected one of {', '.join(map(repr, _SSL_MODES))}, a bool or an SSLContext"
            )
        settings = values.get("server_settings") or {}
        if not (
            isinstance(settings, dict) and all(isinstance(part, str) for pair in settings.items() for part in pair)
        ):
            raise TypeError("server_settings: expected a dict of texts to texts, as in {'statement_timeout': '30s'}")
        base = values.get("connection_class", asyncpg.Connection)
        if not (isinstance(base, type) and issubclass(base, asyncpg.Connection)):
            raise TypeError(f"connection_class={base!r}: give a class derived from asyncpg.Connection")

    def place(self) -> str:
        """Hosts and database."""
        values = self.values
        hosts, ports = _listed(values.get("host")), _listed(values.get("port")) or (None,)
        shown = [Host(*pair) for pair in zip(hosts, itertools.cycle(ports), strict=False)]
        return f"postgresql://{','.join(map(str, shown))}/{values.get('database', '')}"

    @property
    def values(self) -> dict[str, Any]:
        """Merge the URL and the keywords as asyncpg does: None is not given, and a host drops the URL's port."""
        given = {name: value for name, value in self._keywords.items() if value is not None}
        values = {**self._from_url, **given}
        if "host" in given and "port" not in given:
            values.pop("port", None)
        if isinstance(settings := given.get("server_settings"), dict):
            values["server_settings"] = {**self._from_url.get("server_settings", {}), **settings}
        return values

    async def resolved(self) -> dict[str, Any]:
        """Return the arguments of one ``asyncpg.connect``."""
        values = await super().resolved()
        values.pop("pgbouncer", None)
        return values


def _translated(given: dict[str, Any]) -> dict[str, Any]:
    """Translate what asyncpg calls by another name, and refuse what it cannot do."""
    if given.pop("channel_binding", None) == "require":
        raise ValueError(
            "channel_binding=require in the URL: asyncpg cannot do that. Remove it; sslmode=verify-full proves the "
            "server's identity, too"
        )
    given.pop("gssencmode", None)
    if "sslmode" in given:
        given["ssl"] = given.pop("sslmode")
    if given.get("sslrootcert") == "system":  # libpq's word for the certificates of the system
        del given["sslrootcert"]
        if given.setdefault("ssl", "verify-full") != "verify-full":
            raise ValueError("sslrootcert=system in the URL: expected sslmode=verify-full with it")
        given["ssl"] = True
    if "connect_timeout" in given:
        seconds = given.pop("connect_timeout")
        given["timeout"] = seconds if seconds > 0 else None  # as for libpq
    if given.get("pgbouncer"):
        given.setdefault("statement_cache_size", 0)
    if only := {name: given.pop(name) for name in _ONLY_IN_URL if name in given}:
        given["dsn"] = f"postgresql:///?{urlencode(only)}"
    return given


def _hosts(spec: str) -> tuple[Host, ...]:
    """Read ``?host=...``, where the path of a socket is not encoded."""
    return URL(f"postgresql://{quote(spec, safe=':[],')}", schemes=_SCHEMES, form=_FORM, several_hosts=True).hosts


def _ports(hosts: tuple[Host, ...], spec: str) -> list[int]:
    if spec:
        return [port for port in (_hosts(f"h:{port}")[0].port for port in spec.split(",")) if port]
    if not any(host.port for host in hosts):
        return []
    default = os.environ.get("PGPORT", "")
    return [host.port or (int(default) if default.isdecimal() else 5432) for host in hosts]


def _listed(value: Any) -> tuple[Any, ...]:
    return () if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)
