"""Teaches pool_core what a Redis connection is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from pool_core import Verdict
from pool_core.adapters import ErrorTable, dropping_on_failure
from pool_core.adapters import is_transient as may_pass
from pool_core.adapters import judge as judged
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    DataError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from ._internals import LeasedRedis, Pin, TrackedConnection, is_broken
from ._settings import Settings, named

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from redis._parsers import Encoder

# A TLS handshake that takes longer is looked into: a plain Redis waits for the end of a line, and never answers it.
_TLS_PATIENCE: Final = 0.5


class WrongServer(RedisConnectionError):
    """What answers there is not the Redis server that was meant: another protocol, another role, TLS or none."""


# Where a source is not named it is the server's own list of errors, createSharedObjects() in Redis' src/server.c.
_TRANSIENT: Final = ErrorTable(
    (WrongServer, False, "another protocol, service or role; this adapter's own"),
    ((AuthenticationError, AuthorizationError), False, "NOAUTH, WRONGPASS: wrong or missing credentials"),
    ((ResponseError, InvalidResponse, DataError), False, "an answer to the handshake: database out of range, NOPERM"),
    (BusyLoadingError, True, "LOADING: the server has just started"),
    ((TryAgainError, ClusterDownError), True, "TRYAGAIN, CLUSTERDOWN, MASTERDOWN: a cluster or replica heals"),
    (OutOfMemoryError, True, "OOM: keys expire"),
)
VERDICTS: Final = ErrorTable(
    (ReadOnlyError, Verdict.RETIRE_ALL, "READONLY: the primary has become a replica"),
    (MasterDownError, Verdict.RETIRE_ALL, "MASTERDOWN: it is a replica now, and its primary is away"),
    (
        "UNBLOCKED force unblock*",
        Verdict.RETIRE_ALL,
        "a blocking command on a primary that becomes a replica: disconnectOrRedirectAllBlockedClients(), blocked.c",
    ),
    (AuthenticationError, Verdict.CLOSE, "NOAUTH, WRONGPASS: this session is not the user it was opened for"),
    (BusyLoadingError, Verdict.KEEP, "LOADING: the validation before the next use waits for it"),
    (NoPermissionError, Verdict.KEEP, "NOPERM: one command is not allowed; another connection may not do more"),
    ((ClusterDownError, TryAgainError), Verdict.KEEP, "CLUSTERDOWN, TRYAGAIN: the state of the cluster"),
    ((OutOfMemoryError, "MISCONF*", "NOREPLICAS*", "BUSY*"), Verdict.KEEP, "the server refuses writes to everybody"),
    code=lambda exc: str(exc) if type(exc) is ResponseError else None,
)


def is_transient(exc: Exception, /) -> bool:
    """Tell that refused, unreachable, too many clients and still loading may pass; a wrong password, role, port not."""
    return may_pass(exc, _TRANSIENT)


def judge(exc: Exception, client: object, /) -> Verdict:
    """Tell what an error means for connections: a server that has become a replica retires all of them."""
    return judged(exc, VERDICTS)


class RedisConnectionManager:
    """Opens, validates, resets and closes connections to one Redis (or Valkey) server.

    A lease yields a :class:`redis.asyncio.Redis` client that is pinned to one connection: commands, pipelines,
    transactions, WATCH, PubSub, Monitor and blocking commands all use it, and it never reconnects by itself.

    Args:
        url: ``redis://[[user]:password@]host[:port][/db]``, ``rediss://`` (TLS), ``unix://[user:password@]/path``,
            or ``valkey://`` and ``valkeys://`` in the place of the first two; redis-py's options may follow as a query.
            What is special in a name or password is percent-encoded.
        options: redis-py's own connection options, passed on as they are (``host="localhost"``, ``port=6379``,
            ``db=0``, ``username`` and ``password``, which may be callables, sync or async, ``credential_provider``,
            ``protocol=2`` or ``3``, ``decode_responses=False``, ``socket_timeout=5`` s, ``ssl_ca_certs`` ...; ``ssl=True`` for TLS). They beat
            the URL's. Refused are ``retry`` and its like, since a lease never reconnects, and the options of
            redis-py's pools.

    Raises:
        ValueError: for a URL or a value that cannot be; it never quotes the URL.
        TypeError: for an unknown option.

    A connect sends redis-py's handshake and one PING, so that a server that wants a password, is still loading or is
    no Redis at all shows at once.
    """

    _may_ping: bool = True

    def __init__(self, url: str | None = None, /, **options: Any) -> None:
        self._settings = Settings(url, named(options))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._settings.place()}>"

    def update(self, url: str | None = None, /, **options: Any) -> None:
        """Use other settings for new connections; present ones stay (``pool.evict()`` retires them).

        Args:
            url: replaces all that the former URL said; None: that stays.
            options: each replaces the former one of its name, such as ``password="new"``. The others stay.

        Raises:
            ValueError, TypeError: as when the manager is made; then nothing has changed.
        """
        self._settings = self._settings.updated(url, named(options))
        self._may_ping = True

    async def connect(self) -> LeasedRedis:
        """Open one connection, shake hands, and see that it answers.

        Raises:
            redis.RedisError: whatever redis-py raises, without secrets; `WrongServer` when something else answers.
        """
        settings = self._settings
        return await self._open(await settings.connection(), settings)

    async def is_valid(self, client: LeasedRedis, /) -> bool:
        """PING; never reconnects, as redis-py would."""
        return client.tracked.is_connected and await self._answers(client.tracked)

    has_broken = staticmethod(is_broken)

    is_transient = staticmethod(is_transient)

    def judge(self, exc: Exception, client: LeasedRedis, /) -> Verdict:
        """Tell what an error means for connections: a server that has become a replica retires all of them."""
        return judge(exc, client)

    def reset(self, client: LeasedRedis, /) -> Awaitable[None] | None:
        """Undo what the borrower's commands changed in the session: nothing to do, or one round trip."""
        return client.tracked.clean() if client.tracked.dirt else None

    async def close(self, client: LeasedRedis, /) -> None:
        """Close the socket; with TLS after a proper shutdown. Redis needs no QUIT."""
        await client.tracked.disconnect()

    def terminate(self, client: LeasedRedis, /) -> None:
        """Drop the socket."""
        client.tracked.drop()

    def public_settings(self) -> dict[str, Any]:
        """The settings that a client of redis-py asks its pool about; nothing secret."""
        return self._settings.public()

    def encoder(self) -> Encoder:
        """The encoder of new connections."""
        return self._settings.sample().encoder

    async def _answers(self, connection: TrackedConnection) -> bool:
        if not self._may_ping:
            # Every user may say HELLO, and without an argument it changes nothing; each PING would be in ACL LOG.
            dirt = connection.dirt
            await connection.send_command("HELLO", check_health=False)
            await connection.read_response()
            connection.dirt = dirt
            return True
        await connection.send_command("PING", check_health=False)
        try:
            return await pong(connection)
        except NoPermissionError:
            self._may_ping = False
            return True

    async def _open(self, connection: TrackedConnection, settings: Settings) -> LeasedRedis:
        # Between the socket and the return there is no await that is not under this `try`: redis-py itself leaves a
        # connection open when it is cancelled in a credential provider, or fails with an error that is not its own.
        try:
            with dropping_on_failure(connection.drop):
                if settings.uses_tls:
                    await _connect_with_tls(connection)
                else:
                    await connection.connect()  # type: ignore[no-untyped-call]
                if not await self._answers(connection):
                    raise WrongServer(
                        f"what answers at {settings.place()} is not Redis: its answer to PING is not PONG"
                    )
                connection.seal()
                return LeasedRedis(connection_pool=Pin(connection, connection.encoder, settings.public()))
        except Exception as error:
            failure = presentable(error, connection.spoken, settings.place())
            if failure is error:
                raise
        raise failure  # out here, where the error that shows a secret is not its context


async def pong(connection: TrackedConnection) -> bool:
    """Read the reply to PING. A server that has renamed it answers, too.

    Raises:
        NoPermissionError: this user may not say PING.
    """
    try:
        return await connection.read_response() in (b"PONG", "PONG")
    except NoPermissionError:
        raise
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
