"""Deliberately wrong adapters: each is caught by its check, with a message that names the fault.

Every one of them is the right adapter of the example with one mistake, over a real server.
"""

# mypy: ignore-errors
from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pool_core.testing import ManagerConformance, Probe

from .example import LineConnection, LineManager, LineServer


class Parts:
    """The right adapter's connect, taken apart so that one thing at a time can be wrong."""

    Connection = LineConnection

    def __init__(self, host: str, port: int, *, user: str = "guest", password: str = "") -> None:
        LineManager.__init__(self, host, port, user=user, password=password)
        self.address = host, port

    async def open(self) -> Any:
        _, conn = await asyncio.get_running_loop().create_connection(self.Connection, *self.address)
        return conn

    _hello: Any

    async def hello(self, conn: Any) -> None:
        answer = await conn.ask(self._hello())
        if answer != "OK":
            raise PermissionError(answer)

    async def connect(self) -> Any:
        conn = await self.open()
        try:
            await self.hello(conn)
        except BaseException:
            conn.transport.abort()
            raise
        return conn


def right(*, without: str = "") -> Any:
    """The right adapter as a class of its own, so that it can really lack a method."""
    body = {**vars(LineManager), **vars(Parts)}
    for name in ("__dict__", "__weakref__", without):
        body.pop(name, None)
    return type("Right", (), body)


Base = right()


# ------------------------------------------------------------------ protocol


class NoHasBroken(right(without="has_broken")):
    """Three of the four methods."""


class MisspeltReset(right(without="reset")):
    def resett(self, conn: Any) -> None:
        """Meant well."""


class AwaitedHasBroken(Base):
    async def has_broken(self, conn: Any) -> bool:
        return False


class AwaitedJudge(Base):
    async def judge(self, exc: Exception, conn: Any) -> Any:
        return None


class JudgesWithoutItsConnection(Base):
    def judge(self, exc: Exception) -> Any:
        return None


class CloseWithoutItsConnection(Base):
    async def close(self) -> None:
        """Of what?"""


class ConnectsWhenMade(Base):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        socket.create_connection(self.address).close()
        time.sleep(0.02)


class NeedsLoopWhenMade(Base):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop = asyncio.get_running_loop()


# ------------------------------------------------------------------ connect, use, close


class ForgetsReturn(Base):
    async def is_valid(self, conn: Any) -> None:
        assert await conn.ask("PING") == "PONG"


class ForgetsTheConnection(Base):
    async def connect(self) -> None:
        (await super().connect()).transport.abort()


class IsValidIsPlain(Base):
    def is_valid(self, conn: Any) -> bool:
        return not conn.lost.done()


class HasBrokenForgetsReturn(Base):
    def has_broken(self, conn: Any) -> None:
        super().has_broken(conn)


class ResetReturnsTrue(Base):
    def reset(self, conn: Any) -> bool:
        return True


class ResetFails(Base):
    def reset(self, conn: Any) -> Any:
        raise NotImplementedError("some day")


class SameConnectionTwice(Base):
    kept: Any = None

    async def connect(self) -> Any:
        self.kept = self.kept or await super().connect()
        return self.kept


class NewIsBroken(Base):
    def has_broken(self, conn: Any) -> bool:
        return True


class CloseIsPlain(Base):
    def close(self, conn: Any) -> None:
        conn.transport.close()


class CloseKeepsSocket(Base):
    async def close(self, conn: Any) -> None:
        """Later."""

    def terminate(self, conn: Any) -> None:
        conn.transport.abort()


class OneReadIsOneMessage(LineConnection):
    def data_received(self, data: bytes) -> None:
        answer = self.waiting.popleft()
        if not answer.done():
            answer.set_result(data.decode().strip())


class ReadsPieces(Base):
    Connection = OneReadIsOneMessage


class ReadsTheFirst(Base):
    """Its handshake reads to the end; what follows does not."""

    class Connection(LineConnection):
        def data_received(self, data: bytes) -> None:
            if self.waiting and hasattr(self, "known"):
                self.waiting.popleft().set_result((self._buffer + data).decode().strip())
                self._buffer = b""
            elif data.endswith(b"\n"):
                super().data_received(data)
                self.known = True
            else:
                self._buffer += data


class OneLockForAll(Base):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        manager = self

        class Locked(LineConnection):
            async def ask(self, request: str) -> Any:
                async with manager.lock:
                    return await super().ask(request)

        self.Connection = Locked
        self.lock = asyncio.Lock()


class ThrowsAwayWhatWasUsed(Base):
    def has_broken(self, conn: Any) -> bool:
        return getattr(conn, "used", False) or bool(super().has_broken(conn))

    class Connection(LineConnection):
        async def ask(self, request: str) -> Any:
            self.used = not request.startswith("HELLO")
            return await super().ask(request)


# ------------------------------------------------------------------ connect errors


class DownIsFinal(Base):
    def is_transient(self, exc: Exception) -> bool:
        return False


class LeaksOnFailure(Base):
    kept: Any = None

    async def connect(self) -> Any:
        conn = await self.open()
        self.kept = socket.create_connection(self.address)  # "for later"; never closed when hello fails
        await self.hello(conn)
        self.kept.close()
        return conn


class BelievesTcp(Base):
    async def connect(self) -> Any:
        return await self.open()

    async def is_valid(self, conn: Any) -> bool:
        await self.hello(conn)
        return bool(await super().is_valid(conn))


class RetriesForEver(Base):
    async def connect(self) -> Any:
        while True:
            try:
                return await super().connect()
            except OSError:
                await asyncio.sleep(0.05)


class FailsByCancel(Base):
    async def connect(self) -> Any:
        try:
            return await super().connect()
        except OSError:
            raise asyncio.CancelledError from None


class FailsByExit(Base):
    async def connect(self) -> Any:
        try:
            return await super().connect()
        except OSError:
            raise BaseExceptionGroup("no", [GeneratorExit("connect failed")]) from None


class WrongPasswordMayHeal(Base):
    def is_transient(self, exc: Exception) -> bool:
        return True


class CanNotTell(right(without="is_transient")):
    """An error is an error."""


# ------------------------------------------------------------------ cancels


class LeaksOnCancel(Base):
    async def connect(self) -> Any:
        conn = await self.open()
        try:
            await self.hello(conn)
        except Exception:  # a CancelledError is none
            conn.transport.abort()
            raise
        return conn


class ConnectCanNotBeCancelled(Base):
    async def connect(self) -> Any:
        task = asyncio.ensure_future(super().connect())
        for _ in range(10):
            try:
                return await asyncio.shield(asyncio.wait_for(asyncio.shield(task), 0.5))
            except asyncio.CancelledError:
                pass
        task.cancel()
        return await task


class IsValidSwallowsCancels(Base):
    async def is_valid(self, conn: Any) -> bool:
        answer = conn.send("PING")
        try:
            await asyncio.shield(answer)
        except asyncio.CancelledError:
            await asyncio.get_running_loop().create_future()
        return True


class ResetKeepsItsLock(right(without="terminate")):
    async def _reset(self, conn: Any) -> None:
        conn.locked = True
        await super()._reset(conn)
        conn.locked = False

    async def close(self, conn: Any) -> None:
        while getattr(conn, "locked", False):
            await asyncio.sleep(0.01)
        await super().close(conn)


class CloseSaysGoodbyeFirst(right(without="terminate")):
    async def close(self, conn: Any) -> None:
        await conn.ask("PING")
        conn.transport.close()


# ------------------------------------------------------------------ broken or not


class SlowHasBroken(Base):
    def has_broken(self, conn: Any) -> bool:
        time.sleep(0.003)
        return bool(super().has_broken(conn))


class HasBrokenAsksTheServer(Base):
    def has_broken(self, conn: Any) -> bool:
        if super().has_broken(conn):
            return True
        conn.transport.write(b"PING\n")
        return False


class QuietConnection(LineConnection):
    """Takes answers that nobody waits for without complaint."""

    def data_received(self, data: bytes) -> None:
        if self.waiting:
            super().data_received(data)


class AsksQuietly(HasBrokenAsksTheServer):
    Connection = QuietConnection


class SeesNothing(Base):
    def has_broken(self, conn: Any) -> bool:
        return getattr(conn, "terminated", False)

    def terminate(self, conn: Any) -> None:
        conn.terminated = True
        super().terminate(conn)


class Reconnects(Base):
    async def is_valid(self, conn: Any) -> bool:
        if conn.lost.done():
            fresh = await self.connect()
            conn.transport = fresh.transport
        else:
            await conn.ask("PING")
        return True


class MixesAnswers(LineConnection):
    """An interrupted request is forgotten; its answer is not."""

    async def ask(self, request: str) -> Any:
        answer = self.send(request)
        try:
            return await answer
        except asyncio.CancelledError:
            self.waiting.remove(answer)
            raise

    def send(self, request: str) -> Any:
        answer = super().send(request)
        if request == "SLEEP 8":
            self.transport.write(b"WHERE\n")
        return answer

    def data_received(self, data: bytes) -> None:
        if self.waiting:
            super().data_received(data)


class LendsInterrupted(Base):
    Connection = MixesAnswers


class OneTooMany(LineConnection):
    """An answer left unread is taken for the answer to the next request."""

    early: str | None = None

    def data_received(self, data: bytes) -> None:
        if not self.waiting:
            self.early = data.decode().strip()
        else:
            super().data_received(data)

    async def ask(self, request: str) -> Any:
        if self.early is not None:
            early, self.early = self.early, None
            self.send(request)
            return early
        return await super().ask(request)


class LendsUnread(Base):
    Connection = OneTooMany

    def has_broken(self, conn: Any) -> bool:
        return bool(conn.lost.done())


class NoAnswerAwaited(LineConnection):
    """A request that only an error answers is not waited for, and its error is taken for the next one's answer."""

    def send(self, request: str) -> Any:
        answer = super().send(request)
        if request == "NONSENSE":
            self.waiting.remove(answer)
        return answer


class LendsBeforeTheError(Base):
    Connection = NoAnswerAwaited


class KeepsTransaction(Base):
    async def _reset(self, conn: Any) -> None:
        await conn.ask("USE main")


class KeepsState(Base):
    def reset(self, conn: Any) -> None:
        """Nothing to do, surely."""


# ------------------------------------------------------------------ leases that share a socket


class Line:
    """A socket, and the leases on it."""

    def __init__(self, opening: Any) -> None:
        self.opening = asyncio.ensure_future(opening)
        self.leases = 0
        self.retired = False


class Channel:
    """A lease on a line; it ends with it, or alone."""

    def __init__(self, line: Line) -> None:
        self.line, self.conn, self.ended = line, line.opening.result(), False

    async def ask(self, request: str) -> Any:
        if self.ended:
            raise ConnectionResetError("this channel is closed")
        return await self.conn.ask(request)


class Sharing(Base):
    """All leases use one socket. One that has lost a lease takes no new one, and ends with its last."""

    line: Any = None

    async def connect(self) -> Any:
        line = self.line
        if line is None or line.retired:
            line = self.line = Line(Base.connect(self))
        line.leases += 1
        try:
            await asyncio.wait({line.opening})  # a cancel ends this wait, and not the opening
            return Channel(line)
        except BaseException:
            self.leave(line)
            raise

    def leave(self, line: Any) -> None:
        line.leases -= 1
        line.retired = True
        if not line.leases:
            line.opening.cancel()
            if not line.opening.cancelled() and line.opening.done():
                line.opening.result().transport.abort()

    async def is_valid(self, conn: Any) -> bool:
        return bool(await conn.ask("PING") == "PONG")

    def has_broken(self, conn: Any) -> bool:
        return conn.ended or bool(conn.conn.lost.done())

    def reset(self, conn: Any) -> None:
        """Channels have no state."""

    async def close(self, conn: Any) -> None:
        self.terminate(conn)

    def terminate(self, conn: Any) -> None:
        if not conn.ended:
            conn.ended = True
            self.leave(conn.line)


class TerminateEndsAll(Sharing):
    """And nobody who uses the same socket can see it."""

    def has_broken(self, conn: Any) -> bool:
        return bool(conn.ended)

    def terminate(self, conn: Any) -> None:
        super().terminate(conn)
        conn.conn.transport.abort()

    async def close(self, conn: Any) -> None:
        super().terminate(conn)


class CloseEndsAll(Sharing):
    async def close(self, conn: Any) -> None:
        super().terminate(conn)
        conn.conn.transport.abort()


class FailsBesideSlowly(Sharing):
    def leave(self, line: Any) -> None:
        super().leave(line)
        if line.leases:
            for answer in line.opening.result().waiting:
                answer.set_exception(ConnectionError("somebody has left"))


class CancelEndsAll(Sharing):
    async def connect(self) -> Any:
        if self.line is None or self.line.retired:
            self.line = Line(Base.connect(self))
        line = self.line
        line.leases += 1
        try:
            await line.opening  # a cancel goes on into the opening that others wait for
            return Channel(line)
        except BaseException:
            self.leave(line)
            raise


class SharesForEver(Sharing):
    def leave(self, line: Any) -> None:
        super().leave(line)
        line.retired = not line.leases


# ------------------------------------------------------------------ the end


class TerminateDoesNothing(Base):
    def terminate(self, conn: Any) -> None:
        """Somebody else will."""


class TerminateIsAwaited(Base):
    async def terminate(self, conn: Any) -> None:
        conn.transport.abort()


class TerminateBlocks(Base):
    def terminate(self, conn: Any) -> None:
        time.sleep(0.3)
        conn.transport.abort()


class TerminateRaises(Base):
    def terminate(self, conn: Any) -> None:
        conn.transport.abort()
        raise RuntimeError("already closing")


class LendsTerminated(Base):
    def has_broken(self, conn: Any) -> bool:
        return False


class Mute(LineConnection):
    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


class TerminateHangsBorrowers(Base):
    Connection = Mute


class CloseWaitsForEver(right(without="terminate")):
    async def close(self, conn: Any) -> None:
        conn.send("PING")
        while conn.waiting and not conn.lost.done():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                conn.stubborn = getattr(conn, "stubborn", 0) + 1
                if conn.stubborn > 20:
                    raise
        conn.transport.close()


class AlwaysValid(Base):
    async def is_valid(self, conn: Any) -> bool:
        return True


class LeavesTasks(Base):
    async def connect(self) -> Any:
        conn = await super().connect()
        conn.keepalive = asyncio.ensure_future(asyncio.sleep(30))
        return conn


class KeepsTheProgram(Base):
    """Its threads end when the connection is closed, and not before."""

    async def connect(self) -> Any:
        conn = await super().connect()
        conn.ended = threading.Event()
        threading.Thread(target=conn.ended.wait, args=(20,), name="reader").start()
        return conn

    async def close(self, conn: Any) -> None:
        conn.ended.set()
        await super().close(conn)

    def terminate(self, conn: Any) -> None:
        conn.ended.set()
        super().terminate(conn)


class LeavesThreads(Base):
    stop = threading.Event()

    async def connect(self) -> Any:
        conn = await super().connect()
        threading.Thread(target=self.stop.wait, args=(20,), name="keepalive", daemon=True).start()
        return conn


class ShowsPassword(Base):
    def __init__(self, host: str, port: int, *, user: str = "guest", password: str = "") -> None:
        super().__init__(host, port, user=user, password=password)
        self.password = password


class ShowsPasswordInErrors(Base):
    async def hello(self, conn: Any) -> None:
        try:
            await super().hello(conn)
        except PermissionError as error:
            raise PermissionError(f"{self._hello()} was refused") from error


class LogsPassword(Base):
    async def hello(self, conn: Any) -> None:
        logging.getLogger("line").debug("sending %s", self._hello())
        await super().hello(conn)


class OneLoopForEver(Base):
    loop: Any = None

    async def connect(self) -> Any:
        self.loop = self.loop or asyncio.get_running_loop()
        connecting = super().connect()
        try:
            return await self.loop.create_task(connecting)
        except RuntimeError:
            connecting.close()
            raise


class OneProcessOnly(Base):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.process = os.getpid()

    async def connect(self) -> Any:
        if os.getpid() != self.process:
            raise RuntimeError("made in another process")
        return await super().connect()


class ChildClosesTheParents(Base):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.process, self.mine = os.getpid(), []

    async def connect(self) -> Any:
        if os.getpid() != self.process:
            for conn in self.mine:
                conn.transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        conn = await super().connect()
        self.mine.append(conn)
        return conn


class NeverAnswersPing(Base):
    async def is_valid(self, conn: Any) -> bool:
        if conn.lost.done():
            await asyncio.get_running_loop().create_future()
        return bool(await super().is_valid(conn))


async def _elsewhere(conn: Any) -> None:
    await conn.ask("USE elsewhere")


async def _where(conn: Any) -> object:
    return await conn.ask("WHERE")


class Suspect(ManagerConformance[Any]):
    """The hooks, for whichever adapter is under suspicion."""

    Manager: Any = Base
    patience = 0.8  # what is wrong is waited for so long
    secrets = ("swordfish", "herring")
    probes = (Probe("namespace", dirty=_elsewhere, look=_where),)

    def manager(self, host: str, port: int) -> Any:
        return self.Manager(host, port, password="swordfish")

    def bad_credentials(self, host: str, port: int) -> Any:
        return {"a wrong password": self.Manager(host, port, password="herring")}

    async def use(self, conn: Any) -> None:
        assert await conn.ask("PING") == "PONG"

    async def slow_request(self, conn: Any) -> None:
        await conn.ask("SLEEP 8")

    async def leave_unread(self, conn: Any) -> None:
        answer = conn.send("WHERE")
        conn.waiting.remove(answer)
        await asyncio.sleep(0.05)

    async def late_error(self, conn: Any) -> None:
        conn.send("NONSENSE")

    async def begin(self, conn: Any) -> None:
        await conn.ask("BEGIN")

    async def in_transaction(self, conn: Any) -> bool:
        return bool(await conn.ask("STATUS") == "in transaction")

    async def server_kill(self, conn: Any) -> None:
        right = Base(self.host, self.port, password="swordfish")
        admin = await right.connect()
        await admin.ask(f"KILL {await conn.ask('ID')}")
        await right.close(admin)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """The real server, in a thread."""
    with LineServer("swordfish").in_a_thread() as server:
        yield server


def suspect(manager: Any, server: Any) -> Suspect:
    conformance = Suspect()
    conformance.Manager = manager
    conformance.host, conformance.port = server.host, server.port
    return conformance


WRONG = [
    (NoHasBroken, "protocol", "the manager has no method has_broken"),
    (MisspeltReset, "protocol", "resett looks like a misspelt reset"),
    (AwaitedHasBroken, "protocol", "has_broken is an async def: it must be a plain def"),
    (AwaitedJudge, "protocol", "judge is an async def: it must be a plain def"),
    (JudgesWithoutItsConnection, "protocol", r"judge cannot be called with 2 positional argument"),
    (CloseWithoutItsConnection, "protocol", r"close cannot be called with 1 positional argument"),
    (ConnectsWhenMade, "protocol", "making a manager opened a connection"),
    (NeedsLoopWhenMade, "protocol", "making a manager without a running loop failed: RuntimeError: no running event"),
    (ForgetsReturn, "connect_and_use", "is_valid of a new connection is None instead of True.*a forgotten return"),
    (ForgetsTheConnection, "connect_and_use", "connect returned None: return the connection"),
    (IsValidIsPlain, "connect_and_use", "is_valid returned True instead of an awaitable: make it an async def"),
    (HasBrokenForgetsReturn, "has_broken_is_quick", "has_broken returned None: return True or False"),
    (ResetReturnsTrue, "connect_and_use", r"reset returned True: return None \(nothing to reset\) or an awaitable"),
    (ResetFails, "in_a_pool", "the pool reports an error after ordinary use: NotImplementedError: some day"),
    (SameConnectionTwice, "connect_and_use", "connect returned the same object twice"),
    (NewIsBroken, "connect_and_use", "has_broken of a new connection is True instead of False"),
    (CloseIsPlain, "connect_and_use", "close returned None instead of an awaitable"),
    (CloseKeepsSocket, "connect_and_use", "close returned and the connection is still open"),
    (ThrowsAwayWhatWasUsed, "in_a_pool", r"had to open \d+, closed as {'broken': \d+}.*the pool saves nothing"),
    (ReadsPieces, "small_pieces", "connect failed over a connection whose bytes arrive one at a time"),
    (ReadsTheFirst, "small_pieces", r"use\(\) of a connection whose bytes arrive one at a time .* failed"),
    (OneLockForAll, "connections_are_independent", "connect waits for a slow request on another connection"),
    (
        DownIsFinal,
        "connect_errors",
        r"is_transient\(ConnectionRefusedError: .*\) is not True though the port is closed",
    ),
    (
        LeaksOnFailure,
        "connect_errors",
        "connect failed since the server .* left something open: close the socket on any exception: 1 socket",
    ),
    (BelievesTcp, "connect_errors", "connect returned a connection .*: prove it with a round trip"),
    (RetriesForEver, "connect_errors", r"connect did not fail in time \(the port is closed\)"),
    (RetriesForEver, "bad_credentials", r"connect did not fail in time \(of a wrong password\)"),
    (FailsByCancel, "connect_errors", "connect raised CancelledError though nobody had cancelled it"),
    (FailsByExit, "connect_errors", "connect raised BaseExceptionGroup.* which is no Exception"),
    (WrongPasswordMayHeal, "bad_credentials", "a wrong password: is_transient.* is not False: retrying will not help"),
    (CanNotTell, "bad_credentials", "cannot be told from a server that is down: add is_transient"),
    (LeaksOnCancel, "cancelled_connect", "connect was cancelled and left something open"),
    (LeaksOnCancel, "silent_server", "connect to a silent server was cancelled and left something open"),
    (ConnectCanNotBeCancelled, "silent_server", "connect to a silent server did not end after two cancels"),
    (BelievesTcp, "silent_server", "connect returned a connection though the server has not said a word"),
    (IsValidSwallowsCancels, "cancelled_is_valid", r"is_valid, cancelled at point \d+ .* did not end in time"),
    (
        ResetKeepsItsLock,
        "cancelled_reset",
        "reset was cancelled, then the connection was closed, and its socket is still",
    ),
    (CloseSaysGoodbyeFirst, "cancelled_close", "close was cancelled, and without a terminate it kept the socket"),
    (SlowHasBroken, "has_broken_is_quick", r"has_broken took \d+\.\d ms: it must look at what the driver knows"),
    (AsksQuietly, "has_broken_is_quick", "has_broken sent something to the server"),
    (SeesNothing, "server_kill", "has_broken still says False 0.8 s after the server has dropped the connection"),
    (SeesNothing, "network_drops", "has_broken still says False 0.8 s after the connection was reset"),
    (NeverAnswersPing, "server_kill", "is_valid did not return in time after the server has dropped the connection"),
    (Reconnects, "network_drops", "it has connected again behind the pool's back"),
    (LendsInterrupted, "interrupted_request", "after a request cancelled after .* does not find the connection clean"),
    (LendsUnread, "unread_data", "after an answer that was left unread .* does not find the connection clean"),
    (
        LendsBeforeTheError,
        "late_error",
        r"an error that arrived during the next borrower's request .* not find .* clean",
    ),
    (KeepsTransaction, "open_transaction", "the transaction of the last borrower is still open for the next one"),
    (KeepsState, "session_state", r"session state \(namespace\).*namespace: 'elsewhere' instead of 'main'"),
    (TerminateEndsAll, "ends_alone", r"use\(\) of a connection beside .* terminate was called, .* failed"),
    (FailsBesideSlowly, "ends_alone", "a slow request beside a connection whose close was called has ended: Conn"),
    (CloseEndsAll, "ends_alone", "has_broken says True beside a connection whose close was called"),
    (CancelEndsAll, "concurrent_connects", "connect raised CancelledError.*: another connect, .*, was cancelled"),
    (SharesForEver, "evict", "a connection made after evict.. uses a socket that was open before"),
    (SharesForEver, "max_lifetime", "all of them used one socket: so max_lifetime never ends it"),
    (TerminateDoesNothing, "terminate", "terminate left the socket open"),
    (TerminateIsAwaited, "terminate", "terminate returned an awaitable: make it a plain def"),
    (TerminateBlocks, "terminate", r"terminate took 0\.\d+ s: it must not wait"),
    (LendsTerminated, "terminate", "has_broken is not True after terminate"),
    (TerminateHangsBorrowers, "terminate", "hangs after terminate: the borrower must get an error"),
    (TerminateRaises, "terminate", "terminate raised RuntimeError.* in any state"),
    (CloseWaitsForEver, "close_is_bounded", "close did not end after two cancels: a pool has to abandon it"),
    (AlwaysValid, "close_is_bounded", "is_valid said True though the server is frozen"),
    (LeavesTasks, "no_leftovers", "tasks are left after close: .*end them in close and terminate"),
    (KeepsTheProgram, "program_ends", "never ends: Python waits for reader.*Make its threads daemons"),
    (LeavesThreads, "no_leftovers", "threads are left after close: keepalive"),
    (ShowsPassword, "secrets", r"a secret shows in repr\(vars\(\)\) of the manager"),
    (ShowsPasswordInErrors, "secrets", "a secret shows in the error when a wrong password"),
    (LogsPassword, "secrets", "a secret shows in the logs: .*<THE SECRET>"),
    (OneLoopForEver, "two_loops", "failed in the second event loop: .*not in __init__"),
    (ChildClosesTheParents, "fork", "the parent's connection is broken after a forked child used the same manager"),
    (OneProcessOnly, "fork", "in a forked child connect, use and close failed: RuntimeError: made in another process"),
]


@pytest.mark.parametrize(
    ("manager", "check", "message"), WRONG, ids=[f"{manager.__name__}-{check}" for manager, check, _ in WRONG]
)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_wrong_adapter_is_caught_by_a_message_that_names_its_fault(
    manager: Any, check: str, message: str, server: Any
) -> None:
    """A check that has never failed is not known to find its fault."""
    LeavesThreads.stop.clear()
    began = time.monotonic()
    with pytest.raises(AssertionError, match=message):
        getattr(suspect(manager, server), f"test_{check}")()
    assert time.monotonic() - began < 8
    LeavesThreads.stop.set()
    gc.collect()  # what it leaked must not be found in another test


@pytest.mark.parametrize("check", [name for name in dir(Suspect) if name.startswith("test_")])
def test_the_same_adapter_without_the_fault_passes(check: str, server: Any) -> None:
    """A wrong adapter must fail because of its fault, not because of the test's set-up."""
    conformance = suspect(Base, server)
    conformance.patience = ManagerConformance.patience  # nobody waits for it
    getattr(conformance, check)()


@pytest.mark.parametrize(
    "check",
    ["connect_and_use", "in_a_pool", "ends_alone", "concurrent_connects", "evict", "max_lifetime", "cancelled_connect"],
)
def test_leases_that_share_a_socket_can_pass(check: str, server: Any) -> None:
    """A question that no adapter of this kind can answer would be no question."""
    getattr(suspect(Sharing, server), f"test_{check}")()


def test_a_driver_that_says_something_by_itself_now_and_then_is_no_suspect(server: Any) -> None:
    """MongoDB's drivers watch their servers in the background, whoever asks has_broken meanwhile."""

    class Watching(Base):
        Connection = QuietConnection

        async def connect(self) -> Any:
            conn = await super().connect()
            loop = asyncio.get_running_loop()

            def heartbeat() -> None:
                if not conn.lost.done():
                    conn.transport.write(b"PING\n")
                    loop.call_later(0.1, heartbeat)

            loop.call_later(0.01, heartbeat)
            return conn

    getattr(suspect(Watching, server), "test_has_broken_is_quick")()  # noqa: B009 - the suite makes it


def test_every_check_has_caught_something() -> None:
    """One wrong adapter at least for each question."""
    checks = {name.removeprefix("test_") for name in dir(Suspect) if name.startswith("test_")}
    assert checks == {check for _, check, _ in WRONG}


async def _nothing(_self: Any, _conn: Any) -> None:
    """A hook that does nothing."""


@pytest.mark.parametrize(
    ("hook", "check", "message"),
    [
        ("slow_request", "interrupted_request", "the hook slow_request returned at once"),
        ("slow_request", "connections_are_independent", "the hook slow_request returned at once"),
        ("late_error", "late_error", "the hook late_error proves nothing: the server has sent no error"),
        ("begin", "open_transaction", r"in_transaction\(\) says False right after begin\(\)"),
        (
            "use",
            "network_drops",
            r"use\(\) raised nothing though its answer was cut off: the hook must check the answer",
        ),
        ("server_kill", "server_kill", "has_broken still says False 0.8 s after the server has dropped the connection"),
    ],
)
def test_a_hook_that_does_nothing_is_found_out(hook: str, check: str, message: str, server: Any) -> None:
    """A check must not pass because its author's hook is empty."""
    lazy = type("Lazy", (Suspect,), {hook: _nothing})()
    lazy.host, lazy.port = server.host, server.port
    with pytest.raises(AssertionError, match=message):
        getattr(lazy, f"test_{check}")()


def test_begin_needs_in_transaction(server: Any) -> None:
    """Without it nobody would see whether the transaction is gone."""

    async def unknown(self: Any, conn: Any) -> bool:
        return await ManagerConformance.in_transaction(self, conn)

    half: Any = type("Half", (Suspect,), {"in_transaction": unknown})()
    half.host, half.port = server.host, server.port
    with pytest.raises(AssertionError, match=r"begin\(\) is given and in_transaction\(\) is not"):
        half.test_open_transaction()
