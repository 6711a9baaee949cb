"""Each fault of the proxy, seen from a client and a server on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from pool_core.testing import FaultProxy


class EchoServer:
    """Answers each line in capitals; knows who is connected."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.connected = 0
        self.ended: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        try:
            while line := await reader.readline():
                self.received.append(line)
                writer.write(line.upper())
                await writer.drain()
            self.ended.append("eof")
        except ConnectionError:
            self.ended.append("reset")
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def proxied() -> AsyncIterator[tuple[FaultProxy, EchoServer]]:
    echo = EchoServer()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    try:
        with FaultProxy(*server.sockets[0].getsockname()) as proxy:
            yield proxy, echo
        await eventually(lambda: echo.connected == len(echo.ended))
    finally:
        server.close()


async def eventually(condition: Callable[[], bool], seconds: float = 2) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes, seconds: float = 2) -> bytes:
    writer.write(line)
    async with asyncio.timeout(seconds):
        return await reader.readline()


def case(test: Callable[[FaultProxy, EchoServer], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run it on a real loop, with a proxy before an echo server; no socket may be left."""

    async def main() -> None:
        async with proxied() as (proxy, echo):
            await test(proxy, echo)

    def call() -> None:
        asyncio.run(main())

    call.__name__ = test.__name__
    call.__doc__ = test.__doc__
    return call


@case
async def test_bytes_pass_both_ways_and_are_counted(proxy: FaultProxy, echo: EchoServer) -> None:
    """Without a fault the proxy changes nothing."""
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    assert await ask(reader, writer, b"hello\n") == b"HELLO\n"
    assert (proxy.accepted, proxy.open, proxy.forwarded) == (1, 1, (6, 6))
    big = b"x" * 50_000 + b"\n"
    assert await ask(reader, writer, big) == big.upper()
    writer.close()
    await eventually(lambda: proxy.open == 0)
    await eventually(lambda: echo.ended == ["eof"])
    assert proxy.accepted == 1


@case
async def test_a_half_closed_connection_still_gets_its_answer(proxy: FaultProxy, echo: EchoServer) -> None:
    """End of file passes like bytes, in order."""
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"last\n")
    writer.write_eof()
    async with asyncio.timeout(2):
        assert await reader.read() == b"LAST\n"
    writer.close()


@case
async def test_freeze_to_the_client_keeps_the_answer_until_heal(proxy: FaultProxy, echo: EchoServer) -> None:
    """The request has been carried out, only nobody hears of it."""
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    proxy.freeze("to_client")
    with pytest.raises(TimeoutError):
        await ask(reader, writer, b"one\n", 0.05)
    await eventually(lambda: echo.received == [b"one\n"])
    proxy.heal()
    async with asyncio.timeout(2):
        assert await reader.readline() == b"ONE\n"
    writer.close()


@case
async def test_freeze_to_the_server_keeps_the_request_until_heal(proxy: FaultProxy, echo: EchoServer) -> None:
    """The other direction, for a new connection as well."""
    proxy.freeze("to_server")
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    with pytest.raises(TimeoutError):
        await ask(reader, writer, b"one\n", 0.05)
    assert echo.received == []
    proxy.heal()
    async with asyncio.timeout(2):
        assert await reader.readline() == b"ONE\n"
    writer.close()


@case
async def test_a_client_that_leaves_a_frozen_connection_is_seen_to_leave(proxy: FaultProxy, echo: EchoServer) -> None:
    """ "terminate releases the socket at once" is asked behind a frozen proxy; the server hears of it later."""
    _reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    await eventually(lambda: echo.connected == 1)
    proxy.freeze()
    assert proxy.open == 1
    writer.transport.abort()
    await eventually(lambda: proxy.open == 0)
    assert echo.ended == []
    proxy.heal()
    await eventually(lambda: len(echo.ended) == 1)


@case
async def test_reset_reaches_both_ends_as_a_reset(proxy: FaultProxy, echo: EchoServer) -> None:
    """Not as an orderly end: drivers treat the two differently."""
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    assert await ask(reader, writer, b"a\n") == b"A\n"
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await ask(reader, writer, b"b\n")
    await eventually(lambda: echo.ended == ["reset"])
    writer.close()
    again = await asyncio.open_connection(proxy.host, proxy.port)
    assert await ask(*again, b"c\n") == b"C\n"
    again[1].close()


@case
async def test_reset_of_new_connections_lasts_until_heal(proxy: FaultProxy, echo: EchoServer) -> None:
    """A firewall, or a server that crashes on every hello."""
    proxy.reset(new=True)
    with pytest.raises(ConnectionResetError):
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        try:
            await ask(reader, writer, b"a\n")
        finally:
            writer.close()
    proxy.heal()
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    assert await ask(reader, writer, b"a\n") == b"A\n"
    writer.close()
    assert echo.connected == 1


@case
async def test_fin_is_an_orderly_end_for_both(proxy: FaultProxy, echo: EchoServer) -> None:
    """An idle timeout of the server: end of file, no error."""
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    assert await ask(reader, writer, b"a\n") == b"A\n"
    proxy.fin(new=True)
    async with asyncio.timeout(2):
        assert await reader.read() == b""
    await eventually(lambda: echo.ended == ["eof"])
    new_reader, new_writer = await asyncio.open_connection(proxy.host, proxy.port)
    async with asyncio.timeout(2):
        assert await new_reader.read() == b""
    writer.close()
    new_writer.close()


@case
async def test_a_refused_port_stays_ours_and_comes_back(proxy: FaultProxy, echo: EchoServer) -> None:
    """A server restart: refused meanwhile, the same port afterwards; present connections are not touched."""
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    port = proxy.port
    for _ in range(3):
        proxy.refuse()
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(proxy.host, port)
        with socket.socket() as rival, pytest.raises(OSError):
            rival.bind((proxy.host, port))
        assert await ask(reader, writer, b"still\n") == b"STILL\n"
        proxy.heal()
        again = await asyncio.open_connection(proxy.host, port)
        assert await ask(*again, b"c\n") == b"C\n"
        again[1].close()
    writer.close()


@case
async def test_a_slow_accept_delays_the_first_answer(proxy: FaultProxy, echo: EchoServer) -> None:
    """What was sent meanwhile is not lost."""
    proxy.slow_accept(0.1)
    began = time.monotonic()
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    assert await ask(reader, writer, b"a\n") == b"A\n"
    assert time.monotonic() - began >= 0.1
    _hasty, hasty_writer = await asyncio.open_connection(proxy.host, proxy.port)
    hasty_writer.close()
    await asyncio.sleep(0.15)
    writer.close()


@case
async def test_a_retargeted_proxy_leads_new_connections_elsewhere(proxy: FaultProxy, echo: EchoServer) -> None:
    """A failover behind one address: present connections stay with the old server."""
    other = EchoServer()
    server = await asyncio.start_server(other.serve, "127.0.0.1", 0)
    old = await asyncio.open_connection(proxy.host, proxy.port)
    assert await ask(*old, b"old\n") == b"OLD\n"
    proxy.retarget(*server.sockets[0].getsockname())
    new = await asyncio.open_connection(proxy.host, proxy.port)
    assert await ask(*new, b"new\n") == b"NEW\n"
    assert await ask(*old, b"still\n") == b"STILL\n"
    assert (echo.received, other.received) == ([b"old\n", b"still\n"], [b"new\n"])
    for _, writer in (old, new):
        writer.close()
    await eventually(lambda: len(other.ended) == 1)
    server.close()


@case
async def test_silence_accepts_and_never_answers(proxy: FaultProxy, echo: EchoServer) -> None:
    """The fault that hangs drivers without a connect timeout of their own."""
    proxy.silence()
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    with pytest.raises(TimeoutError):
        await ask(reader, writer, b"a\n", 0.05)
    proxy.heal()
    with pytest.raises(TimeoutError):
        await ask(reader, writer, b"a\n", 0.05)
    assert echo.connected == 0
    assert proxy.open == 1
    writer.close()
    await eventually(lambda: proxy.open == 0)


@case
async def test_a_trickle_brings_everything_in_small_pieces(proxy: FaultProxy, echo: EchoServer) -> None:
    """Whoever takes one read for one message breaks here."""
    proxy.trickle(delay=30, size=4, direction="to_client")
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"abcdefghij\n")
    async with asyncio.timeout(2):
        assert await reader.read(100) == b"ABCD"
    proxy.heal()
    proxy.trickle(delay=0.001, size=2)
    async with asyncio.timeout(2):
        assert await reader.readline() == b"EFGHIJ\n"
    proxy.heal()
    assert await ask(reader, writer, b"k\n") == b"K\n"
    writer.close()


@case
async def test_a_cut_lets_exactly_so_many_bytes_through(proxy: FaultProxy, echo: EchoServer) -> None:
    """Half an answer, then the end: in good order or by a reset, for present and new connections."""
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    assert await ask(reader, writer, b"before\n") == b"BEFORE\n"
    proxy.cut(4)
    writer.write(b"abcdefgh\n")
    async with asyncio.timeout(2):
        assert await reader.read() == b"ABCD"
    writer.close()
    proxy.cut(0, reset=True)
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    with pytest.raises(ConnectionResetError):
        await ask(reader, writer, b"abc\n")
    writer.close()
    assert proxy.forwarded[1] == 7 + 4
    proxy.heal()
    proxy.cut(2, direction="to_server")
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"a\nbcd\n")
    async with asyncio.timeout(2):
        assert await reader.read() in (b"A\n", b"")
    writer.close()
    await eventually(lambda: echo.received == [b"before\n", b"abcdefgh\n", b"abc\n", b"a\n"])


@case
async def test_more_than_the_proxy_holds_meets_back_pressure_and_is_not_lost(
    proxy: FaultProxy, echo: EchoServer
) -> None:
    """A frozen proxy must not eat the memory of the machine; healed, it delivers every byte."""
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port, limit=1 << 24)
    line = b"y" * 60_000 + b"\n"
    proxy.freeze("to_server")
    for _ in range(500):
        writer.write(line)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await writer.drain()
    proxy.heal()
    async with asyncio.timeout(10):
        for _ in range(500):
            assert await reader.readline() == line.upper()
    writer.close()


def test_a_server_that_is_down_looks_like_a_reset() -> None:
    """A proxy cannot refuse what the kernel has accepted already."""

    async def main() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            # It may come so soon that the connect itself sees it.
            with FaultProxy(*closed.getsockname()) as proxy, pytest.raises(ConnectionResetError):
                reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
                try:
                    await ask(reader, writer, b"a\n")
                finally:
                    writer.close()

    asyncio.run(main())


def test_it_works_while_the_loop_under_test_is_blocked() -> None:
    """A driver that blocks its loop is still connected to something that lives."""

    def serve(listener: socket.socket) -> None:
        conn, _ = listener.accept()
        with conn:
            conn.sendall(conn.recv(10).upper())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()

        async def main() -> bytes:
            with (
                FaultProxy(*listener.getsockname()) as proxy,
                socket.create_connection((proxy.host, proxy.port)) as conn,
            ):
                conn.sendall(b"hi")
                return conn.recv(10)

        assert asyncio.run(main()) == b"HI"
        thread.join()


def test_close_is_bounded_and_leaves_no_thread_and_may_be_repeated() -> None:
    """Even with a frozen connection full of bytes."""

    async def main() -> None:
        async with proxied() as (proxy, _echo):
            _reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            proxy.freeze()
            for _ in range(100):
                writer.write(b"z" * 65_536)
            began = time.monotonic()
            proxy.close()
            proxy.close()
            assert time.monotonic() - began < 1
            assert not any(thread.name == f"fault-proxy-{proxy.port}" for thread in threading.enumerate())
            with pytest.raises(RuntimeError, match="closed>: make a new one"):
                proxy.heal()
            with pytest.raises(ConnectionError):
                await writer.drain()
                await _reader.read()
            writer.transport.abort()

    asyncio.run(main())


def test_nonsense_is_refused() -> None:
    """A misspelt direction would otherwise be a test without a fault."""
    with FaultProxy("127.0.0.1", 1) as proxy:
        with pytest.raises(ValueError, match="direction='server': allowed are to_server, to_client, both"):
            proxy.freeze("server")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="size=0"):
            proxy.trickle(size=0)
        with pytest.raises(ValueError, match="after=-1"):
            proxy.cut(-1)
