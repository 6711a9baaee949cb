"""PostgreSQL for pool-core, on asyncpg."""

from pool_postgres._manager import PostgresConnectionManager

__all__ = ["PostgresConnectionManager"]
