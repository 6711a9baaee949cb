"""The methods of a manager for Neo4j: sessions of one driver."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Literal

from neo4j.exceptions import AuthError, ConfigurationError, Neo4jError
from pool_core import Verdict
from pool_core import adapters as base

from pool_neo4j import _driver
from pool_neo4j._settings import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from neo4j import AsyncSession

__all__ = ["Neo4jSessionManager"]

_CODES: Final = "https://neo4j.com/docs/status-codes/current/errors/all-errors/"


def _code(exc: BaseException) -> str | None:
    return exc.code if isinstance(exc, Neo4jError) else None


_IS_PASSING: Final = base.ErrorTable(
    ("Neo.ClientError.Security.*", False, f"login, rights, expired credentials; {_CODES}"),
    ("Neo.ClientError.Security.AuthorizationExpired", True, f"the driver logs in again; {_CODES}"),
    ("Neo.ClientError.Database.DatabaseNotFound", False, f"a misspelt name; {_CODES}"),
    ("Neo.TransientError.*", True, f"DatabaseUnavailable and its like; {_CODES}"),
    (AuthError, False, "also where a server gives another code"),
    (ConfigurationError, False, "settings that do not fit the server"),
    code=_code,
)
_VERDICTS: Final = base.ErrorTable(
    (
        ("Neo.ClientError.Cluster.NotALeader", "Neo.ClientError.General.ForbiddenOnReadOnlyDatabase"),
        Verdict.RETIRE_ALL,
        f"this server takes no writes any more; {_CODES}",
    ),
    (
        (
            "Neo.ClientError.Security.Unauthorized",
            "Neo.ClientError.Security.CredentialsExpired",
            "Neo.ClientError.Security.TokenExpired",
        ),
        Verdict.RETIRE_ALL,
        f"the driver's login is not valid any more; {_CODES}",
    ),
    code=_code,
)


class _Shared:
    """A driver, and the number of sessions that live on it."""

    __slots__ = ("direct", "driver", "loop", "options", "sessions")

    def __init__(self, settings: Settings) -> None:
        self.driver = settings.driver()
        self.options = settings.of_sessions()
        self.direct = settings.direct
        self.loop = asyncio.get_running_loop()
        self.sessions = 0


class Neo4jSessionManager:
    """Opens, validates, resets and closes sessions of one driver, for ``pool_core.Pool``.

    The driver opens TCP connections as sessions need them, and keeps them; give it a ``max_connection_pool_size`` (100 by
    default) of at least the pool's ``max_size``. It lives as long as any of its sessions.

    Args:
        url: ``neo4j://user:password@host:7687/database`` (a cluster), ``bolt://`` (one server), with ``+s`` for TLS or
            ``+ssc`` for TLS with any certificate. ``?access_mode=READ`` and ``?impersonated_user=...`` are for sessions;
            of ``neo4j://`` the rest of the query is the routing context.
        user, password: texts, or callables, also async, which the driver calls when it needs them.
        auth: another login of the driver's, as ``neo4j.bearer_auth(token)`` or an ``AsyncAuthManager``.
        database: of the sessions. None: the user's home database.
        impersonated_user: of the sessions.
        access_mode: ``"READ"`` or ``"WRITE"`` (the driver's default): where sessions of a cluster go.
        bookmark_manager: of the sessions: chains leases causally, see the README.
        options: for ``neo4j.AsyncGraphDatabase.driver``, as they are.

    Raises:
        TypeError, ValueError: a URL or an option that the driver does not take. No message quotes a secret.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        user: base.Credential | None = None,
        password: base.Credential | None = None,
        auth: Any = None,
        database: str | None = None,
        impersonated_user: str | None = None,
        access_mode: Literal["READ", "WRITE"] | None = None,
        bookmark_manager: Any = None,
        **options: Any,
    ) -> None:
        given = {
            "user": user,
            "password": password,
            "auth": auth,
            "database": database,
            "impersonated_user": impersonated_user,
            "access_mode": access_mode,
            "bookmark_manager": bookmark_manager,
        }
        self._settings = Settings(url, {**{name: v for name, v in given.items() if v is not None}, **options})
        self._current: _Shared | None = None
        self._shared: dict[int, _Shared] = {}  # by the id of the session, which the pool holds

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.place()}>"

    def update(self, url: str | None = None, **options: Any) -> None:
        """Use a new driver for the sessions to come. Present sessions stay; ``pool.evict()`` retires them.

        Args:
            url: replaces all that the former one said; None keeps it.
            options: each replaces the former one of its name; the others stay.

        Raises:
            TypeError, ValueError: as when the manager is made. Then nothing is changed.
        """
        self._settings = self._settings.updated(url, options)
        self._current = None

    async def connect(self) -> AsyncSession:
        """Start a session, and prove by a query that its database answers.

        Raises:
            neo4j.exceptions.Neo4jError, neo4j.exceptions.DriverError: as the driver raises them.
        """
        shared = self._join()
        session = shared.driver.session(**shared.options)
        self._shared[id(session)] = shared
        with base.dropping_on_failure(lambda: self.terminate(session)):
            await self.is_valid(session)
        return session

    async def is_valid(self, session: AsyncSession, /) -> bool:
        """Run ``RETURN 1`` in the session; of the database ``system``, which has no queries, ask the server's version."""
        shared = self._shared[id(session)]
        if shared.options.get("database") == "system":
            await shared.driver.get_server_info(**shared.options)
        else:
            try:
                await (await session.run("RETURN 1")).consume()
            except asyncio.CancelledError as error:
                _driver.close_forgotten_sockets(error)
                raise
        _driver.renew(session, shared.driver.session(**shared.options))
        return True

    def has_broken(self, session: AsyncSession, /) -> bool:
        """Tell whether the session or its driver was closed."""
        shared = self._shared.get(id(session))
        return shared is None or session.closed() or _driver.is_closed(shared.driver)

    def reset(self, session: AsyncSession, /) -> Awaitable[None] | None:
        """Roll back an open transaction, discard unread results, forget bookmarks. Only the first two talk to a server."""
        if _driver.has_connection(session):
            return self._reset(session)
        self._renew(session)
        return None

    async def _reset(self, session: AsyncSession) -> None:
        await session.close()
        self._renew(session)

    def _renew(self, session: AsyncSession) -> None:
        shared = self._shared[id(session)]
        _driver.renew(session, shared.driver.session(**shared.options))

    async def close(self, session: AsyncSession, /) -> None:
        """Close the session, which rolls back an open transaction. The last one closes the driver."""
        await session.close()
        shared = self._shared.pop(id(session), None)
        if shared is not None and self._leave(shared):
            with base.dropping_on_failure(lambda: _driver.drop(shared.driver)):
                await shared.driver.close()

    def terminate(self, session: AsyncSession, /) -> None:
        """Drop the session's connection; with the last session all sockets of the driver. Does not wait."""
        _driver.cancel(session)
        shared = self._shared.pop(id(session), None)
        if shared is not None and self._leave(shared):
            _driver.drop(shared.driver)

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell by Neo4j's code whether the same connect may succeed later."""
        return base.is_transient(exc, _IS_PASSING)

    def judge(self, exc: Exception, session: AsyncSession, /) -> Verdict:
        """Tell what an error means for sessions: a server that takes no writes, or a login that is not valid any more.

        New sessions then get a new driver. Of a cluster (``neo4j://``) the driver itself finds the new leader.
        """
        verdict = base.judge(exc, _VERDICTS)
        shared = self._shared.get(id(session))
        if verdict is Verdict.RETIRE_ALL and shared is not None:
            if not shared.direct and "Security" not in str(getattr(exc, "code", "")):
                return Verdict.KEEP
            if self._current is shared:
                self._current = None
        return verdict

    def _join(self) -> _Shared:
        """The driver for new sessions, with a place on it for one more."""
        current = self._current
        if current is None or _driver.is_closed(current.driver) or current.loop is not asyncio.get_running_loop():
            self._current = current = _Shared(self._settings)
        current.sessions += 1
        return current

    def _leave(self, shared: _Shared) -> bool:
        """True: that was the driver's last session.

        A driver that has lost a session takes no new one: after an eviction, or at the end of their lifetime, sessions
        must not share the TCP connections of those before them.
        """
        shared.sessions -= 1
        if self._current is shared:
            self._current = None
        return shared.sessions == 0
