"""SQLAlchemy's async engine over pool-core."""

from pool_sqlalchemy._engine import create_async_engine, engine_over

__all__ = ["create_async_engine", "engine_over"]
