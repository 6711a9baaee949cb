"""The kit's questions to the manager of one Redis server, in both versions of its protocol."""

# redis-py types the commands of a pipeline as awaitables, and some of its methods not at all.
# mypy: disable-error-code="no-untyped-call,attr-defined"
# pyright: reportAttributeAccessIssue=false, reportOptionalSubscript=false, reportOptionalMemberAccess=false

from collections.abc import Iterator, Mapping, Sequence

import pytest
from pool_core.testing import ManagerConformance, Probe
from pool_redis import LeasedRedis, RedisConnectionManager

from containers.servers import Server

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
        import redis

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
