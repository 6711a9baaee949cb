"""An adapter of one's own: pooling connections of a small line protocol over TCP.

Three parts: a driver (``LineConnection``), the adapter that teaches the pool to use it (``LineManager``, 40 lines), and
a server to try it on. ``python examples/custom_manager.py`` runs all three; the conformance suite tests the adapter.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator

from pool_core import Pool

# ------------------------------------------------------------------ the driver: one line asks, one line answers


class LineConnection(asyncio.Protocol):
    """One connection; answers come in the order of the requests."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.waiting: deque[asyncio.Future[str]] = deque()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.changed = False  # whether a request has changed the session's state
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, request: str) -> asyncio.Future[str]:
        """Send a request; its answer comes with the future."""
        if self.lost.done():
            raise ConnectionResetError("the connection is closed")
        self.changed |= request.startswith(("USE", "BEGIN"))
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.waiting.append(answer)
        self.transport.write(request.encode() + b"\n")
        return answer

    async def ask(self, request: str) -> str:
        """Send a request and wait for its answer."""
        return await self.send(request)

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            answer = self.waiting.popleft()
            if not answer.done():
                answer.set_result(line.decode())

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)
        for answer in self.waiting:
            if not answer.done():
                answer.set_exception(ConnectionResetError("the server has closed the connection"))


# ------------------------------------------------------------------ the adapter


class LineManager:
    """Opens, validates, resets and closes LineConnections."""

    def __init__(self, host: str, port: int, *, user: str = "guest", password: str = "") -> None:
        self._address = host, port
        # In a closure: neither repr nor vars can show it.
        self._hello: Callable[[], str] = lambda: f"HELLO {user} {password}"

    async def connect(self) -> LineConnection:
        transport, conn = await asyncio.get_running_loop().create_connection(LineConnection, *self._address)
        try:
            answer = await conn.ask(self._hello())  # a server that is full accepts and says nothing: prove it
        except BaseException:  # a cancel too must not leave the socket open
            transport.abort()
            raise
        if answer != "OK":
            transport.abort()
            raise PermissionError(answer)
        return conn

    async def is_valid(self, conn: LineConnection, /) -> bool:
        return await conn.ask("PING") == "PONG"

    def has_broken(self, conn: LineConnection, /) -> bool:
        # An answer that is still to come would be taken by the next borrower for his own.
        return conn.lost.done() or conn.transport.is_closing() or bool(conn.waiting)

    async def close(self, conn: LineConnection, /) -> None:
        conn.transport.close()
        await asyncio.shield(conn.lost)

    async def _reset(self, conn: LineConnection) -> None:
        if await conn.ask("RESET") != "OK":
            raise ConnectionError("the server did not reset the session")
        conn.changed = False

    def reset(self, conn: LineConnection, /) -> asyncio.Future[None] | None:
        return asyncio.ensure_future(self._reset(conn)) if conn.changed else None  # None: no round trip

    def terminate(self, conn: LineConnection, /) -> None:
        conn.transport.abort()

    def is_transient(self, exc: Exception, /) -> bool:
        return not isinstance(exc, PermissionError)


# ------------------------------------------------------------------ a server to try it on


class LineServer:
    """A server for the protocol: HELLO, PING, USE, WHERE, BEGIN, STATUS, RESET, SLEEP, ID, KILL."""

    def __init__(self, password: str = "") -> None:
        self._password = password
        self._sessions: dict[int, asyncio.StreamWriter] = {}
        self._numbers = itertools.count(1)

    async def session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        number = next(self._numbers)
        self._sessions[number] = writer
        state = {"WHERE": "main", "STATUS": "idle"}
        known = False
        try:
            while line := await reader.readline():
                verb, *words = line.decode().split()
                answer = "OK"
                if verb == "HELLO":
                    known = words[1:] == self._password.split()
                    answer = "OK" if known else "DENIED wrong password"
                elif not known:
                    answer = "DENIED say HELLO first"
                elif verb == "PING":
                    answer = "PONG"
                elif verb == "USE":
                    state["WHERE"] = words[0]
                elif verb == "BEGIN":
                    state["STATUS"] = "in transaction"
                elif verb in state:
                    answer = state[verb]
                elif verb == "RESET":
                    state = {"WHERE": "main", "STATUS": "idle"}
                elif verb == "SLEEP":
                    await asyncio.sleep(float(words[0]))
                elif verb == "ID":
                    answer = str(number)
                elif verb == "KILL":
                    self._sessions[int(words[0])].transport.abort()
                else:
                    answer = f"WHAT {verb}"
                writer.write(answer.encode() + b"\n")
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the server stops
        finally:
            del self._sessions[number]
            writer.close()

    async def serve(self, ready: Callable[[], None]) -> None:
        """Listen on a free port of 127.0.0.1 until stop() is called, from any thread."""
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        self.stop = functools.partial(loop.call_soon_threadsafe, end.set)
        server = await asyncio.start_server(self.session, "127.0.0.1", 0)
        self.host, self.port = server.sockets[0].getsockname()
        ready()
        await end.wait()
        server.close()

    @contextlib.contextmanager
    def in_a_thread(self) -> Iterator[LineServer]:
        """Serve beside programs with event loops of their own."""
        ready = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self.serve(ready.set)), name="line-server")
        thread.start()
        ready.wait(5)
        try:
            yield self
        finally:
            self.stop()
            thread.join(5)


# ------------------------------------------------------------------ all together


async def main() -> None:
    """A hundred tasks over four connections."""
    with LineServer("swordfish").in_a_thread() as server:
        pool = Pool(LineManager(server.host, server.port, password="swordfish"), max_size=4, min_idle=1)

        async def work(number: int) -> str:
            async with pool.get() as conn:
                await conn.ask(f"USE room{number}")
                return await conn.ask("WHERE")  # the reset has removed what the last borrower used

        async with pool:
            answers = await asyncio.gather(*(work(number) for number in range(100)))
            statistics = pool.state().statistics
        print(f"{len(set(answers))} answers over {statistics.connections_created} connections")


if __name__ == "__main__":
    asyncio.run(main())
