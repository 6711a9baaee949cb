"""Redis behind Sentinel: connections to the server that has the wanted role now."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from ._connection import LeasedRedis, Pin, TrackedConnection, is_broken
from ._manager import RedisConnectionManager, WrongServer, presentable
from ._settings import Settings, hosts_from_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pool_core import Pool

Role: TypeAlias = Literal["master", "replica"]
Address: TypeAlias = tuple[str, int]

_SENTINEL_PORT: Final = 26379
_PATIENCE: Final = 1.0  # seconds for a sentinel to answer: there are others
_SILENCE: Final = 30.0
_AWAY: Final = frozenset({"s_down", "o_down", "disconnected"})


class MasterAwayError(RedisConnectionError):
    """The sentinels know the service, but no server of it that can be used now. It may pass."""


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

    _sentinels: list[Address]
    _service: str
    _role: str
    _sentinel_settings: Settings

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
        self._configure(url, sentinels, service, role, sentinel_options, options)

    def __repr__(self) -> str:
        names = ", ".join(f"{host}:{port}" for host, port in self._sentinels)
        return f"<{type(self).__name__} of the {self._role} of {self._service!r} by {names}>"

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
        if url is not None:
            self._configure(url, sentinels, service, role, sentinel_options, options)
            self._remap = address_remap or self._remap
            return
        _refuse_places(options)
        settings = self._settings.merged(options)
        sentinel_settings = self._sentinel_settings.merged(sentinel_options or {})
        self._choose(sentinels or self._sentinels, service or self._service, role or self._role)
        self._settings, self._sentinel_settings = settings, sentinel_settings
        self._remap = address_remap or self._remap

    async def connect(self) -> LeasedRedis:
        """Ask the sentinels, connect, and make sure of the role.

        Raises:
            WrongServer: no sentinel knows the service, or what is called a sentinel is none.
            MasterAwayError: the sentinels know it and say that it is down, or it says that it has another role.
            redis.RedisError: no sentinel answers, or connecting failed.
        """
        address, role = await self._ask()
        settings = self._settings
        connection = settings.connection(host=address[0], port=address[1])
        client = await self._open(connection, settings)
        # _open has made sure of an answer; from here on every failure must drop the connection, too.
        try:
            found = await _role_of(connection)
            connection.dirt = 0
            if found != role:
                raise MasterAwayError(
                    f"{address[0]}:{address[1]} is a {found}, though the sentinels call it the {role} of "
                    f"{self._service!r}: a failover may be under way"
                )
        except BaseException:
            connection.drop()
            raise
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
        connection = self._sentinel_settings.connection(host=host, port=port)
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
            connection = self._sentinel_settings.connection(host=place[0], port=place[1])
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
            raise MasterAwayError(f"{', '.join(away)}: the master of {self._service!r} is down, by the sentinels' word")
        if unknown:
            raise WrongServer(
                f"no sentinel knows a service {self._service!r} ({'; '.join(filter(None, [*unknown, silence]))})"
            )
        # When none of them will ever answer (a wrong password), waiting does not help: is_transient looks at the cause.
        lasting = [error for _, error in silent if not self.is_transient(error)]
        cause = lasting[0] if len(lasting) == len(silent) else None
        raise RedisConnectionError(f"no sentinel answers ({silence})") from cause

    async def _look(self, connection: TrackedConnection) -> tuple[Address, Role] | None:
        if self._role == "replica":
            found = await _reply(connection, "SENTINEL", "REPLICAS", self._service)
            up = [facts for facts in map(_facts, found) if _is_up(facts) and facts.get("master-link-status") == "ok"]
            if up:
                self._turn += 1
                chosen = up[self._turn % len(up)]
                return self._remap((chosen["ip"], int(chosen["port"]))), "replica"
        facts = _facts(await _reply(connection, "SENTINEL", "MASTER", self._service))
        return (self._remap((facts["ip"], int(facts["port"]))), "master") if _is_up(facts) else None

    def _configure(
        self,
        url: str | None,
        sentinels: Iterable[Address] | None,
        service: str | None,
        role: str | None,
        sentinel_options: Mapping[str, Any] | None,
        options: dict[str, Any],
    ) -> None:
        found: dict[str, Any] = {}
        if url is not None:
            hosts, path, found = hosts_from_url(url, "sentinel")
            named, _, number = path.partition("/")
            if number and not number.isdecimal():
                raise ValueError("the path of a redis+sentinel URL is /service or /service/db")
            sentinels = sentinels or [(host, port or _SENTINEL_PORT) for host, port in hosts]
            service = service or named
            if number:
                found.setdefault("db", int(number))
            role = role or found.pop("role", None)
        _refuse_places(options)
        settings = Settings({**found, **options})
        patience = {"socket_timeout": _PATIENCE, "socket_connect_timeout": _PATIENCE}
        sentinel_settings = Settings({**patience, **(sentinel_options or {})})
        self._choose(sentinels or (), service or "mymaster", role or "master")
        self._settings, self._sentinel_settings = settings, sentinel_settings

    def _choose(self, sentinels: Iterable[Address], service: str, role: str) -> None:
        chosen = [(host, int(port)) for host, port in sentinels]
        if not chosen:
            raise ValueError("sentinels: at least one pair of host and port, in the URL or as an argument")
        if role not in ("master", "replica"):
            raise ValueError(f"role={role!r}: allowed are 'master' and 'replica'")
        self._sentinels, self._service, self._role = chosen, service, role


def _refuse_places(options: Mapping[str, Any]) -> None:
    for name in ("host", "port", "path", "unix_socket_path"):
        if name in options:
            raise ValueError(f"{name} is not for Sentinel, which says where the server is; give it sentinels")


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
