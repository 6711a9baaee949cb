"""How to connect: checks what can be checked without I/O, before libpq sees it, whose messages may quote a password."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import psycopg
from pool_core.adapters import URL, Options, Settings, boolean
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PsycopgSettings"]

_SCHEMES: Final = ("postgresql", "postgres", "postgresql+psycopg")
_FORM: Final = "postgresql://user:password@host:5432/database"
_OF_DRIVER: Final = [
    name
    for name, parameter in inspect.signature(psycopg.AsyncConnection.connect).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
]
_OF_LIBPQ: Final = [option.keyword.decode() for option in pq.Conninfo.get_defaults()]
_OPTIONS: Final = Options(
    "PsycopgConnectionManager",
    {},
    keywords=dict.fromkeys([*_OF_DRIVER, *_OF_LIBPQ]),
    refused={
        "database": "write dbname, as libpq does",
        "server_settings": "write options='-c name=value'",
        "ssl": "write sslmode",
        "connection_limit": "use the pool's max_size",
        "pool_timeout": "use the pool's connection_timeout",
        "schema": "write options=-csearch_path%3Dname",
        "timeout": "the pool's create_timeout bounds each connection attempt",
    },
)


class PsycopgSettings(Settings):
    """A connection string and psycopg's keyword arguments; ``pgbouncer`` is the manager's."""

    __slots__ = ()

    secret = frozenset({"password", "sslpassword", "oauth_client_secret"})

    def read(self, url: str) -> Mapping[str, Any]:
        if isinstance(url, str) and "://" not in url and "=" in url:  # type: ignore[redundant-expr]  # libpq also reads host=... dbname=...
            return self._parsed(url)
        parts = URL(url, schemes=_SCHEMES, form=_FORM, several_hosts=True)
        # libpq takes ssl=true for sslmode=require, as JDBC writes it; pgbouncer=true is what hosters print.
        _OPTIONS.check(
            {name: None for name, value in parts.query if name != "pgbouncer" and (name, value) != ("ssl", "true")}
        )
        bouncer = [boolean().read(name, value) for name, value in parts.query if name == "pgbouncer"]
        address, _, query = url.partition("://")[2].partition("?")
        kept = "&".join(pair for pair in query.split("&") if not pair.startswith("pgbouncer="))
        values = self._parsed(f"postgresql://{address}?{kept}")
        return {**values, "prepare_threshold": None, "pgbouncer": True} if any(bouncer) else values

    def check(self, values: Mapping[str, Any]) -> None:
        super().check(values)
        _OPTIONS.check({name: value for name, value in values.items() if name != "pgbouncer"})
        for port in filter(None, str(values.get("port") or "").split(",")):
            if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
                raise ValueError("port: expected a number from 1 to 65535, or several separated by commas")

    async def resolved(self) -> dict[str, Any]:
        values = await super().resolved()
        values.pop("pgbouncer", None)
        return values

    def resolved_at_once(self) -> dict[str, Any]:
        values = super().resolved_at_once()
        values.pop("pgbouncer", None)
        return values

    def place(self) -> str:
        values = self.values
        hosts = str(values.get("host") or values.get("hostaddr") or "").split(",")
        ports = str(values.get("port") or "").split(",")
        if len(ports) == 1:
            ports *= len(hosts)
        shown = [f"[{host}]" if ":" in host else host for host in hosts]
        shown = [f"{host}:{port}" if port else host for host, port in zip(shown, ports, strict=False)]
        return f"postgresql://{','.join(shown)}/{values.get('dbname') or ''}"

    @staticmethod
    def _parsed(text: str) -> Mapping[str, Any]:
        try:
            return conninfo_to_dict(text)
        except (psycopg.Error, ValueError):
            pass  # its message may quote any part
        raise ValueError(
            f"libpq cannot read the connection string: write {_FORM}, or 'host=... dbname=... user=...' with quotes "
            "around values that have spaces"
        )
