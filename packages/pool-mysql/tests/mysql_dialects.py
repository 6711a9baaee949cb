"""Where MySQL and MariaDB differ, as far as these tests meet it. The tests themselves are the same for both."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """How one server spells and does things."""

    isolation: str  # variable: the session's isolation level
    read_only: str  # variable: whether the session's transactions are read only
    limit: str  # variable: how long a statement may take
    no_role: str | None  # the result of CURRENT_ROLE() without a role
    no_tls: tuple[str, ...]  # command line: offer no TLS
    login_method: str  # of accounts for which none is named
    second_login: int  # round trips of COM_CHANGE_USER without TLS
    demotion: str  # variable: no ordinary account may write, as on a replica
    prepare_detaches: bool  # XA PREPARE leaves a session that can go on, without the transaction

    def role(self, name: str) -> str:
        """The result of CURRENT_ROLE() with this role."""
        return name if self.no_role is None else f"`{name}`@`%`"

    def set_default_role(self, role: str, user: str) -> str:
        """The statement that sets it."""
        return f"SET DEFAULT ROLE {role} {'FOR' if self.no_role is None else 'TO'} '{user}'@'%'"


MARIADB = Dialect(
    isolation="@@tx_isolation",
    read_only="@@tx_read_only",
    limit="max_statement_time",
    no_role=None,
    no_tls=(),
    login_method="mysql_native_password",
    second_login=2,
    demotion="read_only",
    prepare_detaches=False,
)
MYSQL = Dialect(
    isolation="@@transaction_isolation",
    read_only="@@transaction_read_only",
    limit="max_execution_time",
    no_role="NONE",
    no_tls=("--tls-version=",),
    login_method="caching_sha2_password",
    second_login=3,
    demotion="super_read_only",
    prepare_detaches=True,
)
DIALECTS = {"MariaDB": MARIADB, "MySQL": MYSQL}


def numbers(count: int) -> str:
    """A query for the numbers from 1 to `count`, at most 100,000, in order. Both servers understand it."""
    digits = " UNION ALL ".join(f"SELECT {digit} AS n" for digit in range(10))
    places = "abcde"
    tables = ", ".join(f"({digits}) AS {place}" for place in places)
    value = " + ".join(f"{10**power} * {place}.n" for power, place in enumerate(places))
    return f"SELECT 1 + {value} AS seq FROM {tables} ORDER BY seq LIMIT {count}"
