"""Each answer belongs to its question: what aiomcache alone gets wrong, on servers that say what the test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiomcache import ClientException, ValidationException
from pool_core import CloseReason, Pool
from pool_memcached import LeasedMemcached, MemcachedConnectionManager

Script = dict[bytes, bytes]
"""The answer to each first word of a command; the data of a "set" are no command here."""


@contextlib.asynccontextmanager
async def memcached_that(answers: Script, *, piece: int = 1000) -> AsyncIterator[MemcachedConnectionManager]:
    """Serve these answers, in pieces of so many bytes; an answer that is b"" ends the connection."""
    script = {b"version": b"VERSION 1.6.0\r\n"} | answers

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while line := await reader.readline():
                answer = script.get(line.split()[0])
                if answer is None:
                    continue
                for at in range(0, len(answer), piece):
                    writer.write(answer[at : at + piece])
                    await asyncio.sleep(0)
                if not answer or not answer.endswith(b"\r\n"):
                    break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        yield MemcachedConnectionManager(host="127.0.0.1", port=listener.sockets[0].getsockname()[1])
        listener.close()
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def leased(answers: Script, **options: Any) -> AsyncIterator[tuple[MemcachedConnectionManager, LeasedMemcached]]:
    """A connection to such a server."""
    async with memcached_that(answers, **options) as manager:
        client = await manager.connect()
        try:
            yield manager, client
        finally:
            manager.terminate(client)
            await asyncio.sleep(0)


def test_a_value_that_ends_like_an_answer_is_read_whole(run: Any) -> None:
    """Also when it arrives byte by byte."""

    async def main() -> None:
        value = b"one\r\nEND\r\ntwo\r\nEND\r\n"
        answer = b"VALUE k 0 %d\r\n%b\r\nEND\r\n" % (len(value), value)
        async with leased({b"get": answer}, piece=1) as (manager, client):
            for _ in range(3):
                assert await client.get(b"k") == value
            assert manager.has_broken(client) is False

    run(main())


def test_a_cancelled_command_costs_the_connection(run: Any) -> None:
    """aiomcache alone gives its answer to the next command."""

    async def main() -> None:
        async with leased({}) as (manager, client):
            task = asyncio.ensure_future(client.get(b"k"))  # never answered
            await asyncio.sleep(0.01)
            assert manager.has_broken(client) is True
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert manager.has_broken(client) is True
            with pytest.raises(ConnectionResetError, match="get another one"):
                await client.version()

    run(main())


def test_a_command_behind_a_cancelled_one_fails(run: Any) -> None:
    """Two tasks share a lease; the second must not get the first one's answer."""

    async def main() -> None:
        async with leased({}) as (_, client):
            first = asyncio.ensure_future(client.get(b"k"))
            await asyncio.sleep(0.01)
            second = asyncio.ensure_future(client.version())
            await asyncio.sleep(0)
            first.cancel()
            with pytest.raises(ConnectionResetError):
                await second
            assert first.cancelled()

    run(main())


def test_a_command_cancelled_while_it_waits_its_turn_costs_nothing(run: Any) -> None:
    """It has sent nothing."""

    async def main() -> None:
        async with leased({}) as (manager, client):
            link = await client.link.acquire()
            waiting = asyncio.ensure_future(client.version())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.sleep(0)
            client.link.release(link)
            assert manager.has_broken(client) is False
            assert await client.version() == b"1.6.0"

    run(main())


@pytest.mark.parametrize(
    ("answers", "command"),
    [
        ({b"delete": b""}, lambda client: client.delete(b"k")),
        ({b"delete": b"DELE"}, lambda client: client.delete(b"k")),
        ({b"get": b""}, lambda client: client.get(b"k")),
        ({b"get": b"VALUE k 0 5\r\nab"}, lambda client: client.get(b"k")),
        ({b"get": b"VALUE k 0 5\r\nabcde\r\n\r"}, lambda client: client.get(b"k")),
        ({b"stats": b"STAT pid 1\r\nST"}, lambda client: client.stats()),
    ],
)
def test_the_end_of_the_connection_ends_a_command(answers: Script, command: Callable[..., Any], run: Any) -> None:
    """aiomcache alone reads empty lines for ever, and the event loop stands still."""

    async def main() -> None:
        async with leased(answers) as (manager, client):
            with pytest.raises(ConnectionResetError):
                await command(client)
            assert manager.has_broken(client) is True

    run(main())


@pytest.mark.parametrize(
    ("answers", "command"),
    [
        ({b"incr": b"NOT_FOUND\r\n"}, lambda client: client.incr(b"k")),
        (
            {b"incr": b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"},
            lambda client: client.incr(b"k"),
        ),
        ({b"set": b"SERVER_ERROR object too large for cache\r\n"}, lambda client: client.set(b"k", b"x")),
        ({b"get": b"SERVER_ERROR out of memory\r\n"}, lambda client: client.get(b"k")),
        ({}, lambda client: client.get(b"a key")),
        ({}, lambda client: client.multi_get(b"k", b"k")),
    ],
)
def test_an_error_that_is_a_whole_answer_costs_nothing(answers: Script, command: Callable[..., Any], run: Any) -> None:
    """aiomcache alone closes the connection after each error, also where a counter is missing."""

    async def main() -> None:
        async with leased(answers) as (manager, client):
            for _ in range(2):
                with pytest.raises(ClientException):
                    await command(client)
                assert manager.has_broken(client) is False
            assert await client.version() == b"1.6.0"

    run(main())


@pytest.mark.parametrize(
    ("answers", "command"),
    [
        # memcached answers the data of a command that it could not read, too
        ({b"set": b"CLIENT_ERROR bad command line format\r\nERROR\r\n"}, lambda client: client.set(b"k", b"x")),
        ({b"cas": b"ERROR\r\nERROR\r\n"}, lambda client: client.cas(b"k", b"x", 0)),
        ({b"get": b"VALUE k 7 1\r\nx\r\nEND\r\n"}, lambda client: client.get(b"k")),  # flags, and no handler
        ({b"get": b"VALUE k 0 1\r\nx\r\nVALUE k 0 1\r\nx\r\nEND\r\n"}, lambda client: client.get(b"k")),
    ],
)
def test_an_error_with_more_to_come_costs_the_connection(
    answers: Script, command: Callable[..., Any], run: Any
) -> None:
    """The rest would be the answer to the next borrower's command."""

    async def main() -> None:
        async with leased(answers) as (manager, client):
            with pytest.raises(ClientException):
                await command(client)
            assert manager.has_broken(client) is True

    run(main())


def test_bytes_that_nobody_asked_for_cost_the_connection(run: Any) -> None:
    """They arrive while the connection is idle."""

    async def main() -> None:
        async with leased({b"delete": b"DELETED\r\nDELETED\r\n"}, piece=9) as (manager, client):
            assert await client.delete(b"k") is True
            await asyncio.sleep(0.02)
            assert manager.has_broken(client) is True

    run(main())


def test_a_handler_sees_flags_and_values(run: Any) -> None:
    """As aiomcache's FlagClient has it."""

    async def get_flag(value: bytes, flags: int) -> Any:
        return int(value) if flags == 7 else value

    async def set_flag(value: Any) -> tuple[bytes, int]:
        return str(value).encode(), 7

    async def main() -> None:
        answers = {b"set": b"STORED\r\n", b"get": b"VALUE k 7 2\r\n42\r\nEND\r\n"}
        async with memcached_that(answers) as manager:
            manager.update(get_flag_handler=get_flag, set_flag_handler=set_flag)
            client = await manager.connect()
            assert await client.set(b"k", 42) is True
            assert await client.get(b"k") == 42
            await manager.close(client)

    run(main())


def test_a_failed_handler_costs_the_connection(run: Any) -> None:
    """Its exception leaves the rest of the answer unread."""

    async def get_flag(value: bytes, flags: int) -> Any:
        raise LookupError(flags)

    async def main() -> None:
        async with memcached_that({b"get": b"VALUE k 7 2\r\n42\r\nEND\r\n"}) as manager:
            manager.update(get_flag_handler=get_flag)
            client = await manager.connect()
            with pytest.raises(LookupError):
                await client.get(b"k")
            assert manager.has_broken(client) is True

    run(main())


def test_a_borrower_that_closes_the_client_costs_its_connection(run: Any) -> None:
    """client.close() is aiomcache's own method; the pool opens another connection."""

    async def main() -> None:
        async with memcached_that({}) as manager, Pool(manager, max_size=1) as pool:
            async with pool.get() as client:
                await client.close()
            async with pool.get() as client:
                assert await client.version() == b"1.6.0"
            assert pool.state().statistics.connections_closed[CloseReason.BROKEN] == 1

    run(main())


def test_a_mistake_in_a_key_costs_no_connection(run: Any) -> None:
    """The error leaves the block; the connection is validated and stays."""

    async def main() -> None:
        async with memcached_that({}) as manager, Pool(manager, max_size=1) as pool:
            with pytest.raises(ValidationException):
                async with pool.get() as client:
                    await client.get(b"a key")
            async with pool.get() as client:
                assert await client.version() == b"1.6.0"
            assert pool.state().statistics.connections_created == 1

    run(main())
