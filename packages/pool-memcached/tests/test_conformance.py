"""The conformance suite, on a memcached that asks for a password."""

from collections.abc import Mapping
from typing import Any

import pytest
from pool_core.testing import ManagerConformance
from pool_memcached import LeasedMemcached, MemcachedConnectionManager

from containers.servers import Server

PASSWORD = "canary-7f3a"
VALUE = b"a value with\r\nEND\r\nin it, and at its end\r\nEND\r\n"


@pytest.mark.cancellation
class TestMemcached(ManagerConformance[LeasedMemcached]):
    """Text protocol with a login."""

    secrets = (PASSWORD,)

    @pytest.fixture(autouse=True)
    def _server(self, guarded: Server) -> None:
        self.host, self.port = guarded.host, guarded.port

    def manager(self, host: str, port: int) -> MemcachedConnectionManager:
        return MemcachedConnectionManager(f"memcached://pool:{PASSWORD}@{host}:{port}")

    def bad_credentials(self, host: str, port: int) -> Mapping[str, MemcachedConnectionManager]:
        url = f"memcached://{host}:{port}"
        return {
            "a wrong password": MemcachedConnectionManager(url, user="pool", password="wrong"),
            "an unknown user": MemcachedConnectionManager(url, user="nobody", password=PASSWORD),
            "no password": MemcachedConnectionManager(url),
            "TLS to a plain port": MemcachedConnectionManager(f"memcacheds://pool:{PASSWORD}@{host}:{port}"),
        }

    async def use(self, conn: LeasedMemcached) -> None:
        assert await conn.set(b"pool:key", VALUE)
        assert await conn.get(b"pool:key") == VALUE
        assert await conn.multi_get(b"pool:key", b"pool:none") == (VALUE, None)

    async def slow_request(self, conn: LeasedMemcached) -> None:
        # memcached has no slow command; it waits for the data of this one.
        link: Any = await conn.link.acquire()
        try:
            conn.link.write(b"set pool:key 0 0 10\r\n")
            await conn.link.readline()
        finally:
            conn.link.release(link)

    async def leave_unread(self, conn: LeasedMemcached) -> None:
        conn.link.write(b"version\r\n")
