"""Where a manager connects to and how: checked before any I/O, and never shown with a secret in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import neo4j
from neo4j.exceptions import ConfigurationError, DriverError
from pool_core import adapters as base

from pool_neo4j import _driver

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Settings"]

SCHEMES: Final = ("neo4j", "neo4j+s", "neo4j+ssc", "bolt", "bolt+s", "bolt+ssc")
_FORM: Final = "neo4j://user:password@host:7687/database"
_IN_URL: Final = {
    "database": base.text(),
    "impersonated_user": base.text(),
    "access_mode": base.choice("READ", "WRITE"),
}
# They belong to a session, under these names of the driver.
_OF_SESSIONS: Final = {
    "database": "database",
    "impersonated_user": "impersonated_user",
    "access_mode": "default_access_mode",
    "bookmark_manager": "bookmark_manager",
}
_OWN: Final = frozenset({"uri", "user", "password"})


class Settings(base.Settings):
    """The URI, the login, and the options of driver and sessions."""

    __slots__ = ()
    rivals = (frozenset({"auth", "user", "password"}),)

    def read(self, url: str) -> dict[str, Any]:
        """Turn a URL into keywords. For ``neo4j://`` the driver gets the rest of the query: its routing context."""
        parts = base.URL(url, schemes=SCHEMES, form=_FORM)
        named = dict(pair for pair in parts.query if pair[0] in _IN_URL)
        if len(named) != sum(name in _IN_URL for name, _ in parts.query):
            raise ValueError("an option stands twice in the URL: give it once")
        rest = [pair for pair in parts.query if pair[0] not in _IN_URL]
        if rest and parts.scheme.startswith("bolt"):
            raise TypeError(f"the URL has an option that bolt:// does not take: allowed are {', '.join(_IN_URL)}")
        if not parts.hosts:
            raise ValueError(f"the URL names no host: write {_FORM}")
        context = "&".join(f"{name}={value}" for name, value in rest)
        values: dict[str, Any] = {
            "uri": f"{parts.scheme}://{parts.hosts[0]}" + (f"?{context}" if context else ""),
            "user": parts.user,
            "password": parts.password,
            "database": parts.path[1:] or None,
        }
        values |= {name: _IN_URL[name].read(name, value) for name, value in named.items()}
        return {name: value for name, value in values.items() if value is not None}

    def check(self, values: Mapping[str, Any]) -> None:
        """Let the driver check everything but the login, which its messages might quote."""
        super().check(values)
        if "uri" not in values:
            raise ValueError(f"no server is named: give a URL, {_FORM}")
        for name, kind in _IN_URL.items():
            if values.get(name) is not None:
                kind.check(name, values[name])
        if "auth" in values and ("user" in values or "password" in values):
            raise ValueError("auth and user or password are given: name the login in one of them")
        try:
            probe = self._make({**values, "user": None, "password": None, "auth": None})
        except (ConfigurationError, DriverError, TypeError, ValueError) as error:
            refusal = TypeError if isinstance(error, TypeError) else ValueError
            reason = str(error)
        else:
            _driver.discard(probe)
            return
        raise refusal(f"the driver refuses these settings: {reason}")

    def place(self) -> str:
        """URI and database."""
        values = self.values
        return f"{values['uri'].partition('?')[0]}/{values.get('database') or ''}"

    @property
    def direct(self) -> bool:
        """Whether one server is meant: the driver does not look for the others of a cluster."""
        return bool(self.values["uri"].startswith("bolt"))

    def driver(self) -> neo4j.AsyncDriver:
        """A new driver; it opens nothing yet."""
        return self._make(self.values)

    def of_sessions(self) -> dict[str, Any]:
        """The options of each session, for the driver."""
        values = self.values
        return {theirs: values[ours] for ours, theirs in _OF_SESSIONS.items() if values.get(ours) is not None}

    def _make(self, values: Mapping[str, Any]) -> neo4j.AsyncDriver:
        user: Any = values.get("user")
        password: Any = values.get("password")
        auth = values.get("auth")
        if callable(user) or callable(password):

            async def login() -> tuple[str, str]:
                asked = [await base.ask(name, values.get(name)) for name in ("user", "password")]
                return asked[0] or "", asked[1] or ""

            auth = neo4j.auth_management.AsyncAuthManagers.basic(login)
        elif user is not None or password is not None:
            revealed = password.reveal() if isinstance(password, base.Secret) else password or ""
            auth = neo4j.basic_auth(user or "neo4j", revealed)
        options = {name: value for name, value in values.items() if name not in _OWN and name not in _OF_SESSIONS}
        options["auth"] = auth
        return neo4j.AsyncGraphDatabase.driver(values["uri"], **options)
