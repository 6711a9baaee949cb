"""MySQL and MariaDB for pool-core, on aiomysql: the manager, and nothing else."""

from pool_mysql._driver import Connection, OpenTransactionError, SessionStateError, TLSRefusedError
from pool_mysql._manager import MySQLConnectionManager

__all__ = ["Connection", "MySQLConnectionManager", "OpenTransactionError", "SessionStateError", "TLSRefusedError"]
