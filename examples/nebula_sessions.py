"""NebulaGraph 3 in a pool: sessions of its own Python client, which is synchronous, each in a thread.

pip install pool-core nebula3-python, then: NEBULA_URL=nebula://root:nebula@127.0.0.1:9669/space python nebula_sessions.py

There is no package for it: see "NebulaGraph" in the documentation of the adapters. What the client does behind one's
back is left out here: its Connection opens a new socket when a request times out, and its Session goes to another server.
"""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from nebula3.common.ttypes import ErrorCode
from nebula3.data.ResultSet import ResultSet
from nebula3.fbthrift.protocol.THeaderProtocol import THeaderProtocol
from nebula3.fbthrift.transport.THeaderTransport import THeaderTransport
from nebula3.fbthrift.transport.TSocket import TSocket
from nebula3.fbthrift.transport.TTransport import TBufferedTransport
from nebula3.graph import GraphService
from nebula3.graph.ttypes import VerifyClientVersionReq
from pool_core import Pool, ReplaceConnection
from pool_core import adapters as base

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

T = TypeVar("T")


class NebulaError(Exception):
    """What the server has answered; `code` is its number."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code

    def __str__(self) -> str:
        return f"{self.args[1]} ({self.code})"


class NebulaSession:
    """A session on a TCP connection and a thread of its own."""

    def __init__(self, host: str, port: int, connect_timeout: float) -> None:
        self._socket = TSocket(host, port)
        self._socket.setTimeout(connect_timeout * 1000)
        transport = THeaderTransport(TBufferedTransport(self._socket))
        self._client: Any = GraphService.Client(THeaderProtocol(transport))
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._id = 0
        self.under_way = 0
        self.dropped = False
        self.space_left = False
        threading.Thread(target=self._work, name="nebula session", daemon=True).start()

    async def execute(self, statement: str, parameters: Mapping[str, Any] | None = None) -> ResultSet:
        """Execute nGQL. Raises NebulaError. A cancel drops the connection."""
        self.space_left = self.space_left or "USE" in statement.upper().split()
        answer = await self._call(self._client.executeWithParameter, self._id, statement, parameters)
        if answer.error_code != ErrorCode.SUCCEEDED:
            raise NebulaError(answer.error_code, (answer.error_msg or b"").decode())
        return ResultSet(answer, 0)

    async def log_in(self, user: str, password: str, space: str | None) -> None:
        """Open the connection and a session on it."""
        self._id = await self._call(self._log_in, user, password)
        if space:
            await self.execute(f"USE `{space}`")
            self.space_left = False

    def _log_in(self, user: str, password: str) -> int:
        self._socket.open()
        version = self._client.verifyClientVersion(VerifyClientVersionReq())
        if version.error_code != ErrorCode.SUCCEEDED:
            raise NebulaError(version.error_code, (version.error_msg or b"").decode())
        login = self._client.authenticate(user, password)
        if login.error_code != ErrorCode.SUCCEEDED:
            raise NebulaError(login.error_code, (login.error_msg or b"").decode())
        self._socket.setTimeout(None)
        return int(login.session_id)

    async def close(self) -> None:
        """Sign out and close."""
        with suppress(OSError):
            await self._call(self._client.signout, self._id)
        self.drop()

    def drop(self) -> None:
        """Drop the connection: the thread gets an error, if it waits for an answer, and ends."""
        if not self.dropped:
            self.dropped = True
            handle = self._socket.getHandle()
            if handle is not None:
                with suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)
            self._jobs.put(None)

    @property
    def lost(self) -> bool:
        """Whether the server has ended the connection, or sent what nobody asked for. No I/O."""
        handle = self._socket.getHandle()
        if handle is None:
            return True
        try:
            handle.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        if self.dropped:
            raise ConnectionError("this session of NebulaGraph is closed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.under_way += 1
        self._jobs.put((future, function, arguments))
        try:
            return await future
        except asyncio.CancelledError:
            self.drop()  # its answer may still come
            raise
        finally:
            self.under_way -= 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, function, arguments = job
            outcome: tuple[Any, Exception | None]
            try:
                outcome = (function(*arguments), None)
            except Exception as error:
                outcome = (None, error if isinstance(error, NebulaError) else ConnectionError(str(error)))
            with suppress(RuntimeError):  # the loop is closed
                future.get_loop().call_soon_threadsafe(_settle, future, *outcome)
        self._socket.close()


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if not future.done():
        future.set_exception(error) if error else future.set_result(result)


class NebulaSettings(base.Settings):
    """Host, port, login and space."""

    def read(self, url: str) -> dict[str, Any]:
        """Turn a URL into keywords."""
        parts = base.URL(url, schemes=("nebula",), form="nebula://user:password@host:9669/space")
        named = {"host": parts.host, "port": parts.port, "user": parts.user, "password": parts.password}
        return {name: value for name, value in {**named, "space": parts.path[1:] or None}.items() if value is not None}

    def place(self) -> str:
        """Server and space."""
        values = self.values
        return f"nebula://{values.get('host', 'localhost')}:{values.get('port', 9669)}/{values.get('space', '')}"


SOURCE = "https://github.com/vesoft-inc/nebula/blob/master/src/interface/common.thrift"
LASTING = base.ErrorTable(
    (ErrorCode.E_BAD_USERNAME_PASSWORD, False, f"the login; {SOURCE}"),
    (
        (ErrorCode.E_EXECUTION_ERROR, ErrorCode.E_SPACE_NOT_FOUND),
        False,
        f"no such space: USE is all that is run; {SOURCE}",
    ),
    code=lambda exc: exc.code if isinstance(exc, NebulaError) else None,
)


class NebulaSessionManager:
    """Opens, validates, resets and closes sessions, for ``pool_core.Pool``."""

    def __init__(self, url: str | None = None, *, connect_timeout: float = 5.0, **options: Any) -> None:
        self._settings = NebulaSettings(url, options)
        self._connect_timeout = connect_timeout

    def __repr__(self) -> str:
        return f"<NebulaSessionManager {self._settings.place()}>"

    async def connect(self) -> NebulaSession:
        """Open a session in a thread; `connect_timeout` bounds what a cancel cannot reach."""
        values = await self._settings.resolved()
        session = NebulaSession(values.get("host", "localhost"), values.get("port", 9669), self._connect_timeout)
        with base.dropping_on_failure(session.drop):
            await session.log_in(values.get("user", "root"), values.get("password", ""), values.get("space"))
        return session

    async def is_valid(self, session: NebulaSession, /) -> bool:
        """Ask the server for a number."""
        return (await session.execute("YIELD 1")).is_succeeded()  # type: ignore[no-any-return]

    def has_broken(self, session: NebulaSession, /) -> bool:
        """Tell whether it is closed, lost, or still in use."""
        return session.dropped or session.under_way > 0 or session.lost

    def reset(self, session: NebulaSession, /) -> Awaitable[None] | None:
        """Go back to the space; without one in the settings there is no way back to none."""
        if not session.space_left:
            return None
        space = self._settings.values.get("space")
        if space is None:
            raise ReplaceConnection
        return self._reset(session, space)

    async def _reset(self, session: NebulaSession, space: str) -> None:
        await session.execute(f"USE `{space}`")
        session.space_left = False

    async def close(self, session: NebulaSession, /) -> None:
        """Sign out and close."""
        await session.close()

    def terminate(self, session: NebulaSession, /) -> None:
        """Drop the connection."""
        session.drop()

    def is_transient(self, exc: Exception, /) -> bool:
        """Tell whether the same connect may succeed later."""
        return base.is_transient(exc, LASTING)


async def main() -> None:
    """Ask ten times, over two sessions."""
    async with Pool(NebulaSessionManager(os.environ["NEBULA_URL"]), max_size=2, min_idle=1) as pool:

        async def ask(number: int) -> Any:
            async with pool.get() as session:
                return (await session.execute(f"YIELD {number}")).row_values(0)[0].as_int()

        print(*await asyncio.gather(*map(ask, range(10))))


if __name__ == "__main__":
    asyncio.run(main())
