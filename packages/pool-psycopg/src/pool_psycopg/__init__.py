"""PostgreSQL for pool-core, on psycopg 3."""

from pool_psycopg._manager import PsycopgConnectionManager

__all__ = ["PsycopgConnectionManager"]
