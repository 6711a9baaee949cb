"""Redis behind Sentinel: connections to the server that has the wanted role now."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias

from pool_core import Verdict
from pool_core.adapters import ErrorTable, dropping_on_failure, judge
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, ReadOnlyError, RedisError, ResponseError

from ._internals import LeasedRedis, Pin, TrackedConnection, is_broken
from ._manager import VERDICTS, RedisConnectionManager, WrongServer, presentable
from ._settings import Address, Settings, check_pairs, named, read_several

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pool_core import Pool

Role: TypeAlias = Literal["master", "replica"]

_SENTINEL_PORT: Final = 26379
_FORM: Final = "redis+sentinel://user:password@sentinel:26379,sentinel/service/0"
_PATIENCE: Final = 1.0  # seconds for a sentinel to answer: there are others
_SILENCE: Final = 30.0
_OF_REPLICAS: Final = ErrorTable(
    (ReadOnlyError, Verdict.KEEP, "READONLY: it is a replica, as it should be"),
    (MasterDownError, Verdict.CLOSE, "MASTERDOWN: the next connection takes a replica that is in step"),
)
_AWAY: Final = frozenset({"s_down", "o_down", "disconnected"})


class MasterAwayError(RedisConnectionError):
    """The sentinels know the service, but no server of it that can be used now. It may pass."""


class SentinelSettings(Settings):
    """The settings for the servers, and what to ask the sentinels for."""

    __slots__ = ()

    beside: ClassVar[frozenset[str]] = frozenset({"sentinels", "service", "role"})

    def read(self, url: str) -> dict[str, Any]:
        """Turn a URL into options."""
        sentinels, path, options = read_several(url, "sentinel", _FORM, _SENTINEL_PORT)
        service, slash, number = path.partition("/")
        if slash and number:
            if not (number.isascii() and number.isdecimal()):
                raise ValueError(f"the URL's path is /service or /service/db: write {_FORM}")
            options.setdefault("db", int(number))
        return {**options, "sentinels": sentinels, **({"service": service} if service else {})}

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse what the sentinels decide."""
        for name in ("host", "port", "path"):
            if name in values:
                raise ValueError(f"{name} is not for Sentinel, which says where the server is; give it sentinels")
        check_pairs("sentinels", values.get("sentinels", ()))
        if (role := values.get("role", "master")) not in ("master", "replica"):
            raise ValueError(f"role={role!r}: allowed are 'master' and 'replica'")
        super().check(values)

    @property
    def sentinels(self) -> list[Address]:
        """Where the sentinels are."""
        return check_pairs("sentinels", self.values["sentinels"])

    @property
    def service(self) -> str:
        """The name under which they know the servers."""
        return str(self.values.get("service", "mymaster"))

    @property
    def role(self) -> str:
        """Whom to connect to."""
        return str(self.values.get("role", "master"))

    def place(self) -> str:
        """Say where they lead."""
        names = ", ".join(f"{host}:{port}" for host, port in self.sentinels)
        return f"the {self.role} of {self.service!r} by {names}"


class RedisSentinelConnectionManager(RedisConnectionManager):
    """Opens connections to the master of a service (or to a replica), as the sentinels name it now.

    The lease is that of :class:`RedisConnectionManager`. Each connect asks the sentinels, one after the other, until
    one knows; then the server itself must say that it has the role, so that nobody writes to a demoted master. When a
    connect finds another master than before, all connections to the old one count as broken from then on.

    Args:
        url: ``redis+sentinel://[[user]:password@]sentinel[:26379],sentinel.../service[/db][?options]``, or
            ``rediss+sentinel://`` where the Redis servers speak TLS. The login is that of the Redis servers.
        sentinels: pairs of host and port, instead of the URL's.
        service: the name under which the sentinels know the master; instead of the URL's. Default ``"mymaster"``.
        role: ``"master"``, or ``"replica"``: one that is up, in turn; while there is none, the master.
        sentinel_options: redis-py's connection options for the sentinels themselves (``password``, ``ssl``, ...), with
            ``socket_timeout`` and ``socket_connect_timeout`` of 1 s by default.
        address_remap: given the address that the sentinels name, returns the one that can be reached from here, as
            redis-py's option for clusters (servers in containers, behind a NAT).
        options: redis-py's connection options for the Redis servers.

    Raises:
        ValueError, TypeError: bad settings; never with a word of the URL.
    """

    _settings: SentinelSettings

    def __init__(
        self,
        url: str | None = None,
        /,
        *,
        sentinels: Iterable[Address] | None = None,
        service: str | None = None,
        role: Role | None = None,
        sentinel_options: Mapping[str, Any] | None = None,
        address_remap: Callable[[Address], Address] | None = None,
        **options: Any,
    ) -> None:
        self._generation: Address | None = None
        self._turn = random.randrange(1000)  # among replicas, so that not all processes begin with the same one
        self._remap = address_remap or _as_it_is
        patience = {"socket_timeout": _PATIENCE, "socket_connect_timeout": _PATIENCE}
        self._use(
            SentinelSettings(url, _given(sentinels, service, role, options)),
            Settings(None, {**patience, **named(sentinel_options or {})}),
        )

    def update(
        self,
        url: str | None = None,
        /,
        *,
        sentinels: Iterable[Address] | None = None,
        service: str | None = None,
        role: Role | None = None,
        sentinel_options: Mapping[str, Any] | None = None,
        address_remap: Callable[[Address], Address] | None = None,
        **options: Any,
    ) -> None:
        """Use other settings for new connections, as :meth:`RedisConnectionManager.update`."""
        self._use(
            self._settings.updated(url, _given(sentinels, service, role, options)),
            self._sentinel_settings.updated(None, named(sentinel_options or {})),
        )
        self._remap = address_remap or self._remap

    def _use(self, settings: SentinelSettings, sentinel_settings: Settings) -> None:
        self._settings, self._sentinel_settings = settings, sentinel_settings
        self._sentinels: list[Address] = settings.sentinels

    @property
    def _service(self) -> str:
        return self._settings.service

    async def connect(self) -> LeasedRedis:
        """Ask the sentinels, connect, and make sure of the role.

        Raises:
            WrongServer: no sentinel knows the service, or what is called a sentinel is none.
            MasterAwayError: the sentinels know it and say that it is down, or it says that it has another role.
            redis.RedisError: no sentinel answers, or connecting failed.
        """
        address, role = await self._ask()
        settings = self._settings
        connection = await settings.connection(host=address[0], port=address[1])
        client = await self._open(connection, settings)
        # _open has made sure of an answer; from here on every failure must drop the connection, too.
        with dropping_on_failure(connection.drop):
            found = await _role_of(connection)
            connection.dirt = 0
            if found != role:
                raise MasterAwayError(
                    f"{address[0]}:{address[1]} is a {found}, though the sentinels call it the {role} of "
                    f"{self._service!r}: a failover may be under way"
                )
        connection.role, connection.writes = role, role == "master"
        if role == "master" and self._generation != address:
            self._generation = address
        return client

    async def is_valid(self, client: LeasedRedis, /) -> bool:
        """Ask the server for its role: it answers, and still has the one that was wanted."""
        connection = client.tracked
        if not connection.is_connected:
            return False
        dirt = connection.dirt
        valid = await _role_of(connection) == connection.role
        connection.dirt = dirt
        return valid

    def has_broken(self, client: LeasedRedis, /) -> bool:
        """As the base class's; and the old master's connections are broken as soon as another master is known."""
        connection = client.tracked
        return is_broken(client) or (
            connection.writes and (connection.host, connection.port) != self._generation  # type: ignore[attr-defined]
        )

    def judge(self, exc: Exception, client: LeasedRedis, /) -> Verdict:
        """As the base class's; but a replica refuses writes by its nature, and without its master another one serves."""
        if client.tracked.writes:
            return super().judge(exc, client)
        return judge(exc, lambda error: _OF_REPLICAS(error) or VERDICTS(error))

    async def follow(self, pool: Pool[LeasedRedis]) -> None:
        """Listen to the sentinels and evict the old generation the moment they name another master. Never returns.

        Without it a failover is noticed when a connection breaks or is tested. Run it as a task beside the pool::

            following = asyncio.create_task(manager.follow(pool))

        It goes on with another sentinel when one is lost; cancel it before the pool is closed.
        """
        while True:
            for host, port in list(self._sentinels):
                with contextlib.suppress(RedisError, OSError):
                    await self._listen(host, port, pool)
            await asyncio.sleep(1)  # none of them answers

    async def _listen(self, host: str, port: int, pool: Pool[LeasedRedis]) -> None:
        connection = await self._sentinel_settings.connection(host=host, port=port)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            connection.seal()
            listener = PubSub(Pin(connection, connection.encoder, {}))  # type: ignore[arg-type]
            await listener.subscribe("+switch-master")
            # What changed while nobody listened.
            address, role = await self._ask()
            if role == "master":
                self._switch(address, pool)
            # A sentinel that says nothing may be unreachable: after a while another one is listened to.
            while (message := await listener.get_message(timeout=_SILENCE)) is not None:
                if message["type"] == "message":
                    words = _decoded(message["data"]).split()  # service, old host, old port, new host, new port
                    if words[0] == self._service:
                        self._switch(self._remap((words[3], int(words[4]))), pool)
        finally:
            connection.drop()

    def _switch(self, address: Address, pool: Pool[LeasedRedis]) -> None:
        if self._generation not in (None, address):
            self._generation = address
            pool.evict()

    async def _ask(self) -> tuple[Address, Role]:
        """Where to connect, and what is to be expected there, from the first sentinel that knows."""
        unknown: list[str] = []
        away: list[str] = []
        silent: list[tuple[str, Exception]] = []
        for place in list(self._sentinels):
            name = f"{place[0]}:{place[1]}"
            connection = await self._sentinel_settings.connection(host=place[0], port=place[1])
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                found = await self._look(connection)
            except ResponseError as error:
                unknown.append(f"{name}: {error}")
                continue
            except (RedisError, OSError) as error:
                silent.append((name, presentable(error, connection.spoken, name)))
                continue
            finally:
                connection.drop()
            if found is None:
                away.append(name)
                continue
            # The one that answered is asked first the next time: the others may be unreachable.
            self._sentinels = [place, *(other for other in self._sentinels if other != place)]
            return found
        silence = "; ".join(f"{name}: {error}" for name, error in silent)
        if away:
            raise MasterAwayError(f"{', '.join(away)}: the sentinels say that the master of {self._service!r} is down")
        if unknown:
            raise WrongServer(
                f"no sentinel knows a service {self._service!r} ({'; '.join(filter(None, [*unknown, silence]))})"
            )
        # When none of them will ever answer (a wrong password), waiting does not help: is_transient looks at the cause.
        lasting = [error for _, error in silent if not self.is_transient(error)]
        cause = lasting[0] if len(lasting) == len(silent) else None
        raise RedisConnectionError(f"no sentinel answers ({silence})") from cause

    async def _look(self, connection: TrackedConnection) -> tuple[Address, Role] | None:
        if self._settings.role == "replica":
            found = await _reply(connection, "SENTINEL", "REPLICAS", self._service)
            up = [facts for facts in map(_facts, found) if _is_up(facts) and facts.get("master-link-status") == "ok"]
            if up:
                self._turn += 1
                chosen = up[self._turn % len(up)]
                return self._remap((chosen["ip"], int(chosen["port"]))), "replica"
        facts = _facts(await _reply(connection, "SENTINEL", "MASTER", self._service))
        return (self._remap((facts["ip"], int(facts["port"]))), "master") if _is_up(facts) else None


def _given(
    sentinels: Iterable[Address] | None, service: str | None, role: str | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    own = {"sentinels": None if sentinels is None else list(sentinels), "service": service, "role": role}
    return {**{name: value for name, value in own.items() if value is not None}, **named(options)}


def _as_it_is(address: Address) -> Address:
    return address


async def _reply(connection: TrackedConnection, *command: str) -> Any:
    await connection.send_command(*command, check_health=False)
    return await connection.read_response()


async def _role_of(connection: TrackedConnection) -> str:
    # HELLO may be said by every user, unlike ROLE, and without an argument it changes nothing.
    hello = await _reply(connection, "HELLO")
    role = _facts(hello).get("role", "server of an unknown role")
    return "replica" if role == "slave" else role


def _facts(reply: Any) -> dict[str, str]:
    """A map: RESP3 has them, RESP2 lists names and values in turn."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=False)
    return {_decoded(name): _decoded(value) for name, value in pairs}


def _is_up(facts: Mapping[str, str]) -> bool:
    return not _AWAY & set(facts.get("flags", "").split(","))


def _decoded(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
