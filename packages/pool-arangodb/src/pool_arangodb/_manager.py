"""The methods of a manager for ArangoDB."""

from __future__ import annotations

import base64
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from arangoasync import ArangoClient
from arangoasync.auth import Auth
from arangoasync.exceptions import ArangoClientError, ArangoServerError
from arangoasync.http import AioHTTPClient
from arangoasync.resolver import SingleHostResolver
from pool_core import Verdict
from pool_core import adapters as base

from pool_arangodb._settings import Settings

if TYPE_CHECKING:
    from arangoasync.database import StandardDatabase
    from arangoasync.request import Request
    from arangoasync.response import Response

__all__ = ["ArangoConnectionManager"]

_CODES: Final = "https://docs.arangodb.com/stable/develop/error-codes-and-meanings/"


def _http_code(exc: BaseException) -> int | None:
    return exc.http_code if isinstance(exc, ArangoServerError) else None


def _error_code(exc: BaseException) -> int | None:
    return exc.error_code if isinstance(exc, ArangoServerError) else None


_IS_PASSING: Final = base.ErrorTable(
    ((401, 403), False, f"wrong user or password, or no right to this database; {_CODES}"),
    (404, False, f"1228, database not found; {_CODES}"),
    ((503, 500), True, f"starting up, shutting down, no leader yet; {_CODES}"),
    code=_http_code,
)
_VERDICTS: Final = base.ErrorTable(
    ((1004, 1496), Verdict.RETIRE_ALL, f"read only; not a leader: this server takes no writes any more; {_CODES}"),
    code=_error_code,
)


class _HTTP(AioHTTPClient):  # type: ignore[misc, unused-ignore]
    """The driver's HTTP client, with one connection, which tells what the driver keeps to itself."""

    def __init__(self, login: Auth, timeout: float, tls: Any) -> None:
        self._login = "Basic " + base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
        self._only = aiohttp.TCPConnector(limit=1, keepalive_timeout=3600)
        super().__init__(
            connector=self._only,
            timeout=aiohttp.ClientTimeout(total=timeout),
            ssl_context=tls if tls is not None else True,
        )
        self.under_way = 0
        self.last_error: Exception | None = None

    def create_session(self, host: str) -> aiohttp.ClientSession:
        """Make a session that logs in with each request."""
        session: aiohttp.ClientSession = super().create_session(host)
        session.headers["Authorization"] = self._login
        return session

    async def send_request(self, session: aiohttp.ClientSession, request: Request) -> Response:
        """Count it, and keep its error: of several tries the driver says only that there were some."""
        request.auth = None  # the driver's way is deprecated in aiohttp, with a warning for each request
        self.under_way += 1
        try:
            return await super().send_request(session, request)
        except Exception as error:
            self.last_error = error
            raise
        finally:
            self.under_way -= 1

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._only.closed

    def drop(self) -> None:
        """Drop the connection. Does not wait."""
        # The coroutine closes all sockets before its first await. A task for it would never begin in a loop that ends.
        closing = self._only.close(abort_ssl=True).__await__()
        with suppress(StopIteration):
            next(closing)


class ArangoConnectionManager:
    """Opens, validates and closes database handles, each with an HTTP connection of its own, for ``pool_core.Pool``.

    The connection is python-arango-async's ``StandardDatabase``.

    Args:
        url: ``arangodb://user:password@host:8529/database``, ``arangodb+https://`` for TLS. None: keywords alone.
        user, password: texts, or callables, also async, which are called for each handle. ``root`` without a user.
        host, port, database: ``localhost``, 8529 and ``_system`` by default.
        tls: True, or an ``ssl.SSLContext``.
        timeout: seconds that a request may take; 300 by default, as the driver's.

    Raises:
        TypeError, ValueError: settings that are malformed. No message quotes a part of the URL.
    """

    def __init__(self, url: str | None = None, **options: Any) -> None:
        self._settings = Settings(url, options)
        self._handles: dict[int, tuple[ArangoClient, _HTTP]] = {}  # by the id of the handle, which the pool holds

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.place()}>"

    def update(self, url: str | None = None, **options: Any) -> None:
        """Connect differently from now on. Present handles stay; ``pool.evict()`` retires them.

        Args:
            url: replaces all that the former one said; None keeps it.
            options: each replaces the former one of its name; the others stay.

        Raises:
            TypeError, ValueError: as when the manager is made. Then nothing is changed.
        """
        self._settings = self._settings.updated(url, options)

    async def connect(self) -> StandardDatabase:
        """Make a handle, and prove by the properties of its database that the server knows it and the login.

        Raises:
            arangoasync.exceptions.ArangoError: as the driver raises it, with the cause that it leaves out.
        """
        values = await self._settings.resolved()
        login = Auth(values.get("user") or "root", values.get("password") or "")
        http = _HTTP(login, values.get("timeout") or 300.0, values.get("tls"))
        # The driver would send a request that has failed up to three times, an INSERT too.
        client = ArangoClient(self._settings.address, SingleHostResolver(1, max_tries=1), http)
        with base.dropping_on_failure(http.drop):
            handle = await client.db(self._settings.database, auth=login)
            try:
                await handle.properties()
            except ArangoClientError as error:
                raise error from http.last_error
        self._handles[id(handle)] = client, http
        return handle

    async def is_valid(self, handle: StandardDatabase, /) -> bool:
        """Ask the server's version."""
        await handle.version()
        return True

    def has_broken(self, handle: StandardDatabase, /) -> bool:
        """Tell whether the handle was closed, or a request on it is still under way."""
        _, http = self._handles.get(id(handle), (None, None))
        return http is None or http.closed or http.under_way > 0

    async def close(self, handle: StandardDatabase, /) -> None:
        """Close the HTTP connection."""
        client, _ = self._handles.pop(id(handle), (None, None))
        if client is not None:
            await client.close()

    def terminate(self, handle: StandardDatabase, /) -> None:
        """Drop the HTTP connection. Does not wait."""
        _, http = self._handles.pop(id(handle), (None, None))
        if http is not None:
            http.drop()

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell by the HTTP status whether the same connect may succeed later."""
        return base.is_transient(exc, _IS_PASSING)

    def judge(self, exc: Exception, handle: StandardDatabase, /) -> Verdict:
        """Tell what an error means for handles: a server that takes no writes any more."""
        return base.judge(exc, _VERDICTS)
