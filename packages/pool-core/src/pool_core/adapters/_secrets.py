"""Secrets that no log shows, and credentials that may be callables."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeAlias

__all__ = ["Credential", "Secret", "ask", "check_credential"]


class Secret:
    """Holds a secret text. ``str``, ``repr`` and ``format`` show stars; ``reveal`` returns the text.

    Two secrets with the same text are equal. A copy is the same object; ``pickle`` keeps the text, readable, so that
    settings can be sent to another process.
    """

    __slots__ = ("_text",)
    _text: str

    def __init__(self, text: str) -> None:
        object.__setattr__(self, "_text", text)

    def reveal(self) -> str:
        """Return the text: for use at once, not for keeping."""
        return self._text

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a secret cannot be changed: make another one")

    def __repr__(self) -> str:
        return "Secret('***')"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        return Secret, (self._text,)


Credential: TypeAlias = str | Secret | Callable[[], "str | Secret | Awaitable[str | Secret]"]
"""A user name or password: a text, or a callable, sync or async, that returns one and is called for each connection."""


def check_credential(name: str, value: object) -> None:
    """Refuse what cannot be a credential, without I/O and without calling it.

    Raises:
        TypeError: it is neither a str, a `Secret`, a callable nor None.
        ValueError: it begins or ends with a line break, or has a NUL character. The text does not quote it.
    """
    if isinstance(value, str | Secret):
        revealed = value if isinstance(value, str) else value.reveal()
        # A space or a tab may be a part of a password; these never are.
        if revealed.strip("\r\n") != revealed:
            raise ValueError(f"{name} ends with a line break: remove it, as with .strip() after reading a file")
        if "\0" in revealed:
            raise ValueError(f"{name} has a NUL character: remove it")
    elif not (value is None or callable(value)):
        raise TypeError(f"{name} is of type {type(value).__name__}: expected a str, or a callable that returns one")


async def ask(name: str, credential: Credential | None) -> str | None:
    """Return the text of a credential, calling what is callable; None for None. For use at each connect.

    Args:
        name: what it is, for the error message: ``"password"``.
        credential: see `Credential`.

    Raises:
        TypeError, ValueError: as `check_credential`, also for what a callable returns.
        Exception: whatever a callable raises.
    """
    value: object = credential
    if callable(value):
        value = value()
        if inspect.isawaitable(value):
            value = await value
        _check_answer(name, value)
    return _text(name, value)


def ask_at_once(name: str, credential: Credential | None) -> str | None:
    """As `ask`, for drivers without an event loop: a callable must be an ordinary function.

    Raises:
        TypeError, ValueError: as `ask`, and for a coroutine function.
    """
    value: object = credential
    if callable(value):
        value = value()
        if inspect.iscoroutine(value):
            value.close()
            raise TypeError(f"the callable for {name} is a coroutine function: here it must be an ordinary function")
        _check_answer(name, value)
    return _text(name, value)


def _check_answer(name: str, value: object) -> None:
    if not isinstance(value, str | Secret):
        raise TypeError(f"the callable for {name} returned {type(value).__name__}: it must return a str")


def _text(name: str, value: object) -> str | None:
    check_credential(name, value)
    return value.reveal() if isinstance(value, Secret) else value  # type: ignore[return-value]
