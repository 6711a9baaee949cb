"""Connecting: what it proves, what is refused and how it is named, and that nothing stays open behind a failure."""

import asyncio
import contextlib
import ssl
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from pool_core import ConnectError, Pool
from pool_core.testing import Injector as Inject
from pool_core.testing import acancel_everywhere
from pool_memcached import LoginRefusedError, MemcachedConnectionManager, WrongServerError

from containers.servers import Server, ServerFactory

PASSWORD = "canary-7f3a"
CERTIFICATE = Path(__file__).with_name("localhost.pem")  # made for these tests, good for 127.0.0.1 alone

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None, path: str = "") -> AsyncIterator[int]:
    """Serve `handler` on a port of this machine, or at a path; yields the port."""
    tasks: set[asyncio.Task[Any]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    if path:
        server: asyncio.Server = await asyncio.start_unix_server(handle, path, ssl=tls)
    else:
        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield 0 if path else server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def tls_context() -> ssl.SSLContext:
    """Of a server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def in_front_of(server: Server) -> Handler:
    """What a TLS terminator does."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_behind = await asyncio.open_connection(server.host, server.port)
        try:
            await asyncio.gather(copy(reader, to_behind), copy(behind, writer))
        finally:
            to_behind.close()

    return handle


def saying(answer: bytes) -> Handler:
    """Answer whatever comes with this."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(answer)
        await writer.drain()
        await reader.read(4096)

    return handle


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say nothing."""
    await asyncio.sleep(30)


async def failure_of(manager: MemcachedConnectionManager) -> Exception:
    """What connecting raises, within two seconds; its text has no password."""
    began = time.monotonic()
    try:
        client = await manager.connect()
    except Exception as error:  # noqa: BLE001
        assert time.monotonic() - began < 2
        assert PASSWORD not in "".join(traceback.format_exception(error))
        return error
    await manager.close(client)
    raise AssertionError("connect raised nothing")


def test_a_login_is_sent_where_the_server_asks_for_it(guarded: Server, run: Any) -> None:
    """The password may be a callable, which is called for each connection."""
    asked: list[str] = []

    async def password() -> str:
        asked.append("once more")
        return PASSWORD

    async def main() -> None:
        manager = MemcachedConnectionManager(host=guarded.host, port=guarded.port, user="pool", password=password)
        for _ in range(2):
            client = await manager.connect()
            assert await client.set(b"key", b"value") is True
            await manager.close(client)
        assert len(asked) == 2

    run(main())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "asks for a user and a password"),
        ({"user": "pool", "password": f"not {PASSWORD}"}, "refused"),
        ({"user": "nobody", "password": PASSWORD}, "refused"),
    ],
)
def test_a_login_that_is_refused_fails_at_once(guarded: Server, options: Any, words: str, run: Any) -> None:
    """Retrying would not help, and the pool's users would wait in vain."""

    async def main() -> None:
        manager = MemcachedConnectionManager(host=guarded.host, port=guarded.port, **options)
        error = await failure_of(manager)
        assert isinstance(error, LoginRefusedError)
        assert words in str(error)
        async with Pool(manager, error_sink=lambda _: None) as pool:
            with pytest.raises(ConnectError, match=words):
                await pool.get()

    run(main())


def test_a_password_is_not_stored_where_no_login_is_asked_for(memcached: Server, run: Any) -> None:
    """The words of a login look like those of a "set": such a server would keep the password for everybody to read."""

    async def main() -> None:
        plain = MemcachedConnectionManager(memcached.url)
        client = await plain.connect()
        before = await client.stats()
        manager = MemcachedConnectionManager(memcached.url, user="pool", password=PASSWORD)
        error = await failure_of(manager)
        assert isinstance(error, LoginRefusedError)
        assert "leave them out" in str(error)
        assert (await client.stats())[b"cmd_set"] == before[b"cmd_set"]
        await plain.close(client)

    run(main())


def test_tls_works_and_is_checked(memcached: Server, run: Any) -> None:
    """memcacheds:// with a known certificate connects; with an unknown one it is refused for good."""

    async def main() -> None:
        async with serving(in_front_of(memcached), tls_context()) as port:
            known = ssl.create_default_context(cafile=str(CERTIFICATE))
            manager = MemcachedConnectionManager(f"memcacheds://127.0.0.1:{port}", ssl=known)
            client = await manager.connect()
            assert await client.set(b"key", b"value") is True
            assert manager.has_broken(client) is False
            await manager.close(client)
            other = MemcachedConnectionManager(f"memcached://127.0.0.1:{port}", ssl=known, server_hostname="elsewhere")
            assert "elsewhere" in str(await failure_of(other))
            stranger = MemcachedConnectionManager(f"memcacheds://127.0.0.1:{port}")
            error = await failure_of(stranger)
            assert "certificate verify failed" in str(error)
            assert stranger.is_transient(error) is False

    run(main())


@pytest.mark.cancellation
def test_a_cancelled_tls_connect_leaves_nothing_open(memcached: Server, run: Any) -> None:
    """Cancelled at each of its awaits, those of the handshake among them."""

    async def main() -> None:
        open_ones = 0

        async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal open_ones
            open_ones += 1
            try:
                await in_front_of(memcached)(reader, writer)
            finally:
                open_ones -= 1

        async with serving(counted, tls_context()) as port:
            known = ssl.create_default_context(cafile=str(CERTIFICATE))
            manager = MemcachedConnectionManager(f"memcacheds://127.0.0.1:{port}", ssl=known)

            async def scenario(inject: Inject) -> None:
                outcome = await inject(manager.connect())
                if not outcome.cancelled and outcome.exception is None:
                    manager.terminate(outcome.result)
                async with asyncio.timeout(2):
                    while open_ones or len(asyncio.all_tasks()) > 2:  # this one, and the one under test
                        await asyncio.sleep(0.005)

            await acancel_everywhere(scenario, modes=("single", "success"), must_surface=False)

    run(main())


@pytest.mark.parametrize("reaction", ["waits", "answers", "closes"])
def test_tls_to_a_server_without_it_is_named(reaction: str, run: Any) -> None:
    """What memcached does depends on the length of the handshake, and on whether it happens to have a line break."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(100) == b"version\r\n":
            writer.write(b"VERSION 1.6.0\r\n")
        elif reaction == "answers":
            writer.write(b"ERROR\r\n")
        elif reaction == "closes":
            writer.transport.abort()
        await asyncio.sleep(5)

    async def main() -> None:
        async with serving(plain) as port:
            manager = MemcachedConnectionManager(f"memcacheds://pool:{PASSWORD}@127.0.0.1:{port}")
            error = await failure_of(manager)
            assert isinstance(error, WrongServerError)
            assert "does not use TLS" in str(error)

    run(main())


def test_tls_to_a_plain_port_is_named(memcached: Server, run: Any) -> None:
    """memcached waits for the end of a line in the handshake, and says nothing."""

    async def main() -> None:
        manager = MemcachedConnectionManager(f"memcacheds://pool:{PASSWORD}@127.0.0.1:{memcached.port}")
        error = await failure_of(manager)
        assert isinstance(error, WrongServerError)
        assert "does not use TLS" in str(error)
        assert manager.is_transient(error) is False

    run(main())


def test_a_slow_tls_server_is_waited_for(run: Any) -> None:
    """It is no server without TLS: the pool's create_timeout decides."""

    async def main() -> None:
        async with serving(silent) as port:
            connecting = asyncio.ensure_future(MemcachedConnectionManager(f"memcacheds://127.0.0.1:{port}").connect())
            await asyncio.sleep(1.3)
            assert not connecting.done()
            connecting.cancel()
            await asyncio.wait({connecting})
            assert connecting.cancelled()

    run(main())


@pytest.mark.parametrize(
    ("answer", "kind", "words", "transient"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", WrongServerError, "not a memcached", False),
        (b"-ERR unknown command 'version'\r\n", WrongServerError, "not a memcached", False),
        (b"\x15\x03\x03\x00\x02\x02\x46", WrongServerError, "write memcacheds://", False),
        (b"ERROR Too many open connections\r\n", ConnectionRefusedError, "limit", True),
        (b"", ConnectionResetError, "closed", True),
        (b"VERS", ConnectionResetError, "closed", True),
    ],
    ids=["http", "redis", "tls", "full", "closed", "cut"],
)
def test_an_answer_that_is_not_a_version_is_named(
    answer: bytes, kind: type[Exception], words: str, transient: bool, run: Any
) -> None:
    """In one sentence that says what to do."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)

    async def main() -> None:
        async with serving(say) as port:
            manager = MemcachedConnectionManager(host="127.0.0.1", port=port)
            error = await failure_of(manager)
            assert isinstance(error, kind)
            assert words in str(error)
            assert manager.is_transient(error) is transient

    run(main())


def test_an_unknown_host_fails_at_once_and_a_closed_port_does_not(run: Any) -> None:
    """A server that restarts comes back."""

    async def main() -> None:
        manager = MemcachedConnectionManager("memcached://no-such-host.invalid")
        error = await failure_of(manager)
        assert "no-such-host.invalid" in str(error)
        assert manager.is_transient(error) is False
        async with serving(silent) as port:
            pass
        manager = MemcachedConnectionManager(host="127.0.0.1", port=port)
        assert manager.is_transient(await failure_of(manager)) is True

    run(main())


def test_a_unix_socket_works(memcached: Server, tmp_path: Path, run: Any) -> None:
    """memcached:///path; where there is no such socket, one may come."""
    path = str(tmp_path / "memcached.sock")

    async def main() -> None:
        manager = MemcachedConnectionManager(f"memcached://{path}")
        assert manager.is_transient(await failure_of(manager)) is True
        async with serving(in_front_of(memcached), path=path):
            client = await manager.connect()
            assert await client.set(b"key", b"value") is True
            await manager.close(client)

    run(main())


def test_a_full_server_is_waited_for(server: ServerFactory, run: Any) -> None:
    """memcached -c: the waiters keep their turn, the error names the limit, and the pool goes on."""
    with server("memcached", fresh=True, args=["-c", "20", "-t", "1"]) as mine:

        async def main() -> None:
            manager = MemcachedConnectionManager(mine.url)
            others = []
            with pytest.raises(ConnectionRefusedError, match="limit"):  # noqa: PT012
                for _ in range(25):  # memcached counts its own sockets, too
                    others.append(await manager.connect())
            async with Pool(manager, max_size=1, error_sink=lambda _: None) as pool:
                with pytest.raises(TimeoutError, match="limit"):
                    await pool.get(timeout=0.3)
                waiter = asyncio.ensure_future(pool.get())
                await asyncio.sleep(0.05)
                await manager.close(others.pop())
                (await waiter).release()
            for client in others:
                await manager.close(client)

        run(main())
