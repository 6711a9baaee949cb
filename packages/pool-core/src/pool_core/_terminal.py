"""What the command line shows: tables that fit the terminal, a live line, and no secret."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Sequence


class LiveLine:
    """One line of the terminal that is written again and again, without escape sequences. Elsewhere: nothing.

    It goes to the standard error, so that the table can be piped while it is watched.
    """

    def __init__(self) -> None:
        self._on = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._width = 0

    def show(self, text: str) -> None:
        text = text[: shutil.get_terminal_size().columns - 1]
        self._write("\r" + text.ljust(self._width))
        self._width = len(text)

    def clear(self) -> None:
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _write(self, text: str) -> None:
        if not self._on:
            return
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:  # the terminal has gone
            self._on = False


PLAIN = re.compile(r"-{0,2}[\w\-]*", re.ASCII)
"""What may be an option, a command or a number, but no URL."""


def secrets_of(url: str) -> list[str]:
    """Whatever of a URL no message may show. Adapters scrub theirs; this is for those that forget, and their drivers."""
    secrets = [url]
    after = url.partition("://")[2]
    # A password may hold a bare / ? # or @, and a query an @: take every end that anybody could read as the user's.
    for at in re.finditer("@", after):
        user = after[: at.start()]
        for part in (user, re.split(r"[/?#]", user)[0]):
            secrets += [part, part.partition(":")[2]]
    for pair in re.split(r"[?&;#]", after)[1:]:
        key, _, value = pair.partition("=")
        if re.search("pass|pwd|secret|token|key", key, re.IGNORECASE):
            secrets.append(value)
    secrets += [unquote(secret) for secret in secrets]
    # What is as short as this guards nothing, and stands in many a word.
    return [secret for secret in secrets if len(secret) > 2]


def without(text: str, secrets: list[str]) -> str:
    """Take the secrets out, however a driver spells them: as they are, percent-encoded, or escaped as repr does."""
    for secret in sorted(secrets, key=len, reverse=True):
        spelt = "".join(map(_spellings, secret))
        text = re.sub(rf"b?(['\"]){spelt}\1|{spelt}", "(not shown)", text)
    return line_of(text)


def _spellings(char: str) -> str:
    """Return a pattern of every way in which a character may stand in a text."""
    raw = char.encode("utf-8", "surrogatepass")
    ways = [
        "".join(f"%{byte:02x}" for byte in raw),
        "".join(rf"\\x{byte:02x}" for byte in raw),
        *(rf"\\{kind}{ord(char):0{digits}x}" for kind, digits in (("x", 2), ("u", 4), ("U", 8))),
    ]
    escapes = "|".join(dict.fromkeys(ways))
    return rf"(?:\\?{re.escape(char)}|(?i:{escapes}){'|[+]' if char == ' ' else ''})"


def said(error: BaseException) -> str:
    return f"{type(error).__name__}: {text}" if (text := str(error)) else type(error).__name__


def line_of(text: str) -> str:
    """One line, and no control characters: a server's message must not steer the terminal."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.1f} us"


def table(rows: Sequence[tuple[str, ...]], width: int | None = None) -> str:
    """Lay rows out in columns, or, where the terminal is too narrow, each row below the other.

    Args:
        rows: All of one length; with more than two columns the first row is the heading.
        width: Of the terminal; None: no limit.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if width is None or max(map(len, lines)) <= width:
        return "\n".join(lines)
    if len(widths) > 2:
        return "\n".join(
            "\n".join([head, *(_folded(cell, width, "  ") for cell in cells if cell)]) for head, *cells in rows[1:]
        )
    if widths[0] + 2 <= width // 2 + 8:
        margin = " " * (widths[0] + 2)
        return "\n".join(f"{name:{widths[0]}}  {_folded(value, width, margin).strip()}" for name, value in rows)
    return "\n".join(f"{name}\n{_folded(value, width, '  ')}" for name, value in rows)


def _folded(text: str, width: int, margin: str) -> str:
    return textwrap.fill(
        text, max(width, len(margin) + 8), initial_indent=margin, subsequent_indent=margin, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def columns() -> int | None:
    """Return the width of the terminal; None: what is printed goes elsewhere."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def print_json(document: dict[str, object], *, lines: bool = False) -> None:
    """Print a document, on one line if others follow."""
    show(json.dumps(document, indent=None if lines else 2), flush=lines)


def show(text: str, *, flush: bool = False) -> None:
    """Print, whatever the terminal's encoding lacks."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=flush)


def complain(message: str) -> None:
    write_error(f"pool_core: {message}\n")


def write_error(text: str) -> None:
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
