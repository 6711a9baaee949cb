"""The two kinds of managers, for either driver: of sessions of one client, or of clients."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar, cast

import pymongo
from pool_core import ReplaceConnection, Verdict
from pool_core.adapters import dropping_on_failure, is_transient, judge
from pymongo.client_session import TransactionOptions  # type: ignore[attr-defined]
from pymongo.errors import InvalidOperation, PyMongoError, ServerSelectionTimeoutError

from . import _internals
from ._errors import VERDICTS, passes
from ._settings import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from ._driver import Driver

__all__ = ["ClientManager", "SessionManager"]

Client = TypeVar("Client")
Session = TypeVar("Session")

_LOOK_EVERY: Final = 0.05  # seconds


class _Manager(Generic[Client, Session]):
    """What both kinds share: settings, the ping, and the judgement of errors."""

    _driver: ClassVar[Driver[Any, Any]]
    _defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, url: str | None, ping_timeout: float, options: Mapping[str, Any]) -> None:
        if isinstance(ping_timeout, bool) or not isinstance(ping_timeout, (int, float)):
            raise TypeError(f"ping_timeout is of type {type(ping_timeout).__name__}: give seconds, as a number")
        if not 0 < ping_timeout < math.inf:
            raise ValueError(f"ping_timeout={ping_timeout!r}: give seconds, more than 0 and finite")
        self._ping_timeout = float(ping_timeout)
        given = {name.lower() for name in options}
        defaults = {name: value for name, value in self._defaults.items() if name.lower() not in given}
        self._settings = Settings(url, {**defaults, **options}, self._driver.make)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._settings.place()}>"

    def update(self, url: str | None = None, **options: Any) -> None:
        """Use other settings for what is opened from now on; what is open stays as it is. ``pool.evict()`` retires it.

        Args:
            url: as for the manager itself; None: the present one stays.
            options: likewise, of the driver's client; those that are not named stay.

        Raises:
            TypeError, ValueError: as the manager itself; the old settings stay in force then.
        """
        self._settings = self._settings.updated(url, options)

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell whether the same connect may succeed later.

        Refused credentials, settings that the driver or the server does not take, and a certificate that does not
        verify are not transient. All else is: also a name that DNS does not know, since DNS fails as servers do.
        """
        return is_transient(exc, passes)

    def judge(self, exc: Exception, conn: Session | Client, /) -> Verdict:
        """Tell what an error means for connections: a primary that has stepped down behind one address retires all.

        Where the client knows the members of a replica set, or asks a router, it finds the new primary by itself.
        """
        verdict = judge(exc, VERDICTS)
        client = self._client_of(conn)
        if verdict is not Verdict.RETIRE_ALL:
            return verdict
        if cast("Any", client).topology_description.topology_type_name != "Single":
            return Verdict.KEEP
        self._retire(client)
        return verdict

    def _client_of(self, conn: Session | Client) -> Client:
        raise NotImplementedError

    def _retire(self, client: Client) -> None:
        """Let no new connection use this client."""

    async def _new_client(self) -> Client:
        arguments, options = await self._settings.arguments()
        try:
            return cast("Client", self._driver.make(*arguments, **options))
        except (PyMongoError, ValueError, TypeError) as error:
            # The settings passed the driver's checks with placeholders, so this is about a credential: not quoted.
            name = type(error).__name__
        raise ValueError(
            f"the driver refuses a credential ({name}): check the user name, the password, and their encoding"
        )

    async def _prove(self, client: Client) -> None:
        """Ping, within ``ping_timeout``, any server that the client's own read preference allows."""
        some = cast("Any", client)
        await self._driver.open(client)
        try:
            with pymongo.timeout(self._ping_timeout):
                await some.admin.command("ping", read_preference=some.read_preference)
        except ServerSelectionTimeoutError as error:
            servers = some.topology_description.server_descriptions().values()
            raise error from next((server.error for server in servers if server.error is not None), None)
        except BaseException as error:
            self._driver.tidy(client, error)
            raise

    async def _prove_new(self, client: Client) -> None:
        """Ping for a connect: give up as soon as every server has been asked and none suits.

        The driver would go on asking. Here the pool does so, which knows the cause then and can tell it to whoever
        waits for less than ``ping_timeout``.
        """
        loop, began = asyncio.get_running_loop(), time.monotonic()
        scope = asyncio.timeout(None)
        alarm: asyncio.TimerHandle

        def look() -> None:
            nonlocal alarm
            if self._suits_nobody(client, began):
                scope.reschedule(loop.time())
            else:
                alarm = loop.call_later(_LOOK_EVERY, look)

        alarm = loop.call_later(_LOOK_EVERY, look)
        try:
            async with scope:
                return await self._prove(client)
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            alarm.cancel()
        topology = cast("Any", client).topology_description
        servers = topology.server_descriptions()
        errors = {address: server.error for address, server in servers.items() if server.error is not None}
        reasons = ", ".join(f"{host}:{port}: {error}" for (host, port), error in errors.items()) or repr(topology)
        raise ServerSelectionTimeoutError(
            f"no server can be used for reads by the client's read preference: {reasons}"
        ) from next(iter(errors.values()), None)

    def _suits_nobody(self, client: Client, began: float) -> bool:
        """Whether each server was asked since then, or is known, and none can be used for the ping."""
        some = cast("Any", client)
        topology = some.topology_description
        servers = topology.server_descriptions().values()
        asked = all(
            server.server_type_name != "Unknown" or (server.error is not None and server.last_update_time > began)
            for server in servers
        )
        return asked and bool(servers) and not topology.has_readable_server(some.read_preference)

    def _knows_no_server(self, client: Client) -> bool:
        # A client that has not been used yet knows no server either, and no error.
        topology = cast("Any", client).topology_description
        return not topology.has_known_servers and any(
            server.error is not None for server in topology.server_descriptions().values()
        )

    async def _close_client(self, client: Client) -> None:
        some = cast("Any", client)
        if not some.topology_description.has_readable_server(some.read_preference):
            _internals.abandon(self._driver.core(client))  # else the driver waits for a server to end its sessions on
        with pymongo.timeout(self._ping_timeout):  # it talks to the server, and would wait for a hung one for long
            await self._driver.close(client)


class _Shared(Generic[Client]):
    """A client, and the number of sessions that live on it."""

    __slots__ = ("client", "loop", "sessions")

    def __init__(self, client: Client) -> None:
        self.client = client
        self.loop = asyncio.get_running_loop()
        self.sessions = 0

    def __repr__(self) -> str:  # a client's own repr shows its options
        return f"<a client of {self.sessions} sessions>"


class _Lent(Generic[Client, Session]):
    """What the manager knows of one session."""

    __slots__ = ("_session", "left", "shared", "test_transaction", "understood")

    def __init__(self, session: Session, shared: _Shared[Client], *, understood: bool) -> None:
        self._session = session  # keeps the id() alive that it is found by
        self.shared = shared
        self.left = False
        self.understood = understood
        self.test_transaction: object = None

    def __repr__(self) -> str:
        return f"<a session of {self.shared!r}>"


class SessionManager(_Manager[Client, Session]):
    """Manages sessions of one client, which exists as long as any of its sessions."""

    def __init__(
        self,
        url: str | None = None,
        *,
        causal_consistency: bool = False,
        default_transaction_options: TransactionOptions | None = None,
        snapshot: bool = False,
        test_transaction: bool = False,
        ping_timeout: float = 3.0,
        **options: Any,
    ) -> None:
        """Check the settings; nothing is opened.

        Args:
            url: a ``mongodb://`` or ``mongodb+srv://`` URL; None: the driver's default (localhost), or ``host=``.
            causal_consistency: of the sessions. Off by default, unlike in the driver: many borrowers use a session in
                turn, and their reads need not wait for each other's writes. When on, it holds within one lease.
            default_transaction_options: of the sessions.
            snapshot: of the sessions; each lease takes a snapshot of its own.
            test_transaction: begin a transaction in each new session that is never committed: the next lease sees what
                one lease wrote, and it is gone when the session is closed. For tests; it needs a replica set or a
                sharded cluster, and the server ends it after ``transactionLifetimeLimitSeconds`` (60).
            ping_timeout: seconds that a ping or a close may take, server selection included.
            options: for the driver's client, as they are. ``username`` and ``password`` may also be callables, sync or
                async: they are called for each new client.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: a URL or an option that the driver does not take, or options that exclude each other.
        """
        flags = {
            "causal_consistency": causal_consistency,
            "snapshot": snapshot,
            "test_transaction": test_transaction,
        }
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise TypeError(f"{name}={flag!r}: give True or False")
        if causal_consistency and snapshot:
            raise ValueError("snapshot=True and causal_consistency=True exclude each other: choose one")
        if test_transaction and snapshot:
            raise ValueError("snapshot=True and test_transaction=True exclude each other: choose one")
        if not isinstance(default_transaction_options, TransactionOptions | None):
            raise TypeError(
                f"default_transaction_options is of type {type(default_transaction_options).__name__}:"
                " give a pymongo.client_session.TransactionOptions"
            )
        super().__init__(url, ping_timeout, options)
        self._test_transaction = test_transaction
        self._session_options = {
            "causal_consistency": causal_consistency,
            "default_transaction_options": default_transaction_options,
            "snapshot": snapshot,
        }
        self._current: _Shared[Client] | None = None
        self._lent: dict[int, _Lent[Client, Session]] = {}

    def update(self, url: str | None = None, **options: Any) -> None:
        """Use other settings for a new client, which new sessions join; the old one stays for its own sessions.

        Args:
            url: as for the manager itself; None: the present one stays.
            options: likewise, of the driver's client; those that are not named stay.

        Raises:
            TypeError, ValueError: as the manager itself; the old settings stay in force then.
        """
        super().update(url, **options)
        self._current = None

    async def connect(self) -> Session:
        """Start a session on the shared client, and prove with a ping that there is a server.

        Raises:
            PyMongoError: the driver's own; ServerSelectionTimeoutError says for each server why it was not chosen.
            ValueError: a credential that the driver does not take, or ``test_transaction`` on a server without
                transactions.
        """
        shared = await self._join()
        with dropping_on_failure(lambda: self._leave_and_drop(shared)):
            await self._prove_new(shared.client)
            session = await self._driver.start_session(shared.client, self._session_options)
            core = self._driver.core
            understood = _internals.understood(core(shared.client), core(session))
            lent = _Lent(session, shared, understood=understood)
            if self._test_transaction:
                _require_transactions(shared.client)
                await self._driver.begin(session)
                lent.test_transaction = _internals.transaction_of(core(session))
        self._lent[id(session)] = lent
        return cast("Session", session)

    async def is_valid(self, session: Session, /) -> bool:
        """Ping, on the session's client and beside the session, which may be in a transaction."""
        await self._prove(self._client_of(session))
        return True

    def has_broken(self, session: Session, /) -> bool:
        """Tell whether it has ended, was hit by a network error, or lives on a client that is closed or sees no server.

        Also broken is a session whose test transaction is over.
        """
        some = cast("Any", session)
        client = self._client_of(session)
        core = self._driver.core
        lent = self._lent.get(id(session))
        if some.has_ended or _internals.is_closed(core(client)) or self._knows_no_server(client):
            return True
        if lent is None or lent.understood:
            if self._driver.is_dirty(session):
                return True
            if lent is not None and lent.test_transaction is not None:
                return not some.in_transaction or _internals.transaction_of(core(session)) is not lent.test_transaction
        return False

    def reset(self, session: Session, /) -> Awaitable[None] | None:
        """Abort an open transaction; reset clocks and snapshot. Only the abort is a round trip.

        Raises:
            ConnectionError: the transaction could not be aborted.
            NotImplementedError: this package does not know the driver's release, so the session is not used again.
        """
        lent = self._lent.get(id(session))
        if lent is not None and not lent.understood:
            raise NotImplementedError(
                f"PyMongo {pymongo.version} has moved what is needed to reset a session: each is closed after its use"
            )
        if lent is not None and lent.test_transaction is not None:
            return None  # the next lease works in the same transaction; has_broken has checked that it is still open
        wiping = self._driver.wipe(session, self._session_options)
        return None if wiping is None else self._wiped(wiping)

    async def _wiped(self, wiping: Awaitable[None]) -> None:
        with pymongo.timeout(self._ping_timeout):
            await wiping

    async def close(self, session: Session, /) -> None:
        """End the session, which aborts an open transaction. The last one closes the client."""
        lent = self._lent.get(id(session))
        with (
            pymongo.timeout(self._ping_timeout),
            contextlib.suppress(InvalidOperation),
        ):  # the borrower closed the client
            await cast("Any", session).end_session()
        if lent is None:  # it was made elsewhere: so was its client
            return
        last = not lent.left and self._leave(lent.shared)
        lent.left = True
        if last:
            await self._close_client(lent.shared.client)
        self._lent.pop(id(session), None)

    def terminate(self, session: Session, /) -> None:
        """End the session, and send nothing to the server; with the last one the client's sockets are dropped.

        The server keeps a transaction left open for ``transactionLifetimeLimitSeconds``.
        """
        _internals.end(self._driver.core(session))
        lent = self._lent.pop(id(session), None)
        if lent is None:
            return
        if not lent.left:
            lent.left = True
            self._leave(lent.shared)
        if lent.shared.sessions == 0:
            self._driver.drop(lent.shared.client)

    async def _join(self) -> _Shared[Client]:
        """The shared client, with a place on it for one more session."""
        if not self._usable(self._current):
            settings = self._settings
            client = await self._new_client()
            # Another connect, or an update, may have come while the credentials were fetched.
            if settings is not self._settings or self._usable(self._current):
                return await self._join()
            self._current = _Shared(client)
        shared = cast("_Shared[Client]", self._current)
        shared.sessions += 1
        return shared

    def _usable(self, shared: _Shared[Client] | None) -> bool:
        return (
            shared is not None
            and shared.loop is asyncio.get_running_loop()
            and not _internals.is_closed(self._driver.core(shared.client))
        )

    def _leave(self, shared: _Shared[Client]) -> bool:
        """True: that was the last session of the client, and no new session can join it."""
        shared.sessions -= 1
        if shared.sessions == 0 and self._current is shared:
            self._current = None
        return shared.sessions == 0

    def _leave_and_drop(self, shared: _Shared[Client]) -> None:
        if self._leave(shared):
            self._driver.drop(shared.client)

    def _client_of(self, conn: Session | Client) -> Client:
        return cast("Client", cast("Any", conn).client)

    def _retire(self, client: Client) -> None:
        if self._current is not None and self._current.client is client:
            self._current = None


class ClientManager(_Manager[Client, Session]):
    """Manages clients, each with one connection and monitors of its own."""

    _defaults: ClassVar[Mapping[str, Any]] = {"maxPoolSize": 1}

    def __init__(self, url: str | None = None, *, ping_timeout: float = 3.0, **options: Any) -> None:
        """Check the settings; nothing is opened.

        Args:
            url: a ``mongodb://`` or ``mongodb+srv://`` URL; None: the driver's default (localhost), or ``host=``.
            ping_timeout: seconds that a ping or a close may take, server selection included.
            options: for the driver's client, as they are; ``maxPoolSize`` is 1 unless given here. ``username`` and
                ``password`` may also be callables, sync or async: they are called for each new client.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: a URL or an option that the driver does not take.
        """
        super().__init__(url, ping_timeout, options)

    async def connect(self) -> Client:
        """Make a client, and prove with a ping that there is a server.

        Raises:
            PyMongoError: the driver's own; ServerSelectionTimeoutError says for each server why it was not chosen.
            ValueError: a credential that the driver does not take.
        """
        client = await self._new_client()
        with dropping_on_failure(lambda: self._driver.drop(client)):
            await self._prove_new(client)
        return client

    async def is_valid(self, client: Client, /) -> bool:
        """Ping. It waits while the client's one connection is in use."""
        await self._prove(client)
        return True

    def has_broken(self, client: Client, /) -> bool:
        """Tell whether it is closed, or sees no server at this moment."""
        return _internals.is_closed(self._driver.core(client)) or self._knows_no_server(client)

    def reset(self, client: Client, /) -> Awaitable[None] | None:
        """Return None, or wait for an operation that is still under way.

        The borrower must end the sessions that it has started.
        """
        core = self._driver.core(client)
        if not _internals.understood(core):
            raise NotImplementedError(
                f"PyMongo {pymongo.version} has moved what tells a busy client: each is closed after its use"
            )
        return self._free(client) if _internals.is_busy(core) else None

    async def _free(self, client: Client) -> None:
        await self._prove(client)
        if _internals.is_busy(self._driver.core(client)):
            # As after a cancel: no fault of the server's, and no reason for a warning.
            raise ReplaceConnection("the last borrower's operation still runs on this client")

    async def close(self, client: Client, /) -> None:
        """End the client's server sessions, and close it."""
        await self._close_client(client)

    def _client_of(self, conn: Session | Client) -> Client:
        return cast("Client", conn)

    def terminate(self, client: Client, /) -> None:
        """Drop the sockets, send nothing to the server, and end the monitors."""
        self._driver.drop(client)


def _require_transactions(client: Any) -> None:
    kinds = {server.server_type_name for server in client.topology_description.server_descriptions().values()}
    if not kinds & {"RSPrimary", "RSSecondary", "Mongos", "LoadBalancer"}:
        raise ValueError(
            f"test_transaction=True needs a replica set or a sharded cluster; this server is of type"
            f" {', '.join(sorted(kinds))}: start mongod with --replSet, or leave the option out"
        )
