"""What errors mean: for connecting, and for connections."""

from __future__ import annotations

import socket
import ssl

import pytest
from pool_core import Verdict
from pool_core.adapters import ErrorTable, dropping_on_failure, is_transient, judge


class DriverError(Exception):
    def __init__(self, code: object) -> None:
        super().__init__(f"error {code}")
        self.code = code


class ReadOnlyDriverError(DriverError):
    pass


def raised(
    error: BaseException, *, cause: BaseException | None = None, context: BaseException | None = None
) -> Exception:
    """The error as a driver raises it: from a cause, or while it handles another one."""
    try:
        try:
            if context is not None:
                raise context
        except BaseException:
            raise error from cause
        raise error from cause
    except Exception as made:
        if context is not None and cause is None:
            made.__suppress_context__ = False
        return made


CERTIFICATE = ssl.SSLCertVerificationError("certificate has expired")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "refused"),
        ConnectionResetError(104, "reset"),
        TimeoutError(),
        OSError(113, "no route to host"),
        FileNotFoundError(2, "a socket whose server is restarting"),
        EOFError(),
        socket.gaierror(socket.EAI_AGAIN, "temporary failure in name resolution"),
        ssl.SSLEOFError("cut off in the handshake"),
        RuntimeError("whatever"),
        DriverError(1),
        raised(DriverError(1), cause=ConnectionRefusedError()),
        raised(DriverError(1), cause=ssl.SSLEOFError()),
        raised(DriverError(1), context=KeyError("a driver's cache")),
        raised(DriverError(1), cause=ValueError("a driver's parser")),
        ExceptionGroup("all addresses", [ConnectionRefusedError(), CERTIFICATE]),
    ],
    ids=repr,
)
def test_what_may_pass_is_transient(error: Exception) -> None:
    """A restart must not fail the waiters."""
    assert is_transient(error) is True


@pytest.mark.parametrize(
    "error",
    [
        CERTIFICATE,
        ssl.SSLError("wrong version number"),
        socket.gaierror(socket.EAI_NONAME, "name or service not known"),
        raised(DriverError(1), cause=CERTIFICATE),
        raised(DriverError(1), context=CERTIFICATE),
        raised(DriverError(1), cause=raised(OSError(), cause=CERTIFICATE)),
        raised(ConnectionError(), context=socket.gaierror(socket.EAI_NONAME, "not known")),
        ExceptionGroup("all addresses", [CERTIFICATE]),
        ValueError(),
        TypeError(),
        OverflowError("port"),
        ModuleNotFoundError("a driver's extra"),
        UnicodeDecodeError("utf-8", b"", 0, 1, "x"),
        NotImplementedError(),
    ],
    ids=repr,
)
def test_what_will_not_pass_is_not_transient(error: Exception) -> None:
    """The waiters must hear of it at once."""
    assert is_transient(error) is False


def test_a_suppressed_context_does_not_count() -> None:
    """`raise ... from None` says that the other error has nothing to do with it."""
    error = raised(DriverError(1), context=CERTIFICATE)
    error.__suppress_context__ = True
    assert is_transient(error) is True


def test_a_circle_of_causes_ends() -> None:
    one, other = DriverError(1), DriverError(2)
    one.__cause__, other.__cause__ = other, one
    assert is_transient(one) is True
    assert judge(one, lambda error: None) is Verdict.KEEP


LASTING = ErrorTable(
    (("28*", "3D000"), False, "https://example.org/codes: authorization, no such database"),
    ("28999", True, "the one that heals"),
    (("2", 2002), True, "short codes"),
    (RuntimeError, False, "a package is missing"),
    (DriverError, True, "all others"),
    code=lambda error: getattr(error, "code", None),
)


def test_a_drivers_own_table_goes_first() -> None:
    """A ValueError may be the driver's word for something that heals, and so on."""
    assert is_transient(DriverError("28P01"), LASTING) is False
    assert is_transient(DriverError("28999"), LASTING) is True
    assert is_transient(DriverError("57P03"), LASTING) is True
    assert is_transient(RuntimeError(), LASTING) is False
    assert is_transient(raised(RuntimeError(), cause=ConnectionRefusedError()), LASTING) is False
    assert is_transient(raised(OSError(), cause=DriverError("28P01")), LASTING) is False
    assert is_transient(CERTIFICATE, LASTING) is False
    assert is_transient(ValueError(), lambda error: True) is True


def test_the_most_specific_row_of_a_table_wins() -> None:
    table = ErrorTable(
        (Exception, "any", "source"),
        (DriverError, "driver", "source"),
        ("5*", "fives", "source"),
        ("57P*", "shutdown", "source"),
        ("57P03", "starting", "source"),
        (1290, "number", "source"),
        code=lambda error: getattr(error, "code", None),
    )
    asked = [
        ReadOnlyDriverError("57P03"),
        DriverError("57P01"),
        DriverError("53300"),
        DriverError("x"),
        DriverError(1290),
    ]
    assert [table(error) for error in asked] == ["starting", "shutdown", "fives", "driver", "number"]
    assert [table(DriverError(code)) for code in ("5", "57P")] == ["fives", "shutdown"]
    assert table(KeyError()) == "any"
    assert table(KeyboardInterrupt()) is None


def test_two_rows_for_one_code_are_a_mistake() -> None:
    """The second would never be found."""
    with pytest.raises(ValueError, match="'28P01' has two rows"):
        ErrorTable((("28P01", "28P01"), True, "source"))


VERDICTS = ErrorTable(
    (("25006", ReadOnlyDriverError), Verdict.RETIRE_ALL, "https://example.org: read-only"),
    ("57P01", Verdict.CLOSE, "https://example.org: shut down"),
    ("22012", Verdict.KEEP, "division by zero"),
    code=lambda error: getattr(error, "code", None),
)


def test_judge_reads_its_table() -> None:
    assert judge(DriverError("25006"), VERDICTS) is Verdict.RETIRE_ALL
    assert judge(ReadOnlyDriverError("x"), VERDICTS) is Verdict.RETIRE_ALL
    assert judge(DriverError("57P01"), VERDICTS) is Verdict.CLOSE
    assert judge(DriverError("unknown"), VERDICTS) is Verdict.KEEP
    assert judge(KeyError(), VERDICTS) is Verdict.KEEP


def test_judge_looks_at_what_an_error_was_raised_from() -> None:
    """Libraries wrap the driver's error. What was being handled by the way says nothing."""
    assert judge(raised(RuntimeError(), cause=DriverError("25006")), VERDICTS) is Verdict.RETIRE_ALL
    assert judge(raised(RuntimeError(), context=DriverError("25006")), VERDICTS) is Verdict.KEEP
    assert judge(raised(DriverError("22012"), cause=DriverError("25006")), VERDICTS) is Verdict.KEEP


@pytest.mark.parametrize("error", [ValueError("handshake"), KeyboardInterrupt(), SystemExit(3)])
def test_a_failed_connect_drops_what_it_opened(error: BaseException) -> None:
    """Whatever the error; and what dropping raises hides nothing."""
    dropped = []

    def drop() -> None:
        dropped.append(True)
        raise OSError("already closed")

    with pytest.raises(type(error)) as caught:
        with dropping_on_failure(drop):
            raise error
    assert caught.value is error
    assert dropped == [True]


def test_a_connect_that_succeeds_drops_nothing() -> None:
    with dropping_on_failure(lambda: pytest.fail("dropped")):
        pass
