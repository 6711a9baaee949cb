"""What a user has asked for: a URL and keyword arguments, in two layers, so that update() is alike in all adapters."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

from ._secrets import Secret, ask, ask_at_once, check_credential

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

__all__ = ["Settings"]


class Settings:
    """The settings of a manager, checked before any I/O and never changed. ``repr`` shows no secret.

    An adapter derives its own class, with `read`, `check` and `place`. Keyword arguments win over the URL.

    Class attributes:
        credentials: the names of user and password: each may be a callable (see `Credential`), which `resolved` asks.
        secret: which of the values `values` holds as a `Secret`.
        rivals: groups of names that exclude each other. Whoever names one drops the others that were given earlier.
    """

    __slots__ = ("_from_url", "_keywords")

    credentials: ClassVar[tuple[str, ...]] = ("user", "password")
    secret: ClassVar[frozenset[str]] = frozenset({"password"})
    rivals: ClassVar[tuple[frozenset[str], ...]] = ()

    _from_url: Mapping[str, Any]
    _keywords: Mapping[str, Any]

    def __init__(self, url: Any = None, keywords: Mapping[str, Any] | None = None) -> None:
        """Read and check.

        Raises:
            TypeError, ValueError: what `read` and `check` refuse.
        """
        self._settle({} if url is None else self.read(url), keywords or {})

    def read(self, url: Any) -> Mapping[str, Any]:
        """Turn a URL into keyword arguments. An adapter overrides this."""
        raise NotImplementedError

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse what the driver would take and ignore, or report late. An adapter extends this.

        Raises:
            TypeError, ValueError: something is not allowed.
        """
        for name in self.credentials:
            check_credential(name, values.get(name))

    def place(self) -> str:
        """Say where these settings lead, for messages and ``repr``; nothing secret. An adapter overrides this."""
        return type(self).__name__

    def __repr__(self) -> str:
        return f"<{self.place()}>"

    @property
    def values(self) -> dict[str, Any]:
        """A new dict of all settings, secrets as `Secret`."""
        return {**self._from_url, **self._keywords}

    def updated(self, url: Any, keywords: Mapping[str, Any]) -> Self:
        """Make the settings for the connections to come; these stay as they are.

        Args:
            url: replaces all that the former URL said. None: that stays.
            keywords: each replaces the former one of its name. The others stay.

        Raises:
            TypeError, ValueError: as for new ones.
        """
        rivals = frozenset[str]().union(*(group for group in self.rivals if group & keywords.keys()))
        stays = {name: value for name, value in self._keywords.items() if name not in rivals}
        from_url = self._from_url if url is None else self.read(url)
        new = copy.copy(self)
        new._settle({name: value for name, value in from_url.items() if name not in rivals}, {**stays, **keywords})
        return new

    async def resolved(self) -> dict[str, Any]:
        """Return all settings for one connection, with credentials asked for and secrets revealed: not for keeping."""
        values = self.values
        for name in self.credentials:
            if name in values:
                values[name] = await ask(name, values[name])
        return {name: value.reveal() if isinstance(value, Secret) else value for name, value in values.items()}

    def resolved_at_once(self) -> dict[str, Any]:
        """As `resolved`, for drivers without an event loop: a callable credential must be an ordinary function."""
        values = self.values
        for name in self.credentials:
            if name in values:
                values[name] = ask_at_once(name, values[name])
        return {name: value.reveal() if isinstance(value, Secret) else value for name, value in values.items()}

    def _settle(self, from_url: Mapping[str, Any], keywords: Mapping[str, Any]) -> None:
        self._from_url, self._keywords = self._hidden(from_url), self._hidden(keywords)
        self.check(self.values)

    def _hidden(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: Secret(value) if name in self.secret and isinstance(value, str) else value
            for name, value in values.items()
        }
