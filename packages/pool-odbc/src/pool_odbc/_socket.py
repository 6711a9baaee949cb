"""The TCP connection behind an ODBC connection. ODBC has no word for it, so it is found by what it sends.

With it a connection that the server has dropped is seen at once, without I/O, and one that hangs can be dropped. Found
only on Linux (TCP_INFO of kernel 4.19 or newer); elsewhere, or in doubt, there is none, and drivers' errors must do.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["find", "is_established", "known", "shut_down"]

_TCP_INFO: Final = getattr(socket, "TCP_INFO", None)
# Offsets in Linux' struct tcp_info.
_RECEIVED, _SENT, _SIZE = 128, 200, 208
_ESTABLISHED: Final = 1


def known() -> frozenset[str]:
    """The sockets of this process, each by a name that is not used twice."""
    return frozenset(_sockets())


def find(before: frozenset[str], ask: Callable[[], object], port: int | None = None) -> socket.socket | None:
    """Find the one new socket that carries what `ask` asks: the same number of bytes each time, both ways.

    Args:
        before: what `known` said before the connection was opened.
        ask: one round trip, which was made before, so that it prepares nothing.
        port: the server's, if it is known.

    Returns:
        A duplicate, to be closed; None where there is no such socket, or more than one.
    """
    if _TCP_INFO is None:
        return None
    candidates = [sock for name, number in _sockets().items() if name not in before and (sock := _tcp(number, port))]
    found: list[socket.socket] = []
    try:
        rounds = []
        for _ in range(2):
            counts = [_traffic(sock) for sock in candidates]
            ask()
            rounds.append([_minus(_traffic(sock), count) for sock, count in zip(candidates, counts, strict=True)])
        found = [
            sock for sock, one, other in zip(candidates, *rounds, strict=True) if one == other and one and all(one)
        ]
    finally:
        for sock in candidates:
            if found != [sock]:
                sock.close()
    return found[0] if len(found) == 1 else None


def is_established(sock: socket.socket) -> bool:
    """Whether neither side has ended the connection. No I/O."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0] == _ESTABLISHED  # type: ignore[arg-type]
    except OSError:
        return False


def shut_down(sock: socket.socket) -> None:
    """Drop the connection: a thread that waits for an answer on it gets an error."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _sockets() -> dict[str, int]:
    """File descriptors by the names that Linux gives to sockets."""
    found = {}
    with suppress(OSError):  # no /proc
        for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - it may be large, and paths are slow
            with suppress(OSError):  # the one of listdir, or closed meanwhile
                name = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
                if name.startswith("socket:"):
                    found[name] = int(number)
    return found


def _tcp(number: int, port: int | None) -> socket.socket | None:
    """A duplicate, if it is a TCP connection to this port."""
    with suppress(OSError):
        copy = os.dup(number)
        try:
            sock = socket.socket(fileno=copy)
        except BaseException:
            os.close(copy)
            raise
        with suppress(OSError):  # not connected
            if (
                sock.family in (socket.AF_INET, socket.AF_INET6)
                and _traffic(sock)
                and (port is None or sock.getpeername()[1] == port)
            ):
                return sock
        sock.close()
    return None


def _traffic(sock: socket.socket) -> tuple[int, int] | None:
    """Bytes received and sent so far."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SIZE)  # type: ignore[arg-type]
        return struct.unpack_from("@Q", info, _RECEIVED)[0], struct.unpack_from("@Q", info, _SENT)[0]
    except (OSError, struct.error):  # not connected, or an older kernel
        return None


def _minus(after: tuple[int, int] | None, before: tuple[int, int] | None) -> tuple[int, int] | None:
    return None if after is None or before is None else (after[0] - before[0], after[1] - before[1])
