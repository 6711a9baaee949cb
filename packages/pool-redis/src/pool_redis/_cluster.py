"""Redis Cluster: the lease is a whole cluster client, with at most one connection to each node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from pool_core.adapters import Settings as BaseSettings
from pool_core.adapters import dropping_on_failure
from redis._parsers import AsyncCommandsParser
from redis.asyncio.cluster import ClusterNode, ClusterPipeline, RedisCluster
from redis.credentials import UsernamePasswordCredentialProvider
from redis.exceptions import ClusterDownError, NoPermissionError, RedisClusterException, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ._internals import TrackedConnection, Turns, is_out_of_step, tracked
from ._manager import WrongServer, is_transient, judge, pong, presentable
from ._settings import Address, Settings, check_pairs, named, read_several

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from redis.asyncio.retry import Retry

_NODE_PORT: Final = 6379
_FORM: Final = "redis+cluster://user:password@node:6379,node"
_FOREIGN: Final = {
    "startup_nodes": "give nodes=[(host, port), ...], or a redis+cluster:// URL",
    "max_connections": "a lease has one connection to each node",
    "db": "a cluster has only database 0",
    "path": "a cluster is reached over TCP",
    "connection_class": "a cluster client chooses it itself",
    "redis_connect_func": "a cluster client needs it itself",
}


class _Commands(AsyncCommandsParser):
    """What COMMAND says, asked once for all leases of a manager: the answer has 200 kB, and never changes."""

    def __init__(self, client: LeasedRedisCluster, known: dict[str, Any]) -> None:
        super().__init__()
        self._client = client
        self._known = known

    async def initialize(self, node: ClusterNode | None = None) -> None:
        if node is not None:
            self.node = node
        if node is None or not self._known:  # or redis-py met a command that is not known
            answer = await self._client.ask_any("COMMAND")
            self._known.update((name.lower(), facts) for name, facts in answer.items())
        self.commands = self._known


class _Pipeline(ClusterPipeline):
    """Takes its turn on the lease's connections, as each command does."""

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        client = self.cluster_client
        if not isinstance(client, LeasedRedisCluster):
            return await super().execute(*args, **kwargs)
        async with client.turns:
            return await super().execute(*args, **kwargs)


class LeasedRedisCluster(RedisCluster):
    """The client that a lease yields: redis-py's own cluster client, with at most one connection to each node.

    Several tasks may use it: they take turns. It follows MOVED and ASK, slots that migrate and nodes that fail.

    Attributes:
        sockets: the connections that are or were open, of whatever node.
        spoilt: the client itself was changed, so it must not be used again.
        closed: the client must not open another socket, also if redis-py retries.
    """

    def __init__(self, known_commands: dict[str, Any], **options: Any) -> None:
        self.sockets: list[TrackedConnection] = []
        self.spoilt = self.closed = False
        self.turns = Turns()
        super().__init__(**options, max_connections=1)
        plain = self.connection_kwargs["connection_class"]
        assert isinstance(plain, type)
        connection_class = tracked(plain)

        def connection(**kwargs: Any) -> TrackedConnection:
            made = connection_class(**kwargs)
            made.owner = self
            made.sealed = self.closed
            return made

        # redis-py makes connections wherever it learns of a node; all of them are to be seen.
        self.connection_kwargs["connection_class"] = connection
        for node in self.nodes_manager.startup_nodes.values():
            node.connection_class = connection  # type: ignore[assignment]
        self.commands_parser = _Commands(self, known_commands)

    def opened(self, connection: TrackedConnection, /) -> None:
        """Know all sockets."""
        self.sockets = [other for other in self.sockets if other.is_connected and other is not connection]
        self.sockets.append(connection)

    def failed(self) -> None:
        """After a lost connection redis-py goes on with a new one; this lease is the last of this client."""
        self.spoilt = True

    async def ask_any(self, command: str) -> Any:
        """Ask the nodes, one after the other, until one answers: first those to which a connection is open."""
        manager = self.nodes_manager
        nodes = {id(node): node for node in (*manager.startup_nodes.values(), *manager.nodes_cache.values())}
        last: Exception = ClusterDownError("the cluster has no nodes")
        for node in sorted(nodes.values(), key=lambda node: not any(made.is_connected for made in node._connections)):
            try:
                return await node.execute_command(command)
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                last = error
        raise last

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """As redis-py's, in turn with the other tasks that use this lease."""
        async with self.turns:
            return await super().execute_command(*args, **kwargs)

    def pipeline(self, transaction: Any | None = None, shard_hint: Any | None = None) -> ClusterPipeline:
        """As redis-py's."""
        if shard_hint:
            raise RedisClusterException("shard_hint is deprecated in cluster mode")
        return _Pipeline(self, transaction)  # type: ignore[abstract]  # redis-py's own annotation

    def set_response_callback(self, command: str, callback: Any) -> None:
        """As redis-py's; the lease's client is closed on return, since the callback would serve the next borrower."""
        self.spoilt = True
        super().set_response_callback(command, callback)

    def set_retry(self, retry: Retry) -> None:
        """As redis-py's; the lease's client is closed on return."""
        self.spoilt = True
        super().set_retry(retry)

    def drop(self) -> None:
        """Close all sockets at once."""
        self.spoilt = self.closed = True
        for node in (*self.nodes_manager.nodes_cache.values(), *self.nodes_manager.startup_nodes.values()):
            for made in node._connections:
                made.sealed = True  # type: ignore[attr-defined]
        for connection in self.sockets:
            connection.sealed = True
            connection.drop()
        self._initialize = True  # or redis-py complains when it is collected


class RedisClusterConnectionManager:
    """Opens cluster clients of their own for each lease: at most one connection to each node, made when first needed.

    Args:
        url: ``redis+cluster://[[user]:password@]host[:6379],host...[?options]``, or ``rediss+cluster://`` for TLS. Any
            nodes will do: the others are learnt from them.
        nodes: pairs of host and port, instead of the URL's.
        options: the options of ``redis.asyncio.RedisCluster`` (``password``, ``decode_responses``, ``retry``,
            ``require_full_coverage=True``, ``read_from_replicas``, ``address_remap``, ``socket_timeout=5`` s, ...).
            Refused is what a lease decides: ``max_connections`` and the like.

    Raises:
        ValueError, TypeError: bad settings; never with a word of the URL.
    """

    def __init__(self, url: str | None = None, /, *, nodes: Iterable[Address] | None = None, **options: Any) -> None:
        self._known_commands: dict[str, Any] = {}
        self._settings = ClusterSettings(url, _given(nodes, options))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} by {self._settings.place()}>"

    def update(self, url: str | None = None, /, *, nodes: Iterable[Address] | None = None, **options: Any) -> None:
        """Use other settings for new leases, as :meth:`RedisConnectionManager.update`."""
        self._settings = self._settings.updated(url, _given(nodes, options))

    async def connect(self) -> LeasedRedisCluster:
        """Make a client, let it learn the cluster from the first node that answers, and see that the cluster is up.

        Raises:
            WrongServer: what answers is no node of a cluster.
            redis.ClusterDownError: the cluster says that it is down (not with ``require_full_coverage=False``).
            redis.RedisClusterException: no node answers, or not all slots are served.
            redis.RedisError: credentials are refused, ...
        """
        settings = self._settings
        options = await settings.resolved()
        client = settings.client(options, self._known_commands)
        try:
            with dropping_on_failure(client.drop):
                await client.initialize()
                if options.get("require_full_coverage", True):
                    await self._see_that_it_is_up(client)
                # The nodes that were asked first are asked again when the cluster changes; till then they need no socket.
                served = {id(connection) for node in client.get_nodes() for connection in node._connections}
                for connection in client.sockets:
                    if id(connection) not in served:
                        connection.drop()
                client.spoilt = False  # a node that was down while the others were asked is no fault of this client's
                return client
        except Exception as error:
            failure = _explained(error, tuple(filter(None, [options.get("password")])), settings.place())
            if failure is error:
                raise
        raise failure  # out here, where the error that shows a secret is not its context

    async def is_valid(self, client: LeasedRedisCluster, /) -> bool:
        """PING every node to which a connection is open, all at once; where none is, one node."""
        if client.spoilt:  # a ping would only make new connections
            return False
        sockets = [connection for connection in client.sockets if connection.is_connected]
        if not sockets:
            try:
                return bool(await client.ping(target_nodes=RedisCluster.RANDOM))
            except NoPermissionError:
                return True  # that is an answer, too
        for connection in sockets:
            await connection.send_command("PING", check_health=False)
        return all([await _answered(connection) for connection in sockets])

    def has_broken(self, client: LeasedRedisCluster, /) -> bool:
        """See whether a node's connection is dead, out of step or held on to, or the client was changed. No I/O."""
        return (
            client.spoilt
            or client.turns.holds != 0
            or any(map(is_out_of_step, client.sockets))
            or any(len(node._free) != len(node._connections) for node in client.get_nodes())
        )

    def reset(self, client: LeasedRedisCluster, /) -> None:
        """Close the connections whose session the borrower changed: they are made again when they are needed.

        Always None: there is nothing to wait for.
        """
        for connection in client.sockets:
            if connection.dirt:
                connection.drop()

    async def close(self, client: LeasedRedisCluster, /) -> None:
        """Close all connections."""
        try:
            for connection in client.sockets:
                await connection.disconnect()
        finally:
            client.drop()

    def terminate(self, client: LeasedRedisCluster, /) -> None:
        """Drop all sockets."""
        client.drop()

    is_transient = staticmethod(is_transient)

    judge = staticmethod(judge)

    async def _see_that_it_is_up(self, client: LeasedRedisCluster) -> None:
        facts = await client.ask_any("CLUSTER INFO")
        if facts.get("cluster_state") != "ok":
            raise ClusterDownError(
                f"the cluster is down: cluster_state is {facts.get('cluster_state')}, "
                f"{facts.get('cluster_slots_ok')} of 16384 slots are served"
            )


async def _answered(connection: TrackedConnection) -> bool:
    try:
        return await pong(connection)
    except NoPermissionError:
        return True


def _given(nodes: Iterable[Address] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    return {**({} if nodes is None else {"nodes": list(nodes)}), **named(options)}


def _explained(error: Exception, secrets: tuple[str, ...], where: str) -> Exception:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ResponseError) and "cluster support disabled" in str(seen):
            return WrongServer(f"no node of a cluster answers at {where}: cluster support is disabled there")
        seen = seen.__cause__ or seen.__context__
    return presentable(error, secrets, where)


class ClusterSettings(Settings):
    """The options of a cluster client, and its nodes."""

    __slots__ = ()

    beside: ClassVar[frozenset[str]] = frozenset({"nodes"})

    def read(self, url: str) -> dict[str, Any]:
        """Turn a URL into options."""
        nodes, path, options = read_several(url, "cluster", _FORM, _NODE_PORT)
        if path.strip("/") not in ("", "0"):
            raise ValueError(f"the path of a redis+cluster URL is empty: a cluster has only database 0; write {_FORM}")
        return {**options, "nodes": nodes}

    def check(self, values: Mapping[str, Any]) -> None:
        """Let redis-py look at the options: a client that is not initialized does no I/O."""
        BaseSettings.check(self, values)
        check_pairs("nodes", values.get("nodes", ()))
        for name, reason in _FOREIGN.items():
            if values.get(name):
                raise ValueError(f"{name} is not for a lease of a cluster: {reason}")
        try:
            client = self.client(self.harmless(values), {})
            next(iter(client.nodes_manager.startup_nodes.values())).acquire_connection()  # made, not connected
        except TypeError as error:
            raise TypeError(f"redis-py's RedisCluster refuses these settings: {error}") from None
        except (RedisError, ValueError) as error:
            raise ValueError(f"redis-py's RedisCluster refuses these settings: {error}") from None

    def client(self, options: Mapping[str, Any], known_commands: dict[str, Any]) -> LeasedRedisCluster:
        """Make a client of resolved options, without I/O."""
        rest = dict(options)
        nodes = [ClusterNode(host, port) for host, port in check_pairs("nodes", rest.pop("nodes"))]
        # Not as a password, which redis-py would show in every node's connection_kwargs.
        if rest.get("username") or rest.get("password"):
            if rest.get("credential_provider") is not None:
                raise ValueError("give either username and password, or credential_provider")
            rest["credential_provider"] = UsernamePasswordCredentialProvider(
                rest.pop("username", None), rest.pop("password", None)
            )
        return LeasedRedisCluster(known_commands, startup_nodes=nodes, **rest)

    def place(self) -> str:
        """Say where they lead."""
        return ", ".join(f"{host}:{port}" for host, port in check_pairs("nodes", self.values["nodes"]))
