"""What the errors of MySQL, MariaDB and aiomysql mean, by their numbers.

The names are those of MySQL's "Server Error Message Reference" (ER_) and "Client Error Message Reference" (CR_), and of
MariaDB's "Error Codes"; `perror` of MySQL 9.7 and MariaDB 10.11 has confirmed them.
"""

from __future__ import annotations

from typing import Final

from pool_core import Verdict
from pool_core.adapters import ErrorTable
from pymysql.err import MySQLError

__all__ = ["PERMANENT", "VERDICTS"]

_FOREIGN: Final = "not a number"  # an error of the driver itself, such as a packet that is not MySQL's
_WORDS: Final[dict[int | str | None, str]] = {1047: "WSREP", 1290: "read-only", 4031: "inactivity"}


def _number(error: BaseException) -> int | str | None:
    if not isinstance(error, MySQLError):
        return None
    number = error.args[0] if error.args else None
    return number if isinstance(number, int) else _FOREIGN


def _number_and_word(error: BaseException) -> int | str | None:
    """Return the number, with a word where a server has one number for several causes."""
    number = _number(error)
    word = _WORDS.get(number)
    if word is None:
        return number
    return f"{number} {word}" if word in str(error).replace("_", "-") else None


# Errors of connecting that will not heal. All others may.
PERMANENT: Final = ErrorTable[bool](
    (1044, False, "ER_DBACCESS_DENIED_ERROR: no right to use this database"),
    (1045, False, "ER_ACCESS_DENIED_ERROR: wrong user or password"),
    (1049, False, "ER_BAD_DB_ERROR: unknown database"),
    (1064, False, "ER_PARSE_ERROR, in init_command or sql_mode"),
    (1115, False, "ER_UNKNOWN_CHARACTER_SET"),
    (1130, False, "ER_HOST_NOT_PRIVILEGED: this client's host is not allowed"),
    (1142, False, "ER_TABLEACCESS_DENIED_ERROR, in init_command"),
    (1143, False, "ER_COLUMNACCESS_DENIED_ERROR, in init_command"),
    (1146, False, "ER_NO_SUCH_TABLE, in init_command"),
    (1193, False, "ER_UNKNOWN_SYSTEM_VARIABLE, in init_command"),
    (1227, False, "ER_SPECIFIC_ACCESS_DENIED_ERROR, in init_command"),
    (1231, False, "ER_WRONG_VALUE_FOR_VAR, in init_command or sql_mode"),
    (1251, False, "ER_NOT_SUPPORTED_AUTH_MODE: the client does not support the login method"),
    (1273, False, "ER_UNKNOWN_COLLATION"),
    (1275, False, "ER_SERVER_IS_IN_SECURE_AUTH_MODE: an old password format"),
    (1305, False, "ER_SP_DOES_NOT_EXIST, in init_command"),
    (1524, False, "ER_PLUGIN_IS_NOT_LOADED: the account's login method"),
    (1698, False, "ER_ACCESS_DENIED_NO_PASSWORD_ERROR"),
    (1820, False, "ER_MUST_CHANGE_PASSWORD"),
    (1862, False, "ER_MUST_CHANGE_PASSWORD_LOGIN"),
    (2026, False, "CR_SSL_CONNECTION_ERROR: TLS is demanded and not offered"),
    (2054, False, "CR_NOT_IMPLEMENTED: login method"),
    (2059, False, "CR_AUTH_PLUGIN_CANNOT_LOAD: the driver lacks the login method"),
    (2061, False, "CR_AUTH_PLUGIN_ERR: the login method demands TLS"),
    (3118, False, "ER_ACCOUNT_HAS_BEEN_LOCKED (MySQL)"),
    (3159, False, "ER_SECURE_TRANSPORT_REQUIRED (MySQL)"),
    (3955, False, "ER_USER_ACCESS_DENIED_FOR_USER_ACCOUNT_BLOCKED_BY_PASSWORD_LOCK (MySQL)"),
    (4150, False, "ER_USER_IS_BLOCKED (MariaDB): too many wrong passwords"),
    (4151, False, "ER_ACCOUNT_HAS_BEEN_LOCKED (MariaDB)"),
    (4166, False, "ER_LOAD_INFILE_CAPABILITY_DISABLED (MariaDB), in init_command"),
    (_FOREIGN, False, "aiomysql: an answer that is not MySQL's, an unknown login method"),
    (RuntimeError, False, "aiomysql and PyMySQL: what a setting needs is missing"),
    code=_number,
)
# What an error in a block means for connections. 1792 (ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION) has no row: the program
# itself began such a transaction. 1045 has none either: on an open connection it is a missing right, as for INTO OUTFILE.
VERDICTS: Final = ErrorTable[Verdict](
    ("1290 read-only", Verdict.RETIRE_ALL, "ER_OPTION_PREVENTS_STATEMENT: --read-only or --super-read-only"),
    (1836, Verdict.RETIRE_ALL, "ER_READ_ONLY_MODE: the storage engine is read-only (also Aurora's old primary)"),
    (1053, Verdict.RETIRE_ALL, "ER_SERVER_SHUTDOWN: the server ends all connections"),
    (3032, Verdict.RETIRE_ALL, "ER_SERVER_OFFLINE_MODE (MySQL): the server ends all connections"),
    ("1047 WSREP", Verdict.RETIRE_ALL, "Galera: WSREP has not yet prepared node for application use"),
    ((1152, 1184), Verdict.CLOSE, "ER_ABORTING_CONNECTION, ER_NEW_ABORTING_CONNECTION"),
    (1153, Verdict.CLOSE, "ER_NET_PACKET_TOO_LARGE: the server then closes the connection"),
    (tuple(range(1156, 1162)), Verdict.CLOSE, "ER_NET_PACKETS_OUT_OF_ORDER to ER_NET_WRITE_INTERRUPTED"),
    (1835, Verdict.CLOSE, "ER_MALFORMED_PACKET"),
    (1927, Verdict.CLOSE, "ER_CONNECTION_KILLED (MariaDB)"),
    (3169, Verdict.CLOSE, "ER_SESSION_WAS_KILLED (MySQL)"),
    ("4031 inactivity", Verdict.CLOSE, "ER_CLIENT_INTERACTION_TIMEOUT (MySQL): closed by wait_timeout"),
    ((2006, 2013, 2055), Verdict.CLOSE, "CR_SERVER_GONE_ERROR, CR_SERVER_LOST, CR_SERVER_LOST_EXTENDED"),
    ((2014, 2027), Verdict.CLOSE, "CR_COMMANDS_OUT_OF_SYNC, CR_MALFORMED_PACKET"),
    code=_number_and_word,
)
