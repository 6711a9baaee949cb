"""Any database system with an ODBC driver, for pool-core, on aioodbc and pyodbc."""

try:
    import pyodbc
except ImportError as error:
    if "odbc" not in str(error):
        raise
    raise ImportError(
        f"pyodbc cannot be imported ({error}): install the ODBC driver manager, which is the package unixodbc on Debian and "
        "Ubuntu and unixodbc on macOS (Homebrew); Windows has it"
    ) from error

from pool_odbc._manager import OdbcConnectionManager
from pool_odbc._settings import DriverMissingError

__all__ = ["DriverMissingError", "OdbcConnectionManager"]

# The driver manager's own pool would keep connections that this one has closed. It is asked before the first connection.
pyodbc.pooling = False
