"""What commands do to a session, for both pools: every command passes ``pack_command``, and there it is noted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["CLEANABLE", "LOST", "Marks", "added"]

# Session state that one more round trip takes back ...
_WATCH, _MULTI, _SELECT, _NAME, _TRACKING, _NO_EVICT, _NO_TOUCH, _READONLY = (1 << bit for bit in range(8))
# ... and what costs the connection: all bits from here on.
_SUBSCRIBED: Final = 1 << 8
LOST: Final = 1 << 9
CLEANABLE: Final = _SUBSCRIBED

_KEPT = (0, 0)
# What a command does to the session: (bits set, bits cleared). EXEC and DISCARD end a transaction even when they fail.
_MARKS: Final[Mapping[str, tuple[int, int]]] = {
    "WATCH": (_WATCH, 0),
    "UNWATCH": (0, _WATCH),
    "MULTI": (_MULTI, 0),
    "EXEC": (0, _MULTI | _WATCH),
    "DISCARD": (0, _MULTI | _WATCH),
    "SELECT": (_SELECT, 0),
    "READONLY": (_READONLY, 0),
    "READWRITE": (0, _READONLY),
    "ASKING": (_READONLY, 0),  # it holds for one command: READWRITE is one
    **dict.fromkeys(["SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "MONITOR"], (_SUBSCRIBED, 0)),
    **dict.fromkeys(["AUTH", "HELLO", "RESET", "QUIT", "SYNC", "PSYNC", "REPLCONF", "HIMPORT"], (LOST, 0)),
}
# CLIENT keeps more state with every release: a subcommand that is not known here costs the connection.
_CLIENT_MARKS: Final[Mapping[str, tuple[int, int]]] = {
    "SETNAME": (_NAME, 0),
    "TRACKING": (_TRACKING, 0),
    "CACHING": (_TRACKING, 0),
    "NO-EVICT": (_NO_EVICT, 0),
    "NO-TOUCH": (_NO_TOUCH, 0),
    **dict.fromkeys(
        ["GETNAME", "GETREDIR", "HELP", "ID", "INFO", "KILL", "LIST", "PAUSE", "TRACKINGINFO", "UNBLOCK", "UNPAUSE"],
        _KEPT,
    ),
}


# Where a command that may block says for how long: the index of that argument, and how many of it make a second.
_LAST, _FIRST = -1, 1
_BLOCKING: Final[Mapping[str, tuple[int, int]]] = {
    **dict.fromkeys(["BLPOP", "BRPOP", "BRPOPLPUSH", "BLMOVE", "BZPOPMIN", "BZPOPMAX"], (_LAST, 1)),
    **dict.fromkeys(["BLMPOP", "BZMPOP"], (_FIRST, 1)),
    **dict.fromkeys(["WAIT", "WAITAOF"], (_LAST, 1000)),
    **dict.fromkeys(["XREAD", "XREADGROUP"], (0, 1000)),  # after the word BLOCK
}


class Marks:
    """Mixed into one of redis-py's connections, before it: counts what is unanswered, and notes what was changed.

    Attributes:
        unanswered: commands sent whose replies were not read, so that the next reply may be an older one.
        dirt: bits of the session state that the borrower may have changed.
        blocking: seconds that the unanswered commands may block on the server, beside ``socket_timeout``.
        limit: dirt from here on cannot be taken back.
        sealed: refuse to reconnect, since a new connection under an old lease would have another age and session.
        spoken: the passwords sent until the connection was sealed: errors must not show them.
    """

    unanswered: int = 0
    dirt: int = 0
    blocking: float = 0.0
    limit: int = CLEANABLE
    sealed: bool = False
    spoken: tuple[str, ...] = ()
    _blind: int = 0
    db: Any
    client_name: Any

    def pack_command(self, *args: Any) -> list[bytes]:
        """Pack one command, and note what it does to the session."""
        packed: list[bytes] = super().pack_command(*args)  # type: ignore[misc]
        self.unanswered += 1
        self.dirt |= self._blind
        words = _text(args[0]).upper().split(None, 2)  # "CLIENT SETNAME" and "SELECT 1" come in one piece, too
        name = words[0] if words else ""
        mark = _MARKS.get(name)
        if mark is None:
            if name == "CLIENT":
                mark = _CLIENT_MARKS.get(_second(words, args), (LOST, 0))
            elif name == "SCRIPT" and _second(words, args) == "DEBUG":
                mark = (LOST, 0)
            else:
                if name in _BLOCKING and not self.dirt & _MULTI:  # within MULTI nothing blocks
                    self.blocking += _seconds_blocked(name, args)
                return packed
        elif not self.sealed and (name == "AUTH" or (name == "HELLO" and len(args) > 2)):
            self.spoken += (_text(args[-1]),)
        self.dirt = (self.dirt | mark[0]) & ~mark[1]
        return packed

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        """Pack several; when one of them cannot be packed, none is sent."""
        before = self.unanswered, self.dirt, self.blocking
        try:
            several: list[bytes] = super().pack_commands(commands)  # type: ignore[misc]
            return several
        except BaseException:
            self.unanswered, self.dirt, self.blocking = before
            raise

    def answered(self) -> None:
        """One reply was read."""
        self.unanswered -= 1
        if not self.unanswered:
            self.blocking = 0.0

    def forget(self) -> None:
        """Nothing is under way, and nothing was changed."""
        self.unanswered, self.dirt, self.blocking = 0, 0, 0.0

    @property
    def subscribed(self) -> bool:
        """Whether messages may come in between."""
        return bool(self.dirt & _SUBSCRIBED)

    def spoil(self) -> None:
        """Make sure that it is closed when it comes back."""
        self.dirt |= LOST

    def undo(self) -> list[tuple[Any, ...]]:
        """Commands that bring the session back to where the handshake left it."""
        dirt = self.dirt
        commands: list[tuple[Any, ...]] = []
        if dirt & _MULTI:
            commands.append(("DISCARD",))  # first, since until then everything is only queued; it unwatches, too
        elif dirt & _WATCH:
            commands.append(("UNWATCH",))
        if dirt & _TRACKING:
            commands.append(("CLIENT", "TRACKING", "OFF"))
        if dirt & _SELECT:
            commands.append(("SELECT", self.db or 0))
        if dirt & _NAME:
            commands.append(("CLIENT", "SETNAME", self.client_name or ""))
        if dirt & _NO_EVICT:
            commands.append(("CLIENT", "NO-EVICT", "OFF"))
        if dirt & _NO_TOUCH:
            commands.append(("CLIENT", "NO-TOUCH", "OFF"))
        if dirt & _READONLY:
            commands.append(("READWRITE",))
        return commands


def _text(word: object) -> str:
    return word if isinstance(word, str) else bytes(word).decode("latin-1") if isinstance(word, bytes) else str(word)


def _second(words: list[str], args: tuple[Any, ...]) -> str:
    return words[1] if len(words) > 1 else _text(args[1]).upper() if len(args) > 1 else ""


def added(timeout: float, blocking: float) -> float | None:
    """Return how long a reply may take; None: for ever."""
    return None if blocking == math.inf else timeout + blocking


def _seconds_blocked(name: str, args: tuple[Any, ...]) -> float:
    """How long the server may wait before it answers; inf: for ever. What cannot be read the server refuses at once."""
    words = [*_text(args[0]).split(), *map(_text, args[1:])]
    place, per_second = _BLOCKING[name]
    try:
        if not place:
            words = [
                word.upper() for word in words[4 if name == "XREADGROUP" else 1 :]
            ]  # GROUP, its name, the consumer
            place = words.index("BLOCK", 0, words.index("STREAMS")) + 1
        seconds = float(words[place]) / per_second
    except (ValueError, IndexError):
        return 0.0
    return seconds if seconds > 0 else math.inf if seconds == 0 else 0.0
