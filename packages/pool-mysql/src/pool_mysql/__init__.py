"""MySQL and MariaDB for pool-core, on aiomysql: the manager, and nothing else."""

from pool_mysql._internals import Connection, SessionStateError, TLSRefusedError
from pool_mysql._manager import MySQLConnectionManager

__all__ = ["Connection", "MySQLConnectionManager", "SessionStateError", "TLSRefusedError"]
