"""Connecting: what is refused and how it is named, and that nothing stays open behind a failure."""

import asyncio
import contextlib
import re
import ssl
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiormq import exceptions as amqp
from pool_core import ConnectError, Pool, PoolTimeout
from pool_core.testing import FaultProxy, acancel_everywhere
from pool_core.testing import Injector as Inject
from pool_rabbitmq import RabbitMQChannelManager, _line
from rabbitmq_broker import rabbitmqctl

from containers.servers import Server

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


async def failure_of(manager: RabbitMQChannelManager) -> Exception:
    """What connecting raises, within two seconds; its text has no password."""
    began = time.monotonic()
    try:
        channel = await manager.connect()
    except Exception as error:  # noqa: BLE001
        assert time.monotonic() - began < 2
        assert PASSWORD not in "".join(traceback.format_exception(error))
        return error
    await manager.close(channel)
    raise AssertionError("connect raised nothing")


def test_tls_works_and_is_checked(broker: Server, run: Any) -> None:
    """amqps:// with a known certificate connects; with an unknown one it is refused for good."""

    async def main() -> None:
        async with serving(in_front_of(broker), tls_context()) as port:
            url = f"amqps://{broker.user}:{broker.password}@127.0.0.1:{port}"
            manager = RabbitMQChannelManager(f"{url}?cafile={CERTIFICATE}")
            channel = await manager.connect()
            assert await manager.is_valid(channel) is True
            await manager.close(channel)
            known = RabbitMQChannelManager(url, ssl_context=ssl.create_default_context(cafile=str(CERTIFICATE)))
            channel = await known.connect()
            known.terminate(channel)
            stranger = RabbitMQChannelManager(url)
            error = await failure_of(stranger)
            assert "certificate verify failed" in str(error)
            assert stranger.is_transient(error) is False

    run(main())


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "does not speak AMQP"),
        (saying(b"-ERR unknown command\r\n"), "does not speak AMQP"),
        (saying(b"\x15\x03\x03\x00\x02\x02\x46"), "write amqps://"),
        (saying(b"AMQP\x00\x01\x00\x00"), "protocol header"),
    ],
    ids=["http", "redis", "tls", "amqp 1.0"],
)
def test_a_server_of_another_kind_is_named(handler: Handler, words: str, run: Any) -> None:
    """aiormq takes the answer of an HTTP server for a frame of a gigabyte, and waits for the rest."""

    async def main() -> None:
        async with serving(handler) as port:
            manager = RabbitMQChannelManager(f"amqp://me:{PASSWORD}@127.0.0.1:{port}")
            error = await failure_of(manager)
            assert words in str(error)
            assert manager.is_transient(error) is False

    run(main())


def test_tls_to_a_plain_port_is_named(broker: Server, run: Any) -> None:
    """The broker answers the handshake with its own protocol's header."""

    async def main() -> None:
        manager = RabbitMQChannelManager(f"amqps://me:{PASSWORD}@127.0.0.1:{broker.port}")
        error = await failure_of(manager)
        assert "does not use TLS" in str(error)
        assert manager.is_transient(error) is False

    run(main())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"password": PASSWORD}, "ACCESS_REFUSED"),
        ({"login": "nobody", "password": PASSWORD}, "ACCESS_REFUSED"),
        ({"virtualhost": "nowhere"}, "vhost nowhere not found"),
        ({"host": "no-such-host.invalid"}, "no-such-host.invalid:\\d+: .*known"),
        ({"ssl": True, "cafile": "/no/such/file"}, "No such file"),
    ],
)
def test_what_a_person_must_correct_fails_at_once(
    broker: Server, options: dict[str, Any], words: str, run: Any
) -> None:
    """With the broker's own words; aiormq alone hides those about an unknown virtual host."""

    async def main() -> None:
        manager = RabbitMQChannelManager(broker.url, **options)
        error = await failure_of(manager)
        assert re.search(words, str(error))
        assert manager.is_transient(error) is False
        async with Pool(manager, max_size=2, error_sink=lambda _: None) as pool:
            began = time.monotonic()
            with pytest.raises(ConnectError, match=words):
                await pool.get()
            assert time.monotonic() - began < 2

    run(main())


def test_a_limit_of_connections_may_pass(broker: Server, run: Any) -> None:
    """Also 530, but the pool goes on as soon as another client leaves."""

    async def main() -> None:
        await rabbitmqctl(broker, "add_vhost", "full")
        await rabbitmqctl(broker, "set_permissions", "-p", "full", broker.user or "", ".*", ".*", ".*")
        await rabbitmqctl(broker, "set_vhost_limits", "-p", "full", '{"max-connections": 1}')
        manager = RabbitMQChannelManager(broker.url, virtualhost="full")
        other = RabbitMQChannelManager(broker.url, virtualhost="full")
        holder = await other.connect()
        error = await failure_of(manager)
        assert "limit" in str(error)
        assert manager.is_transient(error) is True
        async with Pool(manager, max_size=1, error_sink=lambda _: None) as pool:
            waiter = asyncio.ensure_future(pool.get())
            await asyncio.sleep(0.1)
            await other.close(holder)
            (await waiter).release()

    run(main())


def test_waiting_connects_share_one_failure(run: Any) -> None:
    """Three channels on one connection: one attempt, three answers, and the next attempt is a new one."""

    async def main() -> None:
        async with serving(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
            manager = RabbitMQChannelManager(host="127.0.0.1", port=port)
            errors = await asyncio.gather(*(manager.connect() for _ in range(3)), return_exceptions=True)
            assert {type(error) for error in errors} == {amqp.ProtocolSyntaxError}
            assert isinstance(await failure_of(manager), amqp.ProtocolSyntaxError)

    run(main())


@pytest.mark.cancellation
def test_a_cancelled_connect_does_not_hurt_those_beside_it(broker: Server, run: Any) -> None:
    """Three share a connection that is being opened; one of them is cancelled at each of its awaits."""

    async def main() -> None:
        async def scenario(inject: Inject) -> None:
            manager = RabbitMQChannelManager(broker.url)
            others = [asyncio.ensure_future(manager.connect()) for _ in range(2)]
            outcome = await inject(manager.connect())
            channels = list(await asyncio.gather(*others))
            if not outcome.cancelled and outcome.exception is None:
                channels.append(outcome.result)
            line = channels[0].line
            for channel in channels:
                assert await manager.is_valid(channel) is True
                await manager.close(channel)
            assert line.is_gone
            assert line.users == 0

        await acancel_everywhere(scenario, modes=("single",), must_surface=False)

    run(main())


def test_a_server_that_says_nothing_is_the_cause_of_the_timeout(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """A memcached or an HTTP server waits for the rest of a line; a get that runs out of time says so."""
    monkeypatch.setattr(_line, "_SILENCE", 0.1)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def main() -> None:
        async with serving(silent) as port:
            manager = RabbitMQChannelManager(host="127.0.0.1", port=port)
            error = await failure_of(manager)
            assert str(error).startswith("the server at 127.0.0.1:")
            assert manager.is_transient(error) is True
            async with Pool(manager, error_sink=lambda _: None) as pool:
                with pytest.raises(PoolTimeout, match="not the port of an AMQP broker"):
                    await pool.get(timeout=0.5)

    run(main())


def test_a_silent_broker_keeps_no_connection(broker: Server, run: Any) -> None:
    """get's own timeout ends it; the pool's attempt goes on and is closed with the pool."""

    async def main() -> None:
        proxy = FaultProxy(broker.host, broker.port)
        proxy.silence()
        manager = RabbitMQChannelManager(broker.url, host=proxy.host, port=proxy.port)
        async with Pool(manager, max_size=2, error_sink=lambda _: None) as pool:
            with pytest.raises(TimeoutError):
                await pool.get(timeout=0.2)
            began = time.monotonic()
            await pool.close(timeout=1)
            assert time.monotonic() - began < 2
        await asyncio.sleep(0.05)
        assert proxy.open == 0
        proxy.close()

    run(main())
