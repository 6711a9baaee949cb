"""What both pools know of a MySQL session: the state to bring back, the statements that do, and the errors. No driver's I/O."""

from __future__ import annotations

from typing import Final

from pymysql.err import OperationalError

__all__ = [
    "ATTRIBUTES", "CONVERTERS", "STATE", "SessionStateError", "TLSRefusedError", "check_state", "settings_statement", "way_back",
]  # fmt: skip

# Roles came with MySQL 8.0 and MariaDB 10.0.5. Each server reads the comment meant for it, so that no version string has
# to be parsed.
_IF_ROLES: Final = "/*!80000 {0} */ /*M!100005 {0} */"
# The state that a reset must bring back, or must find untouched.
STATE: Final = (
    "SELECT CAST(DATABASE() AS BINARY), @@character_set_client, @@character_set_results, @@collation_connection, "
    "@@sql_mode, @@autocommit " + _IF_ROLES.format(", CAST(CURRENT_ROLE() AS BINARY)")
)
_STATE_NAMES: Final = (
    "DATABASE()", "character_set_client", "character_set_results", "collation_connection", "sql_mode", "autocommit",
    "CURRENT_ROLE()",
)  # fmt: skip

# The Python side of a session: what a borrower may set on the connection itself, by methods or by assignment.
ATTRIBUTES: Final = (
    "_charset", "_echo", "_encoding", "_local_infile", "autocommit_mode", "cursorclass", "init_command", "sql_mode",
    "use_unicode",
)  # fmt: skip
CONVERTERS: Final = ("decoders", "encoders")  # each is one dict for the whole process, in PyMySQL


class TLSRefusedError(OperationalError):  # type: ignore[misc]
    """The setting ``ssl`` demands TLS, and the server does not offer it. No login was sent."""


class SessionStateError(OperationalError):  # type: ignore[misc]
    """The server cannot reset sessions, or a reset did not bring back the state. The pool closes the connection."""


State = tuple[bytes | None, ...]
"""The answer to STATE."""


def settings_statement(clean: State, sql_mode: str | None, autocommit: bool | None) -> str:
    """Make the query that sets what a reset does not bring back, and checks database and role."""
    database, client, results, collation, _, _, *role = clean
    # An IF with an unknown collation makes an error of what a reset leaves. One OK packet is cheaper than rows, and
    # a SET with an error sets nothing. Literals in hex are bytes, whatever the character set is.
    new = f"DATABASE() <=> {_hex(database)}"
    if role:
        new += f" AND CURRENT_ROLE() <=> {_hex(role[0])}"
    settings = [
        f"character_set_client={_quoted(client)}",
        f"character_set_results={_quoted(results)}",
        f"collation_connection=IF({new}, {_quoted(collation)}, 'of another database or role')",
    ]
    if sql_mode is not None:
        settings.append(f"sql_mode={sql_mode}")
    if autocommit is not None:
        settings.append(f"autocommit={autocommit:d}")
    return f"SET {', '.join(settings)}"


def way_back(clean: State) -> list[str]:
    """Make the statements that bring back the database and the role, which COM_RESET_CONNECTION leaves as they are."""
    database, client, *_ = clean
    back = [f"SET character_set_client={_quoted(client)}"]  # that of the names below
    if database is not None:
        back.append(f"USE `{database.decode().replace('`', '``')}`")
    for role in clean[6:]:
        # MySQL returns a list of quoted roles, or the keyword NONE; MariaDB returns a bare name, or NULL.
        ready = role is not None and (b"`" in role or role == b"NONE")
        back.append(f"SET ROLE {role.decode() if ready and role else _quoted(role, nothing='NONE')}")
    return back


def check_state(clean: State, now: State) -> None:
    """Raise SessionStateError where a reset did not bring back the state."""
    changed = [
        f"{name} was {_shown(old)} and is {_shown(new)}"
        for name, old, new in zip(_STATE_NAMES, clean, now, strict=False)
        if old != new
    ]
    if changed:
        raise SessionStateError(f"the reset of a session did not bring back its state: {', '.join(changed)}")


def _quoted(name: bytes | None, *, nothing: str = "NULL") -> str:
    return nothing if name is None else "'" + name.decode().replace("\\", "\\\\").replace("'", "''") + "'"


def _hex(name: bytes | None) -> str:
    return "NULL" if name is None else f"x'{name.hex()}'"


def _shown(value: bytes | None) -> str:
    return "NULL" if value is None else repr(value.decode(errors="replace"))
