"""Opening a connection: what it proves, what is refused, and that nothing stays open behind a failure."""

import asyncio
import contextlib
import ssl
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from pool_core import Pool
from pool_redis import LeasedRedis, RedisConnectionManager, WrongServer
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from containers.servers import Server, ServerFactory

PASSWORD = "canary-7f3a"
CERTIFICATE = Path(__file__).with_name("localhost.pem")  # made for these tests, good for 127.0.0.1 alone

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve `handler` on a port of this machine; yields the port."""
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

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answering(*answers: bytes) -> Handler:
    """Answer whatever comes with these, one after the other."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.read(4096)
            writer.write(answer)
            await writer.drain()
        await reader.read(4096)

    return handle


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Port 7."""
    while data := await reader.read(4096):
        writer.write(data)


async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speaks the protocol and agrees to everything, also to PING."""
    while data := await reader.read(4096):
        writer.write(b"+OK\r\n" * data.count(b"*"))


async def failure_of(manager: RedisConnectionManager) -> Exception:
    """Connect, and give back what it raises."""
    try:
        client = await manager.connect()
    except Exception as error:  # noqa: BLE001
        return error
    await manager.close(client)
    raise AssertionError("connect raised nothing")


def tls_context() -> ssl.SSLContext:
    """Of a server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


def tls_in_front_of(server: Server) -> Handler:
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


def test_tls_works_and_is_checked(redis: Server, run: Any) -> None:
    """rediss:// with a known certificate connects; with an unknown one it is refused for good."""

    async def main() -> None:
        async with serving(tls_in_front_of(redis), tls_context()) as port:
            manager = RedisConnectionManager(f"rediss://127.0.0.1:{port}", ssl_ca_certs=str(CERTIFICATE))
            client = await manager.connect()
            assert await client.echo("hello") == b"hello"
            assert manager.has_broken(client) is False
            await manager.close(client)
            stranger = RedisConnectionManager(f"rediss://127.0.0.1:{port}")
            error = await failure_of(stranger)
            assert "certificate verify failed" in str(error)
            assert stranger.is_transient(error) is False

    run(main())


def test_tls_to_a_plain_port_is_told_at_once(redis: Server, run: Any) -> None:
    """Redis waits for the end of a line in what it takes for text: redis-py alone waits 5 s, and retries for ever."""

    async def main() -> None:
        manager = RedisConnectionManager(f"rediss://127.0.0.1:{redis.port}", password=PASSWORD)
        began = time.monotonic()
        error = await failure_of(manager)
        assert time.monotonic() - began < 2
        assert isinstance(error, WrongServer)
        assert "speaks no TLS on this port" in str(error)
        assert manager.is_transient(error) is False

    run(main())


def test_plain_text_to_a_tls_port_is_told_at_once(redis: Server, run: Any) -> None:
    """The server's alert is no answer in Redis' protocol: whoever reads the message should think of TLS."""

    async def main() -> None:
        async with serving(tls_in_front_of(redis), tls_context()) as port:
            manager = RedisConnectionManager(f"redis://127.0.0.1:{port}", password=PASSWORD)
            error = await failure_of(manager)
            assert isinstance(error, RedisConnectionError)
            assert PASSWORD not in "".join(traceback.format_exception(error))

    run(main())


def test_a_silent_tls_server_is_waited_for(run: Any) -> None:
    """A server with a slow handshake may still speak TLS: the timeout decides, and is transient."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def main() -> None:
        async with serving(silent) as port:
            manager = RedisConnectionManager(f"rediss://127.0.0.1:{port}", socket_connect_timeout=1.2)
            error = await failure_of(manager)
            assert "Timeout connecting" in str(error)
            assert manager.is_transient(error) is True

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("password", [None, PASSWORD])
@pytest.mark.parametrize(
    "handler",
    [
        answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        answering(b"220 mail.example ESMTP\r\n"),
        echo,
        polite,
    ],
    ids=["http", "smtp", "echo", "polite"],
)
def test_what_is_no_redis_is_told_at_once(handler: Handler, password: str | None, protocol: int, run: Any) -> None:
    """redis-py takes an echo server for a Redis; a pool full of such connections would help nobody."""

    async def main() -> None:
        async with serving(handler) as port:
            manager = RedisConnectionManager(port=port, host="127.0.0.1", protocol=protocol, password=password)
            error = await failure_of(manager)
            assert isinstance(error, RedisError), repr(error)
            assert manager.is_transient(error) is False
            assert PASSWORD not in "".join(traceback.format_exception(error))

    run(main())


def test_an_old_server_that_quotes_the_password_is_not_quoted(run: Any) -> None:
    """Redis 5 answers HELLO with 'unknown command `HELLO`, with args beginning with: ...', the password among them."""
    quoting = f"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `{PASSWORD}`, \r\n"

    async def main() -> None:
        async with serving(answering(quoting.encode())) as port:
            manager = RedisConnectionManager(host="127.0.0.1", port=port, password=PASSWORD)
            error = await failure_of(manager)
            assert "not quoted" in str(error)
            assert PASSWORD not in "".join(traceback.format_exception(error))
            assert error.__context__ is None
            assert manager.is_transient(error) is False

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_server_that_wants_a_password_is_noticed_by_connect(guarded: Server, protocol: int, run: Any) -> None:
    """In RESP2 redis-py connects without one, and only the borrower's first command would fail."""

    async def main() -> None:
        manager = RedisConnectionManager(host=guarded.host, port=guarded.port, protocol=protocol)
        error = await failure_of(manager)
        assert isinstance(error, AuthenticationError)
        assert manager.is_transient(error) is False

    run(main())


def test_a_wrong_password_becomes_the_right_one(guarded: Server, run: Any) -> None:
    """A rotation: the operator corrects the password in the running program, and the pool goes on."""

    async def main() -> None:
        manager = RedisConnectionManager(host=guarded.host, port=guarded.port, password="wrong")
        async with Pool(manager) as pool:
            began = time.monotonic()
            with pytest.raises(Exception, match="(?i)password") as caught:
                await pool.get()
            assert time.monotonic() - began < 1
            assert isinstance(caught.value.__cause__, AuthenticationError)
            manager.update(password=PASSWORD)
            async with pool.get() as client:
                assert await client.ping()

    run(main())


def test_credentials_may_come_from_a_provider(guarded: Server, run: Any) -> None:
    """Each new connection asks it, so that a token is as fresh as its connection."""

    class Tokens(CredentialProvider):
        asked = 0

        async def get_credentials_async(self) -> tuple[str, str]:
            self.asked += 1
            return "default", PASSWORD

    async def main() -> None:
        tokens = Tokens()
        manager = RedisConnectionManager(host=guarded.host, port=guarded.port, credential_provider=tokens)
        for _ in range(2):
            client = await manager.connect()
            assert await client.ping()
            await manager.close(client)
        assert tokens.asked == 2

    run(main())


def test_a_failing_provider_is_seen_as_it_is(guarded: Server, run: Any) -> None:
    """Its error is the user's own and explains itself; and no socket may stay open behind it."""

    class Broken(CredentialProvider):
        async def get_credentials_async(self) -> tuple[str, str]:
            raise RuntimeError("the vault is closed")

    async def main() -> None:
        manager = RedisConnectionManager(host=guarded.host, port=guarded.port, credential_provider=Broken())
        error = await failure_of(manager)
        assert type(error) is RuntimeError
        assert manager.is_transient(error) is True

    run(main())


@pytest.mark.cancellation
def test_a_connect_cancelled_in_a_credential_provider_leaves_nothing_open(guarded: Server, run: Any) -> None:
    """redis-py stays connected there, without having logged in and on database 0."""
    asked = asyncio.Event()

    class Slow(CredentialProvider):
        async def get_credentials_async(self) -> tuple[str, str]:
            asked.set()
            await asyncio.sleep(30)
            raise AssertionError

    async def main() -> None:
        admin_manager = RedisConnectionManager(host=guarded.host, port=guarded.port, password=PASSWORD)
        admin = await admin_manager.connect()
        manager = RedisConnectionManager(
            host=guarded.host, port=guarded.port, credential_provider=Slow(), client_name="slow"
        )
        before = len(await admin.client_list())
        task = asyncio.create_task(manager.connect())
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)
        assert len(await admin.client_list()) == before
        await admin_manager.close(admin)

    run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_an_unknown_database_is_refused_for_good(redis: Server, protocol: int, run: Any) -> None:
    """If the pool retried a wrong number until the timeout, the user would not see the reason."""

    async def main() -> None:
        manager = RedisConnectionManager(redis.url, db=99, protocol=protocol)
        error = await failure_of(manager)
        assert "DB index is out of range" in str(error)
        assert manager.is_transient(error) is False

    run(main())


def test_a_unix_socket_works(redis: Server, run: Any, tmp_path: Path) -> None:
    """redis-py shakes hands twice there and wraps the refusal: the outcome must be the same as over TCP."""
    path = str(tmp_path / "redis.sock")

    async def main() -> None:
        handle = tls_in_front_of(redis)
        server = await asyncio.start_unix_server(handle, path)
        try:
            manager = RedisConnectionManager(f"unix://{path}?db=3")
            client = await manager.connect()
            assert (await client.client_info())["db"] == 3
            assert manager.has_broken(client) is False
            await manager.close(client)
            bad = RedisConnectionManager(f"unix://{path}", username="nobody", password=PASSWORD)
            error = await failure_of(bad)
            assert bad.is_transient(error) is False
            assert PASSWORD not in "".join(traceback.format_exception(error))
            await asyncio.sleep(0.05)
        finally:
            server.close()

    run(main())


def test_a_server_that_is_full_is_a_passing_trouble(server: ServerFactory, dialect: str, run: Any) -> None:
    """maxclients: the waiters keep their turn, the error names the cause, and the pool goes on when there is room."""
    with server(dialect, fresh=True, args=["--maxclients", "3"]) as mine:

        async def main() -> None:
            manager = RedisConnectionManager(mine.url)
            others = [await manager.connect() for _ in range(3)]
            async with Pool(manager, max_size=5, connection_timeout=10, error_sink=lambda _: None) as pool:
                with pytest.raises(TimeoutError, match="max number of clients"):
                    await pool.get(timeout=0.3)
                waiting = asyncio.create_task(_echo(pool))
                await asyncio.sleep(0.05)
                await manager.close(others.pop())
                assert await waiting == b"hello"
            for client in others:
                await manager.close(client)

        run(main())


async def _echo(pool: Pool[LeasedRedis]) -> object:
    async with pool.get() as client:
        return await client.echo("hello")


@pytest.mark.parametrize("errors", [ConnectionRefusedError(), TimeoutError(), OSError("no route to host")])
def test_trouble_on_the_way_may_pass(errors: Exception) -> None:
    """The server restarts, the network heals: waiting helps."""
    assert RedisConnectionManager().is_transient(errors) is True


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_user_who_may_not_ping_connects(guarded: Server, protocol: int, run: Any) -> None:
    """NOPERM is an answer: a probe must not need more rights than the work."""
    with redis.Redis(host=guarded.host, port=guarded.port, password=PASSWORD, decode_responses=True) as admin:
        admin.execute_command("ACL SETUSER", "worker", "reset", "on", ">word", "~*", "+get", "+set")

        async def main() -> None:
            manager = RedisConnectionManager(
                host=guarded.host, port=guarded.port, username="worker", password="word", protocol=protocol
            )
            async with Pool(manager, max_size=1, alive_bypass=0) as pool:
                for _ in range(3):
                    async with pool.get() as client:
                        await client.set("pool-redis:key", "x")
                        assert await client.get("pool-redis:key") == b"x"
                assert pool.state().statistics.connections_created == 1
            pings = [entry["count"] for entry in admin.acl_log() if entry["object"] == "ping"]
            assert pings == [1], "the first, and not each validation, stands in the server's log of refusals"

        admin.acl_log_reset()
        try:
            run(main())
        finally:
            admin.acl_deluser("worker")
            admin.delete("pool-redis:key")


def test_a_server_that_has_renamed_ping_is_valid(run: Any) -> None:
    """Some hosters rename commands; that PING is unknown is an answer, too."""

    async def unknown(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readline():
            words = [await reader.readline() for _ in range(2 * int(head[1:]))][1::2]
            writer.write(b"-ERR unknown command '" + words[0].strip() + b"', with args beginning with: \r\n")

    async def main() -> None:
        async with serving(unknown) as port:
            manager = RedisConnectionManager(host="127.0.0.1", port=port, protocol=2)
            client = await manager.connect()
            assert await manager.is_valid(client) is True
            await manager.close(client)

    run(main())
