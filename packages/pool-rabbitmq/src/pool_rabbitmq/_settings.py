"""What the user has asked for: a URL and keyword arguments."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final

from pool_core import adapters as base
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Mapping

_FORM: Final = "amqp://user:password@host:5672/vhost"
# Of the connection: aiormq reads these from its URL.
_QUERY: Final[dict[str, base.Kind[Any]]] = {
    "name": base.text(),
    "heartbeat": base.integer(0, 65535),
    "auth": base.choice("plain", "external"),
    "cafile": base.text(),
    "capath": base.text(),
    "certfile": base.text(),
    "keyfile": base.text(),
    "no_verify_ssl": base.boolean(),
}
# Of each channel, and of the manager.
_CHANNEL: Final[dict[str, base.Kind[Any]]] = {
    "publisher_confirms": base.boolean(),
    "on_return_raises": base.boolean(),
    "prefetch_count": base.integer(0, 65535),
    "channels_per_connection": base.integer(1, 2047),  # the broker's channel_max, unless it was changed
}
_OPTIONS: Final = base.Options(
    "RabbitMQChannelManager",
    {**_QUERY, **_CHANNEL},
    keywords={
        "host": base.text(),
        "port": base.integer(1, 65535),
        "login": None,
        "password": None,
        "virtualhost": base.text(),
        "ssl": base.boolean(),
        "ssl_context": None,
        "client_properties": None,
    },
    refused={
        "user": "aio_pika's name for it is login",
        "timeout": "the pool's create_timeout bounds connecting",
        "reconnect_interval": "a lease never reconnects; the pool opens another connection",
        "connection_class": "the pool's channels do not use aio_pika's connections",
        "loop": "a connection belongs to the loop that runs when it is made",
    },
)


class Settings(base.Settings):
    """Where the broker is, how to log in, and what the channels are like."""

    credentials = ("login", "password")

    def read(self, url: str) -> Mapping[str, Any]:
        """Take a URL apart."""
        parts = base.URL(url, schemes=("amqp", "amqps"), form=_FORM)
        named = {
            "host": parts.host,
            "port": parts.port,
            "login": parts.user,
            "password": parts.password,
            "virtualhost": parts.path[1:] or None,
            "ssl": parts.scheme == "amqps" or None,
        }
        return {name: value for name, value in named.items() if value is not None} | _OPTIONS.read(parts.query)

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse what cannot be."""
        super().check(values)
        _OPTIONS.check(values)
        context = values.get("ssl_context")
        if not isinstance(context, ssl.SSLContext | None):
            raise TypeError(f"ssl_context is of type {type(context).__name__}: expected an ssl.SSLContext")
        if context is not None and not values.get("ssl"):
            raise ValueError("ssl_context is given, but TLS is not asked for: write amqps://, or ssl=True")
        if values.get("on_return_raises") and not values.get("publisher_confirms", True):
            raise ValueError("on_return_raises=True needs publisher_confirms=True")

    @property
    def address(self) -> base.Host:
        """Where the broker is."""
        values = self.values
        port = 5671 if values.get("ssl") else 5672
        return base.Host(values.get("host") or "localhost", values.get("port") or port)

    def place(self) -> str:
        """Say where the broker is, and which virtual host is meant."""
        scheme = "amqps" if self.values.get("ssl") else "amqp"
        return f"{scheme}://{self.address}, virtual host {self.values.get('virtualhost') or '/'!r}"

    def channel(self) -> dict[str, Any]:
        """Return the options of a channel."""
        values = self.values
        return {name: values[name] for name in ("publisher_confirms", "on_return_raises") if name in values}

    async def url(self) -> URL:
        """Return the URL for one connection of aiormq, asking for the credentials. It is not for keeping."""
        values = await self.resolved()
        query = {name: values[name] for name in _QUERY if values.get(name) is not None}
        return URL.build(
            scheme="amqps" if values.get("ssl") else "amqp",
            user=values.get("login") or "guest",
            password=values.get("password") or "guest",
            host=self.address.name,
            port=self.address.port,
            path="/" + (values.get("virtualhost") or "/"),
            query={name: str(int(value) if isinstance(value, bool) else value) for name, value in query.items()},
        )
