"""Teaches pool_core what a channel of RabbitMQ is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aiormq import exceptions as amqp
from pool_core import ReplaceConnection, Verdict
from pool_core import adapters as base

from ._channel import LeasedChannel
from ._line import Line
from ._settings import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable


def _reason(exc: BaseException) -> str | None:
    """The broker's code 530 stands for several things."""
    if isinstance(exc, amqp.ConnectionNotAllowed):
        return "limit" if "is reached" in str(exc) else "not allowed"
    return None


_SOURCE: Final = "RabbitMQ, AMQP 0-9-1 reference, reply codes; rabbitmq.com/docs/vhosts, Limits"
_LASTING: Final = base.ErrorTable(
    ((amqp.ProbableAuthenticationError, amqp.AuthenticationError), False, f"{_SOURCE}: 403 at login"),
    ("not allowed", False, f"{_SOURCE}: 530, an unknown virtual host, or no right to use it"),
    ("limit", True, f"{_SOURCE}: 530, a limit of connections that others may give up"),
    ((amqp.IncompatibleProtocolError, amqp.ProtocolSyntaxError), False, "not an AMQP 0-9-1 server, or TLS"),
    ((FileNotFoundError, IsADirectoryError, PermissionError), False, "a certificate or key that cannot be read"),
    code=_reason,
)
_VERDICTS: Final = base.ErrorTable(
    ((amqp.AMQPConnectionError, amqp.AMQPChannelError), Verdict.CLOSE, f"{_SOURCE}: the broker has closed it"),
    ((amqp.ChannelInvalidStateError, ConnectionError), Verdict.CLOSE, "aiormq has closed it"),
)


class RabbitMQChannelManager:
    """Opens, validates, resets and closes channels, over as few connections as needed.

    The lease is an ``aio_pika.Channel``. A channel that the broker closes costs its lease only; when a connection is
    lost, all its channels count as broken at once.

    Args:
        url: ``amqp://login:password@host[:5672][/vhost][?heartbeat=60]``, or ``amqps://`` for TLS. ``%2F`` is the
            virtual host ``/``, the default.
        options: keyword arguments, which win over the URL: aio_pika's ``host="localhost"``, ``port``, ``login="guest"``,
            ``password="guest"``, ``virtualhost="/"``, ``ssl``, ``ssl_context``, ``client_properties``, and, also in the
            URL's query, ``name``, ``heartbeat=60`` (s), ``auth``, ``cafile``, ``capath``, ``certfile``, ``keyfile``,
            ``no_verify_ssl``. ``login`` and ``password`` may be callables, sync or async, called for each connection.
            Of each channel: ``publisher_confirms=True``, ``on_return_raises=False``, and ``prefetch_count``.
            ``channels_per_connection=100``; 1 gives each lease a connection of its own.

    Raises:
        ValueError, TypeError: something is not allowed; no text shows the URL or a password.
    """

    def __init__(self, url: str | None = None, /, **options: Any) -> None:
        self._settings = Settings(url, options)
        self._lines: list[Line] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.place()}>"

    def update(self, url: str | None = None, /, **options: Any) -> None:
        """Use other settings for new connections; ``pool.evict()`` retires the present ones.

        Args:
            url: replaces all that the former URL said. None: that stays.
            options: each replaces the former one of its name. The others stay.

        Raises:
            ValueError, TypeError: as for a new manager; then nothing has changed.
        """
        self._settings = self._settings.updated(url, options)
        for line in self._lines:
            line.sealed = True

    async def connect(self) -> LeasedChannel:
        """Open a channel, on a new connection where the present ones are full.

        Raises:
            aiormq.exceptions.AMQPError: the broker cannot be reached, refuses the login, or is none.
        """
        settings = self._settings
        line = self._line(settings)
        line.enter()
        with base.dropping_on_failure(line.leave):
            await line.ready()
            return await LeasedChannel.open(line, settings.values.get("prefetch_count"), **settings.channel())

    def _line(self, settings: Settings) -> Line:
        loop, most = asyncio.get_running_loop(), settings.values.get("channels_per_connection", 100)
        self._lines = [
            line
            for line in self._lines
            if not (line.sealed or line.is_gone or line.is_blocked or line.loop.is_closed())
        ]
        for line in self._lines:
            if line.loop is loop and line.users < most:
                return line
        values = settings.values
        line = Line(settings.url, values.get("ssl_context"), values.get("client_properties"))
        self._lines.append(line)
        return line

    async def is_valid(self, channel: LeasedChannel, /) -> bool:
        """Ask the broker by ``channel.flow``: one round trip."""
        return bool((await channel.flow(active=True)).active)

    def has_broken(self, channel: LeasedChannel, /) -> bool:
        """Tell whether the channel or its connection is closed, or a request is under way: without I/O."""
        return channel.is_unusable

    def reset(self, channel: LeasedChannel, /) -> Awaitable[None] | None:
        """Requeue what was not acknowledged, and remove callbacks: at most one round trip.

        Raises:
            ReplaceConnection: the channel had a consumer, a prefetch or a transaction, which only closing it ends.
        """
        if channel.lasting:
            raise ReplaceConnection
        channel.forget_callbacks()
        return channel.prove() if channel.unproven else None

    async def close(self, channel: LeasedChannel, /) -> None:
        """Close the channel, and with the last channel its connection."""
        line = channel.line
        if channel.has_left or line.is_gone or line.is_blocked:  # no answer can be expected
            channel.abort()
            return
        if not (channel.is_unusable or channel.lasting):
            line.sealed = True  # the pool retires a sound channel, for its age or by evict(): its connection goes too
        await channel.close()

    def terminate(self, channel: LeasedChannel, /) -> None:
        """Close the channel at once; the connection too, unless other channels use it: then they are replaced."""
        channel.abort()

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell whether connecting may succeed later: not with a wrong password or virtual host, or without TLS."""
        return base.is_transient(exc, _LASTING)

    def judge(self, exc: Exception, channel: LeasedChannel, /) -> Verdict:
        """Close a channel that the broker or the driver has closed. An unroutable or refused message costs nothing."""
        return base.judge(exc, _VERDICTS)
