"""A TCP proxy that can do to a connection what networks and servers do to it on their bad days."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

__all__ = ["Direction", "FaultProxy"]

T = TypeVar("T")

Direction: TypeAlias = Literal["to_server", "to_client", "both"]

_WAYS: Final[dict[Direction, tuple[Direction, ...]]] = {
    "to_server": ("to_server",),
    "to_client": ("to_client",),
    "both": ("to_server", "to_client"),
}
# What is held back from a frozen side, a direction and connection; then TCP's own back-pressure sets in.
_HELD_BYTES = 1 << 20
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: close sends RST
_PATIENCE = 5.0


class FaultProxy:
    """Stands between a client and a server: ``127.0.0.1:proxy.port`` instead of the server's own address.

    It runs in a thread of its own, so it works whatever the loop under test does, and its methods are synchronous: the
    fault is in force when they return. Faults add up, and hold for the present connections and for new ones, until
    :meth:`heal`.

    Use it as ``with FaultProxy(host, port) as proxy`` (or ``async with``): it serves from its making on, the block
    ends it.

    Args:
        host: the server's name or address.
        port: the server's TCP port.

    Attributes:
        host: where clients connect to, always ``"127.0.0.1"``.
        port: the proxy's TCP port; it stays the same, also over :meth:`refuse`.
    """

    host: Final = "127.0.0.1"

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = self._bind(0)
        self.port: Final[int] = self._listener.getsockname()[1]
        self._listening = False
        self._accepting: set[asyncio.Task[Any]] = set()
        self._links: set[_Link] = set()
        self._accepted = 0
        self._greeting: Callable[[_Link], None] | None = None
        self._delay = 0.0
        self._faults = _Faults()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=f"fault-proxy-{self.port}", daemon=True)
        self._thread.start()
        self._call(self._listen)

    @property
    def accepted(self) -> int:
        """How many connections clients have made, ever."""
        return self._accepted

    @property
    def open(self) -> int:
        """How many of them the client still holds open: neither end-of-file nor reset has come from it."""
        return self._call(lambda: sum(link.client_is_there for link in self._links))

    @property
    def forwarded(self) -> tuple[int, int]:
        """How many bytes went on to the server, and to clients, since the proxy was made."""
        return self._call(lambda: (self._faults.forwarded["to_server"], self._faults.forwarded["to_client"]))

    def filenos(self) -> set[int]:
        """The file descriptors of the proxy's own sockets, so that leak checks can leave them out."""

        def filenos() -> set[int]:
            sides = [side for link in self._links for side in link.sides.values()]
            return {self._listener.fileno()} | {side.transport.get_extra_info("socket").fileno() for side in sides}

        return self._call(filenos)

    def heal(self) -> None:
        """End every fault: held bytes go on, new connections pass, a closed port is open again."""

        def heal() -> None:
            self._faults.clear()
            self._greeting = None
            self._delay = 0.0
            self._listen()
            for link in list(self._links):
                link.resting.clear()
                link.pump()

        self._call(heal)

    def freeze(self, direction: Direction = "both") -> None:
        """Let nothing through, and keep what comes until :meth:`heal`: a hung server, a network that lost its way.

        Args:
            direction: ``"to_client"``: requests arrive, answers do not; ``"to_server"``: the reverse; or both. New
                connections are still accepted, as the kernel does for a hung server.
        """
        ways = _ways(direction)
        self._call(lambda: self._faults.frozen.update(ways))

    def reset(self, *, new: bool = False) -> None:
        """Send a TCP reset on every present connection, to both ends: a crash, a firewall.

        Args:
            new: also reset every new connection at once, until :meth:`heal`.
        """
        self._end_all(_Link.reset, new=new)

    def fin(self, *, new: bool = False) -> None:
        """End every present connection in good order, towards both ends: an idle timeout, a server that shuts down.

        Args:
            new: also end every new connection at once, until :meth:`heal`.
        """
        self._end_all(_Link.fin, new=new)

    def refuse(self) -> None:
        """Close the port: new connections are refused; present ones stay (see :meth:`reset`)."""

        def refuse() -> None:
            if self._listening:
                self._accept()  # whoever has got through to the kernel is present
                self._stop_listening()
                # Bound and not listening: connects are refused, and nobody else can take the port meanwhile.
                self._listener = self._bind(self.port)

        self._call(refuse)

    def slow_accept(self, seconds: float) -> None:
        """Connect new connections to the server only after a while; what the client sends meanwhile is kept.

        Args:
            seconds: how long, in real time.
        """

        def slow() -> None:
            self._delay = seconds

        self._call(slow)

    def silence(self) -> None:
        """Accept new connections and never answer them; the server does not see them, not even after :meth:`heal`."""

        def silence() -> None:
            self._greeting = lambda link: None

        self._call(silence)

    def retarget(self, host: str, port: int) -> None:
        """Lead new connections to another server: a failover behind one address. Present ones stay where they are.

        It is no fault that :meth:`heal` would end.

        Args:
            host: the other server's name or address.
            port: its TCP port.
        """

        def retarget() -> None:
            self._target = (host, port)

        self._call(retarget)

    def trickle(self, *, delay: float = 0.01, size: int = 1, direction: Direction = "both") -> None:
        """Let through a few bytes at a time: whoever takes one read for one message breaks.

        Args:
            delay: seconds of real time between two pieces.
            size: bytes in a piece.
            direction: which way.
        """
        if not (delay >= 0 and size >= 1):
            raise ValueError(f"delay={delay!r}, size={size!r}: seconds from 0, and at least 1 byte")
        ways = _ways(direction)
        self._call(lambda: self._faults.trickle.update(dict.fromkeys(ways, (delay, size))))

    def cut(self, after: int, *, direction: Direction = "to_client", reset: bool = False) -> None:
        """End each connection when so many bytes more have passed, be it in the middle of a message.

        Args:
            after: how many bytes still pass, on each connection; 0: the next byte ends it and does not pass.
            direction: which way they are counted; ``"both"``: either way, whichever has so many first.
            reset: by a TCP reset; False: in good order.
        """
        if after < 0:
            raise ValueError(f"after={after!r}: a number of bytes from 0")
        ways = _ways(direction)

        def cut() -> None:
            self._faults.cut.update(dict.fromkeys(ways, after))
            self._faults.cut_by_reset = reset
            for link in self._links:
                link.passed = dict.fromkeys(link.passed, 0)

        self._call(cut)

    def close(self) -> None:
        """Drop everything and end the thread, within a few seconds at most. A second call does nothing."""
        if self._closed:
            return
        self._closed = True

        async def stop() -> None:
            self._stop_listening()
            for link in list(self._links):
                link.reset()
            await asyncio.sleep(0)  # transports close their sockets in the next turn
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(stop(), self._loop)
        self._thread.join(_PATIENCE)

    def __enter__(self) -> FaultProxy:  # noqa: PYI034 (final in spirit)
        """The proxy."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    async def __aenter__(self) -> FaultProxy:  # noqa: PYI034
        """The proxy."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        target = f"{self._target[0]}:{self._target[1]}"
        return f"<FaultProxy 127.0.0.1:{self.port} -> {target}{' closed' if self._closed else ''}>"

    @staticmethod
    def _bind(port: int) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.setblocking(False)
        return listener

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    def _call(self, function: Callable[[], T]) -> T:
        """Run a function in the proxy's thread and wait for its result."""
        if self._closed:
            raise RuntimeError(f"{self!r}: make a new one")

        async def call() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(_PATIENCE)

    # No asyncio.Server: it loses (and leaks) a connection that it has accepted and not set up yet when it is closed.
    def _listen(self) -> None:
        if not self._listening:
            self._listening = True
            self._listener.listen(1024)
            self._loop.add_reader(self._listener, self._accept)

    def _stop_listening(self) -> None:
        self._listening = False
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # none is left, or the client has gone again
                return
            client.setblocking(False)
            side = _Side(_Link(self._faults, self._links), "to_server", self._greet)
            task = self._loop.create_task(self._loop.connect_accepted_socket(side.itself, client))
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    def _greet(self, link: _Link) -> None:
        self._accepted += 1
        if self._greeting is not None:
            self._greeting(link)
        else:
            link.connecting = self._loop.create_task(self._connect(link, self._delay))

    async def _connect(self, link: _Link, delay: float) -> None:
        try:
            await asyncio.sleep(delay)
            await self._loop.create_connection(lambda: _Side(link, "to_client", _Link.pump), *self._target)
        except OSError:
            link.reset()  # a proxy cannot refuse what it has accepted

    def _end_all(self, end: Callable[[_Link], None], *, new: bool) -> None:
        def end_all() -> None:
            for link in list(self._links):
                end(link)
            if new:
                self._greeting = end

        self._call(end_all)


class _Faults:
    """What is wrong now: shared by all connections."""

    def __init__(self) -> None:
        self.frozen: set[Direction] = set()
        self.trickle: dict[Direction, tuple[float, int]] = {}
        self.cut: dict[Direction, int] = {}
        self.cut_by_reset = False
        self.forwarded: dict[Direction, int] = {"to_server": 0, "to_client": 0}

    def clear(self) -> None:
        self.frozen.clear()
        self.trickle.clear()
        self.cut.clear()


class _Link:
    """One connection through the proxy: two sides, and a buffer for each direction."""

    def __init__(self, faults: _Faults, links: set[_Link]) -> None:
        self._faults = faults
        self._links = links
        self.sides: dict[Direction, _Side] = {}  # by the direction of what they send
        self.held: dict[Direction, bytearray] = {"to_server": bytearray(), "to_client": bytearray()}
        self.ended: set[Direction] = set()  # end of file has come from this sender
        self.end_passed: set[Direction] = set()
        self.passed: dict[Direction, int] = {"to_server": 0, "to_client": 0}
        self.resting: set[Direction] = set()
        self.connecting: asyncio.Task[None] | None = None
        self.over = False  # the proxy itself has ended it
        links.add(self)

    @property
    def client_is_there(self) -> bool:
        side = self.sides.get("to_server")
        return side is not None and side.alive and not self.over and "to_server" not in self.ended

    def pump(self) -> None:
        """Send on whatever may be sent on."""
        for way in _WAYS["both"]:
            self._pump(way)

    def _pump(self, way: Direction) -> None:
        sender, receiver = self.sides.get(way), self.sides.get("to_client" if way == "to_server" else "to_server")
        if self.over or receiver is None or not receiver.alive or way in self._faults.frozen or way in self.resting:
            return None
        held = self.held[way]
        if held:
            size = len(held)
            if trickle := self._faults.trickle.get(way):
                delay, size = trickle
                self.resting.add(way)
                asyncio.get_running_loop().call_later(delay, self._rested, way)
            allowed = self._faults.cut.get(way)
            if allowed is not None:
                size = min(size, allowed - self.passed[way])
            piece = bytes(held[:size])
            del held[:size]
            self.passed[way] += len(piece)
            self._faults.forwarded[way] += len(piece)
            receiver.transport.write(piece)
            if allowed is not None and self.passed[way] >= allowed:
                held.clear()
                return self.reset() if self._faults.cut_by_reset else self.fin()
        if sender is not None and sender.alive and len(held) < _HELD_BYTES:
            sender.transport.resume_reading()
        if way in self.ended and not held and way not in self.end_passed:
            self.end_passed.add(way)
            with contextlib.suppress(OSError):  # it has gone meanwhile: connection_lost is on its way
                receiver.transport.write_eof()
            if self.end_passed == {"to_server", "to_client"}:
                self.fin()
        return None

    def _rested(self, way: Direction) -> None:
        self.resting.discard(way)
        self._pump(way)

    def take(self, way: Direction, data: bytes) -> None:
        self.held[way] += data
        if len(self.held[way]) >= _HELD_BYTES:
            self.sides[way].transport.pause_reading()
        self._pump(way)

    def end(self, way: Direction) -> None:
        self.ended.add(way)
        self._pump(way)

    def lost(self, way: Direction, error: Exception | None) -> None:
        """One side is gone: so is the other, unless the news is frozen in."""
        self.ended.add(way)
        if error is not None and way not in self._faults.frozen:
            self.reset()
        else:
            self._pump(way)
        if not any(side.alive for side in self.sides.values()):
            self._links.discard(self)
            self._stop_connecting()

    def fin(self) -> None:
        self.over = True
        self._stop_connecting()
        for side in self.sides.values():
            side.transport.close()

    def reset(self) -> None:
        self.over = True
        self._stop_connecting()
        for side in self.sides.values():
            with contextlib.suppress(OSError):
                side.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            side.transport.abort()

    def _stop_connecting(self) -> None:
        if self.connecting is not None:
            self.connecting.cancel()


class _Side(asyncio.Protocol):
    """One socket of a link."""

    transport: asyncio.Transport

    def __init__(self, link: _Link, way: Direction, made: Callable[[_Link], None]) -> None:
        self._link = link
        self._way: Direction = way
        self._made = made
        self.alive = False

    def itself(self) -> _Side:
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.alive = True
        self._link.sides[self._way] = self
        self._made(self._link)

    def data_received(self, data: bytes) -> None:
        self._link.take(self._way, data)

    def eof_received(self) -> bool:
        self._link.end(self._way)
        return True  # the other direction may go on

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        self._link.lost(self._way, exc)


def _ways(direction: Direction) -> tuple[Direction, ...]:
    if direction not in _WAYS:
        raise ValueError(f"direction={direction!r}: allowed are to_server, to_client, both")
    return _WAYS[direction]
