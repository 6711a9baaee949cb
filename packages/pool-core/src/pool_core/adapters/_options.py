"""The options of an adapter: which there are, of what kind, and what is said of those that there are not."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from pool_core._text import check_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Kind", "Options", "boolean", "choice", "did_you_mean", "integer", "number", "text"]

T = TypeVar("T")

_HARMLESS: Final = re.compile(r"[\w.+\-]{0,40}", re.ASCII)
_FLAGS: Final = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


class Kind(Generic[T]):
    """A kind of option: how to read it from a URL, and how to check it as a keyword argument.

    Made by `text`, `boolean`, `integer`, `number` and `choice`; an adapter may make others.
    """

    __slots__ = ("_allows", "_read", "_types", "_words")

    def __init__(
        self,
        words: str,
        types: tuple[type, ...],
        read: Callable[[str], T],
        allows: Callable[[Any], bool] = lambda value: True,
    ) -> None:
        """Define a kind.

        Args:
            words: what is expected, for the error message: ``"an int from 1 to 9"``.
            types: the types of a keyword argument; a bool is an int only where ``bool`` is named.
            read: makes a value of the text in a URL; ValueError or KeyError: it cannot.
            allows: tells whether a value of the right type is allowed.
        """
        self._words = words
        self._types = types
        self._read = read
        self._allows = allows

    def read(self, name: str, text: str) -> T:
        """Read an option of a URL.

        Raises:
            ValueError: the text is not of this kind.
        """
        try:
            value = self._read(text)
        except (ValueError, KeyError):
            pass
        else:
            if self._allows(value):
                return value
        shown = f"={text!r}" if str not in self._types and _HARMLESS.fullmatch(text) else ""
        raise ValueError(f"{name}{shown} in the URL: expected {self._words}")

    def check(self, name: str, value: Any) -> T:
        """Check a keyword argument, and return it.

        Raises:
            TypeError: it has the wrong type.
            ValueError: it has the right type and is not allowed.
        """
        if not isinstance(value, self._types) or (isinstance(value, bool) and bool not in self._types):
            raise TypeError(f"{name} is of type {type(value).__name__}: expected {self._words}")
        if not self._allows(value):
            raise ValueError(f"{name}={value!r}: expected {self._words}")
        return cast("T", value)


def text() -> Kind[str]:
    """Make the kind of a text without control characters. Its value is shown in no error."""

    def allows(value: str) -> bool:
        try:
            check_text("", value)
        except ValueError:
            return False
        return True

    class Text(Kind[str]):
        __slots__ = ()

        def check(self, name: str, value: Any) -> str:
            if not isinstance(value, str):
                return super().check(name, value)  # refuses it
            return check_text(name, value)

    return Text("a text without control characters, and without white space around it", (str,), str, allows)


def boolean() -> Kind[bool]:
    """Make the kind of True and False; in a URL true, false, yes, no, on, off, 1 and 0."""
    return Kind("True or False (in a URL: true or false)", (bool,), lambda text: _FLAGS[text.lower()])


def integer(least: int | None = None, most: int | None = None) -> Kind[int]:
    """Make the kind of an int from `least` to `most`; None: no limit."""

    def read(text: str) -> int:
        if len(text) > 40 or "_" in text:  # int() takes underscores
            raise ValueError
        return int(text)

    def allows(value: int) -> bool:
        return (least is None or value >= least) and (most is None or value <= most)

    return Kind(f"an int{_range(least, most)}", (int,), read, allows)


def number(least: float | None = None, most: float | None = None, *, above: float | None = None) -> Kind[float]:
    """Make the kind of a finite int or float: from `least` to `most`, more than `above`; None: no limit."""

    def read(text: str) -> float:
        if "_" in text:
            raise ValueError
        return float(text)

    def allows(value: float) -> bool:
        return (
            abs(value) <= sys.float_info.max  # not for NaN, inf, and an int that no float can be
            and (least is None or value >= least)
            and (most is None or value <= most)
            and (above is None or value > above)
        )

    more = "" if above is None else f" above {above}"
    return Kind(f"a finite number{more}{_range(least, most)}", (int, float), read, allows)


def choice(*words: str) -> Kind[str]:
    """Make the kind of one of these texts."""

    class Choice(Kind[str]):
        __slots__ = ()

        def check(self, name: str, value: Any) -> str:
            if value not in words:  # also of another type: the list says it all
                raise ValueError(f"{name}={value!r}: expected {self._words}")
            return cast("str", value)

    return Choice("one of " + ", ".join(map(repr, words)), (), str, lambda value: value in words)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for a misspelt name, or ``""`` when nothing is near."""
    import difflib  # rarely needed

    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), by_lower, 1, 0.6)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


class Options:
    """The options that an adapter takes.

    Args:
        owner: whose options these are, for error messages: ``"AmqpConnectionManager"``.
        kinds: those that may stand in a URL and among the keyword arguments.
        keywords: those that are only keyword arguments: with a kind, or None where the driver checks the value.
        refused: what is not taken although people know the name, and what to do instead:
            ``{"max_connections": "use the pool's max_size"}``.
    """

    __slots__ = ("_keywords", "_kinds", "_owner", "_refused")

    def __init__(
        self,
        owner: str,
        kinds: Mapping[str, Kind[Any]],
        *,
        keywords: Mapping[str, Kind[Any] | None] | None = None,
        refused: Mapping[str, str] | None = None,
    ) -> None:
        self._owner = owner
        self._kinds = dict(kinds)
        self._keywords = {**self._kinds, **(keywords or {})}
        self._refused = dict(refused or {})

    def __contains__(self, name: object) -> bool:
        """Tell whether a URL's option is one of these, or is refused here by name."""
        return name in self._kinds or name in self._refused

    def read(self, query: Iterable[tuple[str, str]]) -> dict[str, Any]:
        """Read the options of a URL (`URL.query`).

        Raises:
            TypeError: an unknown option, one that is refused, or one that must be a keyword argument.
            ValueError: a value of the wrong kind, or an option given twice.
        """
        read: dict[str, Any] = {}
        for name, value in query:
            if name in self._kinds:
                if name in read:
                    raise ValueError(f"{name} stands twice in the URL: give it once")
                read[name] = self._kinds[name].read(name, value)
            elif name in self._keywords:
                raise TypeError(f"{name} cannot be given in a URL: give it as a keyword argument")
            else:
                raise TypeError(f"{self._unknown(name, self._kinds)} (in the URL)")
        return read

    def check(self, given: Mapping[str, Any]) -> None:
        """Check keyword arguments. A None is left to the adapter and its driver.

        Raises:
            TypeError: an unknown or refused option, or a value of the wrong type.
            ValueError: a value that is not allowed.
        """
        for name, value in given.items():
            if name not in self._keywords:
                raise TypeError(self._unknown(name, self._keywords))
            kind = self._keywords[name]
            if kind is not None and value is not None:
                kind.check(name, value)

    def _unknown(self, name: str, known: Iterable[str]) -> str:
        if name in self._refused:
            return f"{name} is not taken: {self._refused[name]}"
        shown = repr(name) if _HARMLESS.fullmatch(name) else "(not shown)"
        near = did_you_mean(name, known)
        return f"{shown} is not an option of {self._owner}{near or '; the options are ' + ', '.join(known)}"


def _range(least: float | None, most: float | None) -> str:
    if least is None:
        return "" if most is None else f" up to {most}"
    return f" of at least {least}" if most is None else f" from {least} to {most}"
