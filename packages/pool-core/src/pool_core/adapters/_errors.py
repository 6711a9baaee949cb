"""What errors mean: whether connecting may succeed later, and what becomes of connections."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from pool_core._manager import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

__all__ = ["ErrorTable", "dropping_on_failure", "is_transient", "judge"]

T = TypeVar("T")

# The connection was cut off in the handshake, as by a server that restarts.
_PASSING_TLS: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
# The name does not exist, or no resolver can be asked in this way. EAI_AGAIN and its like heal.
_LASTING_DNS: Final = frozenset(
    getattr(socket, name, None)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY", "EAI_FAMILY", "EAI_SERVICE", "EAI_SOCKTYPE")
)
# A mistake in the program or in the settings, or a package that is missing.
_MISTAKES: Final = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ImportError,
    NameError,
    ArithmeticError,
    NotImplementedError,
)


class ErrorTable(Generic[T]):
    """A table of what errors mean. Calling it returns the meaning of one error, or None where the table has no row.

    Each row is ``(key or keys, meaning, source)``. A key is an exception class, which stands for its subclasses too, or
    a code as `code` returns it. A str that ends with ``*`` stands for all codes that begin so. The most specific row
    wins: a code before a prefix, a longer prefix before a shorter, a code before a class, a subclass before its base.

    Args:
        rows: ``source`` says why, and where it is documented; it is for readers.
        code: returns an error's code, or None. It is called for every exception, of whatever class.
    """

    __slots__ = ("_classes", "_code", "_codes")

    def __init__(
        self, *rows: tuple[Any, T, str], code: Callable[[BaseException], Hashable | None] = lambda exc: None
    ) -> None:
        self._code = code
        self._classes: dict[type, T] = {}
        self._codes: dict[Hashable, T] = {}
        for keys, meaning, _ in rows:
            for key in keys if isinstance(keys, tuple | list | set | frozenset) else (keys,):
                place: dict[Any, T] = self._classes if isinstance(key, type) else self._codes
                if key in place:
                    raise ValueError(f"{key!r} has two rows in an ErrorTable: leave one")
                place[key] = meaning

    def __call__(self, exc: BaseException, /) -> T | None:
        code = self._code(exc)
        if code in self._codes:
            return self._codes[code]
        if isinstance(code, str):
            for end in range(len(code), 0, -1):
                if (prefix := code[:end] + "*") in self._codes:
                    return self._codes[prefix]
        return next((self._classes[kind] for kind in type(exc).__mro__ if kind in self._classes), None)


def is_transient(exc: BaseException, table: Callable[[BaseException], bool | None] | None = None) -> bool:
    """Tell whether a failed connect may succeed later.

    Not so: a name that does not exist, a certificate or TLS protocol that does not fit, a mistake in the program
    (TypeError, ValueError and the like). So: all else, as refused, reset, unreachable, timed out, temporary trouble of
    DNS, a TLS handshake that was cut off. What an error was raised from, or while handling, is looked at too: drivers
    wrap.

    Args:
        exc: what connect raised.
        table: the driver's own knowledge, which goes first: an `ErrorTable` or a function. It returns True (transient),
            False, or None (not known). It is asked about each error of the chain.
    """
    for position, error in enumerate(_chain(exc)):
        answer = None if table is None else table(error)
        if answer is None:
            answer = _of_network(error)
        if answer is None and position == 0 and isinstance(error, _MISTAKES):
            # Within the chain it may be a KeyError that the driver has handled.
            answer = False
        if answer is None and isinstance(error, BaseExceptionGroup):
            answer = any(is_transient(each, table) for each in error.exceptions)
        if answer is not None:
            return answer
    return True


def judge(exc: BaseException, table: Callable[[BaseException], Verdict | None]) -> Verdict:
    """Return what an error that left a block means for connections, for a manager's ``judge``.

    The first error with a row decides: the error itself, then what it was raised from (``__cause__``), since programs
    and libraries wrap. KEEP where there is none.

    Args:
        exc: the error.
        table: an `ErrorTable` of verdicts, or a function that returns a verdict or None.
    """
    error: BaseException | None = exc
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if (verdict := table(error)) is not None:
            return verdict
        seen.add(id(error))
        error = error.__cause__
    return Verdict.KEEP


@contextlib.contextmanager
def dropping_on_failure(drop: Callable[[], object]) -> Iterator[None]:
    """Drop a connection if the block fails or is cancelled: nothing stays open after a failed connect.

    The block's exception goes on; what `drop` itself raises is suppressed.

    Args:
        drop: closes the connection at once, whatever its state. It must not wait: no coroutine.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            drop()
        raise


def _chain(exc: BaseException) -> Iterator[BaseException]:
    error: BaseException | None = exc
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _of_network(error: BaseException) -> bool | None:
    if isinstance(error, ssl.SSLError):
        return isinstance(error, _PASSING_TLS)
    if isinstance(error, socket.gaierror):
        return error.errno not in _LASTING_DNS
    return None
