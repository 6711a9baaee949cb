"""The proxy of ``guard=True``: it behaves like the connection, and refuses use after the release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._errors import PoolError

if TYPE_CHECKING:
    from ._lease import PooledConnection


class Guard:
    """Behaves like the connection, and refuses use after the release. ``isinstance`` still works."""

    __slots__ = ("__weakref__", "_conn", "_lease", "_slot")

    def __init__(self, lease: PooledConnection[Any], conn: Any) -> None:
        object.__setattr__(self, "_lease", lease)
        object.__setattr__(self, "_conn", conn)
        object.__setattr__(self, "_slot", lease._slot)

    def __getattribute__(self, name: str) -> Any:
        return getattr(_guarded(self), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(_guarded(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_guarded(self), name)

    def __bool__(self) -> bool:
        return bool(_guarded(self))

    def __repr__(self) -> str:
        return f"<guarded {type(object.__getattribute__(self, '_conn')).__name__}>"


def _guarded(guard: Guard) -> Any:
    lease = object.__getattribute__(guard, "_lease")
    if lease._slot is not object.__getattribute__(guard, "_slot"):
        msg = "this connection was released: use it only inside its 'async with', or before lease.release()"
        raise PoolError(msg)
    return object.__getattribute__(guard, "_conn")


def _forward(name: str) -> Any:
    def method(self: Guard, *args: Any, **kwargs: Any) -> Any:
        return getattr(_guarded(self), name)(*args, **kwargs)

    method.__name__ = name
    return method


# Python looks up special methods on the type: these are the ones that connections of known drivers have.
for _name in (
    "__aenter__",
    "__aexit__",
    "__aiter__",
    "__anext__",
    "__await__",
    "__call__",
    "__contains__",
    "__delitem__",
    "__enter__",
    "__eq__",
    "__exit__",
    "__getitem__",
    "__hash__",
    "__iter__",
    "__len__",
    "__setitem__",
):
    setattr(Guard, _name, _forward(_name))
