"""Teaches pool_core what a connection to memcached is."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final

from pool_core import Verdict
from pool_core import adapters as base

from ._driver import LeasedMemcached, Link
from ._settings import Settings

# A TLS handshake that takes longer is looked into.
_TLS_PATIENCE: Final = 0.5
_TLS_ALERT: Final = b"\x15\x03"


class LoginRefusedError(ConnectionError):
    """memcached asks for a user and a password, or the given ones are wrong, or it knows no login at all."""


class WrongServerError(ConnectionError):
    """The server there is not a memcached, or one without TLS."""


_LASTING: Final = base.ErrorTable(
    (LoginRefusedError, False, "a person must correct the password; doc/protocol.txt, Authentication"),
    (WrongServerError, False, "a person must correct the address"),
)
_VERDICTS: Final = base.ErrorTable(
    (ConnectionError, Verdict.CLOSE, "the link has closed the connection"),
)


class MemcachedConnectionManager:
    """Opens, validates and closes connections to one memcached server.

    The lease is aiomcache's client over one connection. It never reconnects.

    Args:
        url: ``memcached://[user:password@]host[:11211]``, ``memcacheds://`` for TLS, or ``memcached:///path/socket``.
        options: keyword arguments, which win over the URL: ``host="localhost"``, ``port=11211``, or ``path``, a Unix
            socket; ``user`` and ``password`` for a server with authentication of its text protocol (``-Y``), each a
            str or a callable, sync or async, that is called for each connection; ``ssl=True`` or an ``ssl.SSLContext``;
            ``server_hostname``, the name in the server's certificate (default: the host); ``get_flag_handler`` and
            ``set_flag_handler``, as aiomcache's ``FlagClient`` takes them.

    Raises:
        ValueError, TypeError: something is not allowed; no text shows the URL or a password.
    """

    def __init__(self, url: str | None = None, /, **options: Any) -> None:
        self._settings = Settings(url, options)

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

    async def connect(self) -> LeasedMemcached:
        """Open one connection, log in, and ask for the server's version.

        Raises:
            LoginRefusedError, WrongServerError: see there.
            OSError: the server cannot be reached.
        """
        place = self._settings.place()
        settings = await self._settings.resolved()
        link = await _open(settings, place)
        with base.dropping_on_failure(link.abort):
            await _shake_hands(link, settings.get("user"), settings.get("password"), place)
        return LeasedMemcached(link, settings.get("get_flag_handler"), settings.get("set_flag_handler"))

    async def is_valid(self, client: LeasedMemcached, /) -> bool:
        """Ask for the server's version: one round trip."""
        return bool(await client.version())

    def has_broken(self, client: LeasedMemcached, /) -> bool:
        """Tell whether the connection is closed, or an answer is still to come: without I/O."""
        return client.link.is_unusable

    async def close(self, client: LeasedMemcached, /) -> None:
        """Close the socket."""
        await client.link.close()

    def terminate(self, client: LeasedMemcached, /) -> None:
        """Close the socket at once."""
        client.link.abort()

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell whether connecting may succeed later: not with a wrong password, certificate or server."""
        return base.is_transient(exc, _LASTING)

    def judge(self, exc: Exception, client: LeasedMemcached, /) -> Verdict:
        """Close a connection that was lost. An answer such as NOT_FOUND, or a bad key, costs nothing."""
        return base.judge(exc, _VERDICTS)


async def _open(settings: dict[str, Any], place: str) -> Link:
    host, port, path = settings.get("host") or "localhost", settings.get("port") or 11211, settings.get("path")
    tls = settings.get("ssl") or None
    if tls is True:
        tls = ssl.create_default_context()
    name = settings.get("server_hostname") if tls else None
    if tls is None:
        return await Link.open(host, port, path)
    opening = asyncio.ensure_future(Link.open(host, port, path, tls, name))
    try:
        await asyncio.wait({opening}, timeout=_TLS_PATIENCE)
        if _looks_plain(opening) and await _answers_plain_text(host, port, path):
            raise _without_tls(place)
        return await asyncio.shield(opening)
    except BaseException:
        opening.cancel()
        opening.add_done_callback(_drop)
        raise


def _looks_plain(opening: asyncio.Future[Link]) -> bool:
    """Tell whether a handshake goes as with a memcached without TLS, which waits, answers ERROR, or closes."""
    if not opening.done():
        return True
    failure = opening.exception()
    return isinstance(failure, ssl.SSLError | ConnectionResetError) and not isinstance(
        failure, ssl.SSLCertVerificationError
    )


def _without_tls(place: str) -> Exception:
    return WrongServerError(f"{place} does not use TLS: use its TLS port, or memcached:// in place of memcacheds://")


def _drop(opening: asyncio.Future[Link]) -> None:
    """Close what was opened although nobody waits for it any more."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().abort()


async def _answers_plain_text(host: str, port: int, path: str | None) -> bool:
    try:
        async with asyncio.timeout(_TLS_PATIENCE):
            link = await Link.open(host, port, path)
            try:
                return (await link.ask(b"version\r\n")).startswith((b"VERSION", b"ERROR", b"CLIENT_ERROR"))
            finally:
                link.abort()
    except OSError:  # TimeoutError too
        return False


async def _shake_hands(link: Link, user: str | None, password: str | None, place: str) -> None:
    """See that a memcached answers, and log in if it asks for that."""
    answer = await link.ask(b"version\r\n")
    if b"unauthenticated" in answer:
        if user is None:
            raise LoginRefusedError(f"{place} asks for a user and a password: give both")
        words = f"{user} {password}".encode()
        if await link.ask(b"set auth 0 0 %d\r\n%b\r\n" % (len(words), words)) != b"STORED\r\n":
            raise LoginRefusedError(f"{place} refused the user and the password: correct them")
    elif answer.startswith(b"VERSION "):
        # Here the words of a login would be stored, for everybody to read.
        if user is not None:
            raise LoginRefusedError(f"{place} asks for no user and password: leave them out, or start it with -Y")
    elif b"Too many open connections" in answer:
        raise ConnectionRefusedError(f"{place} is at its limit of connections: raise it (-c), or lower max_size")
    elif answer.startswith(_TLS_ALERT):
        raise WrongServerError(f"the server at {place} uses TLS: write memcacheds:// in place of memcached://")
    elif not answer.endswith(b"\n"):
        raise ConnectionResetError(f"the server at {place} closed the connection")
    else:
        raise WrongServerError(f"the server at {place} is not a memcached: it does not answer to the command version")
