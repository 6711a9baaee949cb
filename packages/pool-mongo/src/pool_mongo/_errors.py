"""What MongoDB's and PyMongo's errors mean: may connecting succeed later, and what becomes of connections."""

from __future__ import annotations

from typing import Final

from dns.exception import DNSException
from pool_core import Verdict
from pool_core.adapters import ErrorTable
from pymongo.errors import (
    ConfigurationError,
    NotPrimaryError,
    OperationFailure,
    ServerSelectionTimeoutError,
)

__all__ = ["VERDICTS", "passes"]

# UserNotFound, Unauthorized, AuthenticationFailed, MechanismUnavailable, and Atlas' own word for a wrong password.
_REFUSALS = frozenset({11, 13, 18, 334, 8000})
# The end of file in a handshake is what a proxy before a server that restarts shows as well: that heals.
_TLS_GLITCHES = ("UNEXPECTED_EOF",)


def _code_of(exc: BaseException) -> int | None:
    """The server's code of an error; of many, the first that says something of the server."""
    if isinstance(exc, OperationFailure):
        found = [exc.code]
        for kind in ("writeErrors", "writeConcernErrors"):
            found += [error.get("code") for error in (exc.details or {}).get(kind, ())]
        return next((code for code in found if code in _STEPPED_DOWN), exc.code)
    if isinstance(exc, NotPrimaryError) and isinstance(exc.details, dict):
        return exc.details.get("code")
    return None


# "not writable primary", "node is recovering" and "node is shutting down": the drivers' specification
# server-discovery-and-monitoring.md, under "Application errors"; names from MongoDB's src/mongo/base/error_codes.yml.
_NOT_PRIMARY = (10107, 13435, 10058)  # NotWritablePrimary, NotPrimaryNoSecondaryOk, LegacyNotPrimary
_RECOVERING = (11602, 13436, 189)  # InterruptedDueToReplStateChange, NotPrimaryOrSecondary, PrimarySteppedDown
_SHUTTING_DOWN = (11600, 91)  # InterruptedAtShutdown, ShutdownInProgress
_STEPPED_DOWN = frozenset({*_NOT_PRIMARY, *_RECOVERING, *_SHUTTING_DOWN})
VERDICTS: Final = ErrorTable(
    (_NOT_PRIMARY, Verdict.RETIRE_ALL, "not writable primary"),
    (_RECOVERING, Verdict.RETIRE_ALL, "node is recovering"),
    (_SHUTTING_DOWN, Verdict.RETIRE_ALL, "node is shutting down"),
    (NotPrimaryError, Verdict.RETIRE_ALL, "the same by its words, of a server that gives no code"),
    ((18, 391), Verdict.CLOSE, "AuthenticationFailed, ReauthenticationRequired: the login does not hold any more"),
    code=_code_of,
)


def passes(exc: BaseException) -> bool | None:
    """What PyMongo's own errors say of a connect that failed; None: nothing.

    A name that DNS does not know may pass here, unlike elsewhere: of several servers one may do, and the driver names
    only some.
    """
    if isinstance(exc, OperationFailure):
        return exc.code not in _REFUSALS
    if isinstance(exc, ServerSelectionTimeoutError):
        text = str(exc)
        return not isinstance(exc.__cause__, ConfigurationError) and not (
            "[SSL: " in text and not any(glitch in text for glitch in _TLS_GLITCHES)
        )
    if isinstance(exc, ConfigurationError):  # mongodb+srv reports every trouble of DNS so
        return isinstance(exc.__cause__ or exc.__context__, DNSException)
    return None
