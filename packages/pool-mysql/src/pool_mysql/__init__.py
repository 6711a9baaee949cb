"""MySQL and MariaDB for pool-core, on aiomysql: the manager, and nothing else."""

from pool_mysql._manager import MySQLConnectionManager, OpenTransactionError, SessionStateError, TLSRefusedError

__all__ = ["MySQLConnectionManager", "OpenTransactionError", "SessionStateError", "TLSRefusedError"]
