"""Teaches pool_core what a Redis connection is."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    DataError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from ._connection import LeasedRedis, Pin, TrackedConnection, is_broken
from ._settings import Settings, from_url

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from redis._parsers import Encoder

# A TLS handshake that takes longer is looked into: a plain Redis waits for the end of a line, and never answers it.
_TLS_PATIENCE: Final = 0.5
_LASTING: Final = (
    AuthenticationError,
    AuthorizationError,
    ResponseError,
    InvalidResponse,
    DataError,
    ssl.SSLError,
    ValueError,
    TypeError,
)
_PASSING: Final = (
    BusyLoadingError,
    TryAgainError,
    ClusterDownError,
    OutOfMemoryError,
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
)


class WrongServer(RedisConnectionError):
    """What answers there is not the Redis server that was meant: another protocol, another role, TLS or none."""


def is_transient(exc: Exception, /) -> bool:
    """Tell that refused, unreachable, too many clients and still loading may pass; a wrong password, role, port not."""
    error: BaseException | None = exc
    while error is not None:
        if isinstance(error, WrongServer) or (isinstance(error, _LASTING) and not isinstance(error, _PASSING)):
            return False
        error = error.__cause__ or error.__context__
    return True


class RedisConnectionManager:
    """Opens, tests, wipes and closes connections to one Redis (or Valkey) server.

    The lease is a :class:`redis.asyncio.Redis` client that is pinned to one real connection: commands, pipelines,
    transactions, WATCH, PubSub, Monitor and blocking commands all use it, and it never reconnects by itself.

    Args:
        url: ``redis://[[user]:password@]host[:port][/db]``, ``rediss://`` (TLS), ``unix://[user:password@]/path``,
            or ``valkey://`` and ``valkeys://`` in the place of the first two; redis-py's options may follow as a query.
            What is special in a name or password is percent-encoded.
        options: redis-py's own connection options, passed on as they are (``host="localhost"``, ``port=6379``,
            ``db=0``, ``username``, ``password``, ``credential_provider``, ``protocol=2`` or ``3``,
            ``decode_responses=False``, ``socket_timeout=5`` s, ``ssl_ca_certs`` ...; ``ssl=True`` for TLS). They beat
            the URL's. Refused are ``retry`` and its like, since a lease never reconnects, and the options of
            redis-py's pools.

    Raises:
        ValueError: for a URL or a value that cannot be; it never quotes the URL.
        TypeError: for an unknown option.

    A connect sends redis-py's handshake and one PING, so that a server that wants a password, is still loading or is
    no Redis at all shows at once.
    """

    def __init__(self, url: str | None = None, /, **options: Any) -> None:
        self._settings = Settings({**(from_url(url) if url is not None else {}), **options})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._settings.where}>"

    def update(self, url: str | None = None, /, **options: Any) -> None:
        """Use other settings for new connections; present ones stay (``pool.evict()`` retires them).

        Args:
            url: start from this URL alone; None: from the present settings.
            options: settings to replace, such as ``password="new"``.

        Raises:
            ValueError, TypeError: as when the manager is made; then nothing has changed.
        """
        self._settings = self._settings.merged(options) if url is None else Settings({**from_url(url), **options})

    async def connect(self) -> LeasedRedis:
        """Open one connection, shake hands, and see that it answers.

        Raises:
            redis.RedisError: whatever redis-py raises, without secrets; `WrongServer` when something else answers.
        """
        settings = self._settings
        connection = settings.connection()
        return await self._open(connection, settings)

    async def is_valid(self, client: LeasedRedis, /) -> bool:
        """PING; never reconnects, as redis-py would."""
        connection = client.tracked
        return connection.is_connected and await _answers(connection)

    has_broken = staticmethod(is_broken)

    is_transient = staticmethod(is_transient)

    def reset(self, client: LeasedRedis, /) -> Awaitable[None] | None:
        """Take back what the borrower's commands did to the session: nothing, or one round trip."""
        return client.tracked.clean() if client.tracked.dirt else None

    async def close(self, client: LeasedRedis, /) -> None:
        """Close the socket, for TLS in the proper way. Redis needs no goodbye."""
        await client.tracked.disconnect()

    def terminate(self, client: LeasedRedis, /) -> None:
        """Drop the socket."""
        client.tracked.drop()

    def public_settings(self) -> dict[str, Any]:
        """The settings that a client of redis-py asks its pool about; nothing secret."""
        return self._settings.public()

    def encoder(self) -> Encoder:
        """The encoder of new connections."""
        return self._settings.connection().encoder

    async def _open(self, connection: TrackedConnection, settings: Settings) -> LeasedRedis:
        # Between the socket and the return there is no await that is not under this `try`: redis-py itself leaves a
        # connection open when it is cancelled in a credential provider, or fails with an error that is not its own.
        try:
            await _shake_hands(connection, settings)
        except BaseException as error:
            connection.drop()
            if not isinstance(error, Exception):
                raise
            failure = presentable(error, connection.spoken, settings.where)
            if failure is error:
                raise
        else:
            connection.seal()
            return LeasedRedis(connection_pool=Pin(connection, connection.encoder, settings.public()))
        raise failure  # out here, where the error that shows a secret is not its context


async def _shake_hands(connection: TrackedConnection, settings: Settings) -> None:
    if settings.uses_tls:
        await _connect_with_tls(connection)
    else:
        await connection.connect()  # type: ignore[no-untyped-call]
    if not await _answers(connection):
        raise WrongServer(f"what answers at {settings.where} is not Redis: its answer to PING is not PONG")


async def _answers(connection: TrackedConnection) -> bool:
    await connection.send_command("PING", check_health=False)
    return await pong(connection)


async def pong(connection: TrackedConnection) -> bool:
    """Read the reply to PING. A server that does not let this user say PING, or has renamed it, answers too."""
    try:
        return await connection.read_response() in (b"PONG", "PONG")
    except NoPermissionError:
        return True
    except ResponseError as error:
        if str(error).lower().startswith(("unknown command", "err unknown command")):
            return True
        raise


async def _connect_with_tls(connection: TrackedConnection) -> None:
    """Connect; meanwhile find out whether the server there speaks plain text, since it would leave us waiting."""
    opening = asyncio.ensure_future(connection.connect())  # type: ignore[no-untyped-call]
    try:
        done, _ = await asyncio.wait({opening}, timeout=_TLS_PATIENCE)
        if not done and await _speaks_plain_text(connection):
            raise WrongServer(
                f"the Redis at {connection._host_error()} speaks no TLS on this port: "
                "use the port that does, or redis:// instead of rediss://"
            )
        await opening
    finally:
        if not opening.done():
            opening.cancel()
        opening.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody asks any more


async def _speaks_plain_text(connection: TrackedConnection) -> bool:
    writer = None
    try:
        async with asyncio.timeout(_TLS_PATIENCE):
            reader, writer = await asyncio.open_connection(connection.host, connection.port)  # type: ignore[attr-defined]
            writer.write(b"PING\r\n")
            return (await reader.read(1)) in (b"+", b"-")
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.transport.abort()


def presentable(error: Exception, secrets: tuple[str, ...], where: str) -> Exception:
    """The same error, or one to raise in its place because its text would show a secret or explain nothing."""
    if isinstance(error, InvalidResponse):
        return WrongServer(f"what answers at {where} does not speak the Redis protocol (or wants TLS: rediss://)")
    if isinstance(error, AttributeError) and secrets:  # redis-py took another answer to HELLO for a map
        return WrongServer(f"what answers at {where} is not Redis: it does not know HELLO")
    # An old server quotes the unknown command with its arguments, HELLO with the password.
    if any(secret in str(error) for secret in secrets if len(secret) > 3):
        return type(error)(f"the handshake with {where} failed, with an answer that shows the password: not quoted")
    return error
