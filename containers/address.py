"""What all parts of this package say about a server: its address, and how long it may take to answer."""

from dataclasses import dataclass, field

PATIENCE = 2.0  # seconds that a running server has to answer one question


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens and how to log in. What a server does not have (a user, a password) is None."""

    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None
