"""Where a manager connects to and how: checked before any I/O, and never shown with a secret in it."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final

from pool_core import adapters as base

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Settings"]

_FORM: Final = "arangodb://user:password@host:8529/database"
_SSL: Final = base.Kind[Any](
    "an ssl.SSLContext, or True for the default one", (ssl.SSLContext, bool), lambda text: text
)
_OPTIONS: Final = base.Options(
    "ArangoConnectionManager",
    {"timeout": base.number(above=0)},
    keywords={
        "user": None,
        "password": None,
        "host": base.text(),
        "port": base.integer(1, 65535),
        "database": base.text(),
        "tls": _SSL,
    },
    refused={
        "max_connections": "use the pool's max_size",
        "hosts": "give one host; a pool has one place to connect to",
    },
)


class Settings(base.Settings):
    """Host, port, database, login, TLS, and the limit of a request."""

    __slots__ = ()

    def read(self, url: str) -> dict[str, Any]:
        """Turn a URL into keywords."""
        parts = base.URL(url, schemes=("arangodb", "arangodb+https"), form=_FORM)
        named: dict[str, Any] = {
            "user": parts.user,
            "password": parts.password,
            "host": parts.host,
            "port": parts.port,
            "database": parts.path[1:] or None,
            "tls": True if parts.scheme.endswith("https") else None,
        }
        return {name: value for name, value in named.items() if value is not None} | _OPTIONS.read(parts.query)

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse what is no option."""
        super().check(values)
        _OPTIONS.check(values)

    @property
    def address(self) -> str:
        """The URL of the server, as the driver takes it."""
        values = self.values
        host = values.get("host") or "localhost"
        host = f"[{host}]" if ":" in host else host
        return f"http{'s' if values.get('tls') else ''}://{host}:{values.get('port') or 8529}"

    @property
    def database(self) -> str:
        """The name of the database."""
        return str(self.values.get("database") or "_system")

    def place(self) -> str:
        """Server and database."""
        return f"{self.address}/{self.database}"
