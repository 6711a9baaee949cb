"""What both pools check of a manager before they use it."""

from __future__ import annotations

import inspect
import warnings

_REQUIRED = ("connect", "is_valid", "has_broken", "close")
_OPTIONAL = ("reset", "terminate", "is_transient", "judge", "is_clean")
_SYNCHRONOUS = ("has_broken", "terminate", "is_transient", "judge", "is_clean")


def check_manager(manager: object, *, for_threads: bool = False) -> None:
    """Refuse what is not a manager, or one of the other pool, and warn of an optional method that is nearly spelt right."""
    who = type(manager).__name__
    if isinstance(manager, type):
        msg = f"manager: {manager.__name__} is a class: give an instance, Pool({manager.__name__}(...))"
        raise TypeError(msg)
    missing = [verb for verb in _REQUIRED if not callable(getattr(manager, verb, None))]
    if missing:
        near = [f"; did you mean {verb} by {found!r}?" for verb in missing if (found := _near(manager, verb))]
        msg = f"manager: {who} has no method {', '.join(missing)}: a manager needs {', '.join(_REQUIRED)}"
        raise TypeError(msg + "".join(near))
    if for_threads:
        for verb in (*_REQUIRED, *_OPTIONAL):
            if inspect.iscoroutinefunction(getattr(manager, verb, None)):
                msg = (
                    f"manager: {who}.{verb} is a coroutine function: this manager belongs to pool_core.Pool; one for "
                    "pool_core.threads.Pool has ordinary methods only"
                )
                raise TypeError(msg)
    for verb in _SYNCHRONOUS:
        if inspect.iscoroutinefunction(getattr(manager, verb, None)):
            msg = f"manager: {who}.{verb} is a coroutine function: it must be an ordinary method that returns at once"
            raise TypeError(msg)
    for verb in _OPTIONAL:
        if not callable(getattr(manager, verb, None)) and (found := _near(manager, verb)):
            warnings.warn(
                f"manager: {who} has {found!r}, but no {verb!r}: the pool looks for {', '.join(_OPTIONAL)}",
                stacklevel=3,
            )


def _near(manager: object, verb: str) -> str | None:
    """A public method of the manager whose name is nearly that of the method ``verb``."""
    known = {*_REQUIRED, *_OPTIONAL}
    names = [name for name in dir(manager) if not name.startswith("_") and name not in known]
    names = [name for name in names if abs(len(name) - len(verb)) <= 2]
    if not names:
        return None
    import difflib  # rarely needed

    return next(iter(difflib.get_close_matches(verb, names, 1, 0.8)), None)
