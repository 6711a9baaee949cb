"""Makes engines: from a URL, with a pool of their own, or over a pool of the user's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pool_core
from pool_core import PoolOptions
from sqlalchemy import event, make_url
from sqlalchemy.ext.asyncio import create_async_engine as create_of_sqlalchemy

from pool_sqlalchemy._drivers import DRIVERS, Driver, driver_of
from pool_sqlalchemy._pool import LeasedPool, Source

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["create_async_engine", "engine_over"]

_MANAGERS: Final = "the pool's manager connects; its keyword arguments are connect_args"
_REFUSED: Final = {
    "pool_size": "write max_size=15 for pool_size=5, max_overflow=10",
    "max_overflow": "write max_size=15 for pool_size=5, max_overflow=10",
    "pool_timeout": "write connection_timeout",
    "pool_recycle": "write max_lifetime",
    "pool_pre_ping": "the pool validates connections by itself; test_on_check_out and alive_bypass say when",
    "pool_use_lifo": "write queue_strategy",
    "poolclass": "the pool is pool_core.Pool",
    "pool": "write engine_over(pool)",
    "creator": _MANAGERS,
    "async_creator": _MANAGERS,
    "guard": "SQLAlchemy refuses by itself to use a connection that was closed",
}


def create_async_engine(url_or_pool: str | URL | pool_core.Pool[Any], **options: Any) -> AsyncEngine:
    """Make an async engine whose connections come from a pool of pool-core.

    Args:
        url_or_pool: SQLAlchemy's URL: ``postgresql+asyncpg://``, ``postgresql+psycopg://``, ``mysql+aiomysql://`` or
            ``sqlite+aiosqlite://``. The engine has a pool of its own then, which the first connection opens and
            ``await engine.dispose()`` closes. A pool: as `engine_over`.
        options: those of ``sqlalchemy.ext.asyncio.create_async_engine`` and those of ``pool_core.Pool``, as
            ``max_size``. ``connect_args`` are the manager's: the driver's keywords, and ``reset`` and its like.
            SQLAlchemy's options for its own pools are refused.

    Raises:
        TypeError: an option that does not exist or is refused; the text names the one to write.
        ValueError: no adapter for this URL.
        ImportError: the adapter is not installed; the text says what to install.
    """
    if isinstance(url_or_pool, pool_core.Pool):
        return engine_over(url_or_pool, **options)
    _refuse(options)
    url = make_url(url_or_pool)
    driver = driver_of(url.drivername)
    of_pool = {name: options.pop(name) for name in PoolOptions.__annotations__ if name in options}
    engine = _engine(url, options)
    cargs, cparams = engine.dialect.create_connect_args(url)
    cparams = {**cparams, **options.get("connect_args", {})}
    make = partial(pool_core.Pool, driver.manager(cargs, cparams), **of_pool)
    _attach(engine, Source(make(), driver, make, cargs, cparams))
    return engine


def engine_over(pool: pool_core.Pool[Any], *, dialect: str | None = None, **options: Any) -> AsyncEngine:
    """Make an async engine over a pool that you have made, open and close.

    Args:
        pool: a pool of pool-postgres, pool-psycopg, pool-mysql or pool-sqlite. Others may use it beside the engine.
        dialect: SQLAlchemy's name, as ``"mariadb+aiomysql"``. None: by the pool's manager.
        options: those of ``sqlalchemy.ext.asyncio.create_async_engine``.

    Raises:
        TypeError: not a pool; an option that does not exist or is refused.
        ValueError: the pool has connections of another driver, or was made with ``guard=True``.
    """
    if not isinstance(pool, pool_core.Pool):
        raise TypeError(
            f"engine_over needs a pool_core.Pool, not {type(pool).__name__}: write create_async_engine(url)"
        )
    _refuse(options)
    for name in PoolOptions.__annotations__:
        if name in options:
            raise TypeError(f"{name} is an option of the pool, which was made before: give it to pool_core.Pool")
    if "connect_args" in options:
        raise TypeError("connect_args belong to the pool's manager, which was made before: give them to the manager")
    if pool.config.guard:
        raise ValueError(
            "the pool has guard=True, and SQLAlchemy keeps an object beside each connection: leave guard out"
        )
    driver = _driver_of(pool, dialect)
    engine = _engine(make_url(f"{dialect or driver.dialect}://"), options)
    _attach(engine, Source(pool, driver, None, (), {}))
    return engine


def _driver_of(pool: pool_core.Pool[Any], dialect: str | None) -> Driver:
    bases = {base.__module__.partition(".")[0] for base in type(pool.manager).__mro__}
    found = [name for name, kind in DRIVERS.items() if kind.module in bases]
    driver = driver_of(dialect) if dialect is not None else driver_of(found[0]) if found else None
    if driver is None:
        raise ValueError(
            f"{type(pool.manager).__name__} is not a manager of {', '.join(kind.module for kind in DRIVERS.values())}: for "
            "one of your own that opens a driver's connections give dialect='postgresql+asyncpg' or another"
        )
    if found and driver.dialect not in found:
        raise ValueError(f"dialect={dialect!r}, but the pool has connections for {found[0]}: leave dialect out")
    return driver


def _engine(url: URL, options: dict[str, Any]) -> AsyncEngine:
    return create_of_sqlalchemy(url, poolclass=LeasedPool, **options)


def _attach(engine: AsyncEngine, source: Source) -> None:
    pool = engine.sync_engine.pool
    assert isinstance(pool, LeasedPool)
    pool.attach(source)
    event.listen(engine.sync_engine, "handle_error", pool.failed)


def _refuse(options: dict[str, Any]) -> None:
    for name, advice in _REFUSED.items():
        if name in options:
            raise TypeError(f"{name} is not taken: {advice}")
