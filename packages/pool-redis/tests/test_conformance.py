"""The conformance suite for the managers of one server (in both protocol versions), of a Sentinel, and of a cluster."""

# redis-py types the commands of a pipeline as awaitables, and some of its methods not at all.
# mypy: disable-error-code="no-untyped-call,attr-defined"
# pyright: reportAttributeAccessIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import redis
from fleet import Fleet, until
from pool_core.testing import ManagerConformance, Probe
from pool_redis import (
    LeasedRedis,
    LeasedRedisCluster,
    RedisClusterConnectionManager,
    RedisConnectionManager,
    RedisSentinelConnectionManager,
)

from containers.servers import Server, ServerFactory

PASSWORD = "canary-7f3a"


def _left_behind(name: str, *command: str, look: str) -> Probe[LeasedRedis]:
    async def dirty(client: LeasedRedis) -> None:
        await client.execute_command(*command)

    async def seen(client: LeasedRedis) -> object:
        return await client.execute_command(*look.split())

    return Probe(name, dirty, seen)


async def _subscribe(client: LeasedRedis) -> None:
    listener = client.pubsub()
    await listener.subscribe("news")
    assert await listener.get_message(timeout=2) is not None


class TestRedis3(ManagerConformance[LeasedRedis]):
    """RESP3, redis-py's default."""

    protocol = 3
    secrets = (PASSWORD,)
    probes: Sequence[Probe[LeasedRedis]] = (
        _left_behind("database", "SELECT", "5", look="DBSIZE"),
        _left_behind("open transaction", "MULTI", look="PING"),
        _left_behind("name", "CLIENT SETNAME", "someone", look="CLIENT GETNAME"),
        _left_behind("tracking", "CLIENT", "TRACKING", "ON", look="CLIENT GETREDIR"),
        _left_behind("user", "AUTH", "other", "word", look="ACL WHOAMI"),
        _left_behind("protocol", "HELLO", "2", look="PING"),
        _left_behind("reset", "RESET", look="PING"),
        Probe("subscription", _subscribe, lambda client: client.ping()),
        _left_behind("monitor", "MONITOR", look="PING"),
    )

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, guarded: Server) -> Iterator[None]:
        cls.host, cls.port = guarded.host, guarded.port
        with redis.Redis(host=cls.host, port=cls.port, password=PASSWORD) as admin:
            admin.acl_setuser("other", enabled=True, passwords=["+word"], commands=["+@all"], keys=["*"])
            admin.select(5)
            admin.set("only in database", 5)
        yield

    def manager(self, host: str, port: int) -> RedisConnectionManager:
        return RedisConnectionManager(host=host, port=port, password=PASSWORD, protocol=self.protocol)

    def bad_credentials(self, host: str, port: int) -> Mapping[str, RedisConnectionManager]:
        url = f"redis://{host}:{port}"
        return {
            "a wrong password": RedisConnectionManager(url, password="wrong", protocol=self.protocol),
            "an unknown user": RedisConnectionManager(url, username="nobody", password="x", protocol=self.protocol),
            "no password": RedisConnectionManager(url, protocol=self.protocol),
            "an unknown database": RedisConnectionManager(url, password=PASSWORD, db=99, protocol=self.protocol),
            "TLS to a plain port": RedisConnectionManager(f"rediss://{host}:{port}", password=PASSWORD),
        }

    async def use(self, conn: LeasedRedis) -> None:
        assert await conn.echo("hello") == b"hello"

    async def slow_request(self, conn: LeasedRedis) -> None:
        await conn.blpop(["never"], timeout=10)

    async def leave_unread(self, conn: LeasedRedis) -> None:
        await conn.tracked.send_command("ECHO", "somebody else's")

    async def late_error(self, conn: LeasedRedis) -> None:
        await conn.tracked.send_command("NO-SUCH-COMMAND")

    async def begin(self, conn: LeasedRedis) -> None:
        await conn.execute_command("MULTI")

    async def in_transaction(self, conn: LeasedRedis) -> bool:
        return bool(await conn.echo("x") == b"QUEUED")

    async def server_kill(self, conn: LeasedRedis) -> None:
        number = await conn.client_id()
        manager = self.manager(self.host, self.port)
        admin = await manager.connect()
        await admin.client_kill_filter(_id=str(number))
        await manager.close(admin)


class TestRedis2(TestRedis3):
    """RESP2."""

    protocol = 2
    probes = tuple(probe for probe in TestRedis3.probes if probe.name != "protocol")


class TestSentinel(TestRedis3):
    """The master that real sentinels name; its address is remapped to the suite's proxy."""

    protocol = 3
    secrets = ("other-canary",)
    sentinels: Fleet

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, watched: tuple[Fleet, Fleet]) -> Iterator[None]:
        data, cls.sentinels = watched
        cls.host, cls.port = "127.0.0.1", next(port for port in data.ports if data.role(port) == "master")
        data.ask(cls.port, "ACL", "SETUSER", "other", "on", ">word", "+@all", "~*")
        data.ask(cls.port, "ACL", "SETUSER", "conformant", "on", ">other-canary", "+@all", "~*", "&*")
        with redis.Redis(port=cls.port, db=5) as admin:
            admin.set("only in database", 5)
        yield
        data.ask(cls.port, "ACL", "DELUSER", "other", "conformant")

    def manager(self, host: str, port: int, **options: Any) -> RedisConnectionManager:
        return RedisSentinelConnectionManager(
            sentinels=[("127.0.0.1", port) for port in self.sentinels.ports],
            address_remap=lambda address: (host, port),
            **{"username": "conformant", "password": "other-canary", "protocol": self.protocol, **options},
        )

    def bad_credentials(self, host: str, port: int) -> Mapping[str, RedisConnectionManager]:
        return {
            "a wrong password": self.manager(host, port, password="wrong"),
            "an unknown database": self.manager(host, port, db=99),
            "an unknown service": self.manager(host, port, service="theirs"),
        }


class TestCluster(ManagerConformance[LeasedRedisCluster]):
    """A cluster of one node, so that all traffic goes through the suite's proxy."""

    secrets = (PASSWORD,)
    commands: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _server(cls, server: ServerFactory, dialect: str) -> Iterator[None]:
        with server(dialect, fresh=True, password=PASSWORD, args=["--cluster-enabled", "yes"]) as mine:
            cls.host, cls.port = mine.host, mine.port
            with redis.Redis(host=mine.host, port=mine.port, password=PASSWORD, decode_responses=True) as admin:
                admin.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
                admin.acl_setuser("other", enabled=True, passwords=["+word"], commands=["+@all"], keys=["*"])
                until(
                    lambda: "'cluster_state': 'ok'" in str(admin.execute_command("CLUSTER INFO")),
                    "all slots are served",
                )
            yield

    @property
    def probes(self) -> Sequence[Probe[LeasedRedisCluster]]:  # type: ignore[override]
        def left_behind(name: str, *command: str, look: str) -> Probe[LeasedRedisCluster]:
            async def dirty(client: LeasedRedisCluster) -> None:
                await client.execute_command(*command, target_nodes=client.get_default_node())

            async def seen(client: LeasedRedisCluster) -> object:
                return await client.execute_command(*look.split(), target_nodes=client.get_default_node())

            return Probe(name, dirty, seen)

        return [
            left_behind("open transaction", "MULTI", look="ECHO x"),
            left_behind("name", "CLIENT SETNAME", "someone", look="CLIENT GETNAME"),
            left_behind("user", "AUTH", "other", "word", look="ACL WHOAMI"),
        ]

    def manager(self, host: str, port: int, **options: Any) -> RedisClusterConnectionManager:
        given = {"password": PASSWORD, **options}
        made = RedisClusterConnectionManager(nodes=[(host, port)], address_remap=lambda address: (host, port), **given)
        made._known_commands = self.commands  # 200 kB, which the first connect fetches: at five bytes a piece too much
        return made

    def bad_credentials(self, host: str, port: int) -> Mapping[str, RedisClusterConnectionManager]:
        return {
            "a wrong password": self.manager(host, port, password="wrong"),
            "no password": RedisClusterConnectionManager(nodes=[(host, port)]),
        }

    async def use(self, conn: LeasedRedisCluster) -> None:
        await conn.set("pool-redis:key", "hello")
        assert await conn.get("pool-redis:key") == b"hello"

    async def slow_request(self, conn: LeasedRedisCluster) -> None:
        await conn.blpop(["never"], timeout=10)

    async def leave_unread(self, conn: LeasedRedisCluster) -> None:
        await conn.ping()
        [connection] = [connection for connection in conn.sockets if connection.is_connected]
        await connection.send_command("ECHO", "somebody else's")

    async def late_error(self, conn: LeasedRedisCluster) -> None:
        [connection] = [connection for connection in conn.sockets if connection.is_connected]
        await connection.send_command("NO-SUCH-COMMAND")

    async def begin(self, conn: LeasedRedisCluster) -> None:
        await conn.execute_command("MULTI", target_nodes=conn.get_default_node())

    async def in_transaction(self, conn: LeasedRedisCluster) -> bool:
        return bool(await conn.execute_command("ECHO", "x", target_nodes=conn.get_default_node()) == b"QUEUED")

    async def server_kill(self, conn: LeasedRedisCluster) -> None:
        number = await conn.execute_command("CLIENT ID", target_nodes=conn.get_default_node())
        manager = self.manager(self.host, self.port)
        admin = await manager.connect()
        await admin.execute_command("CLIENT KILL", "ID", number, target_nodes=admin.get_default_node())
        await manager.close(admin)
