"""Settings: a URL and keyword arguments, and what update() keeps."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from pool_core.adapters import URL, Options, Secret, Settings, check_text, integer, text

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRET = "s3cr3t-canary"
OPTIONS = Options(
    "DemoManager",
    {"size": integer(1)},
    keywords={"host": text(), "port": integer(), "user": None, "password": None, "path": text()},
)


class DemoSettings(Settings):
    __slots__ = ()
    rivals = (frozenset({"host", "path"}),)

    def read(self, url: str) -> Mapping[str, Any]:
        parts = URL(url, schemes=("demo",), form="demo://host")
        named = {"host": parts.host, "port": parts.port, "user": parts.user, "password": parts.password}
        return {name: value for name, value in named.items() if value is not None} | OPTIONS.read(parts.query)

    def check(self, values: Mapping[str, Any]) -> None:
        super().check(values)
        OPTIONS.check(values)
        check_text("host", values.get("host"), space=False)

    def place(self) -> str:
        return f"demo://{self.values.get('host', 'localhost')}"


def resolve(settings: Settings) -> dict[str, Any]:
    return asyncio.run(settings.resolved())


def test_keywords_win_over_the_url() -> None:
    settings = DemoSettings("demo://u:p@h:1?size=2", {"size": 3, "port": 9})
    assert resolve(settings) == {"host": "h", "port": 9, "user": "u", "password": "p", "size": 3}


def test_what_an_update_does_not_name_stays() -> None:
    """One habit for all adapters."""
    old = DemoSettings("demo://u:p@h1:1?size=2", {"user": "k"})
    assert resolve(old.updated(None, {"password": "q"})) == {**resolve(old), "password": "q"}
    # A new URL replaces the old one as a whole; the keyword arguments stay.
    assert resolve(old.updated("demo://h2", {})) == {"host": "h2", "user": "k"}
    assert resolve(old.updated("demo://h2", {"user": "l"}).updated(None, {"size": 4})) == {
        "host": "h2",
        "user": "l",
        "size": 4,
    }
    assert resolve(old)["host"] == "h1"


def test_naming_one_of_two_rivals_drops_the_other() -> None:
    """From a host to a socket and back, without a word about what is no longer meant."""
    settings = DemoSettings("demo://h1:1")
    at_path = settings.updated(None, {"path": "/run/x"})
    assert resolve(at_path) == {"port": 1, "path": "/run/x"}
    assert resolve(at_path.updated(None, {"host": "h2"})) == {"port": 1, "host": "h2"}


def test_a_bad_update_changes_nothing() -> None:
    """A rotation that fails must leave a manager that still connects."""
    settings = DemoSettings("demo://h1", {"user": "u"})
    bad: list[tuple[str | None, dict[str, Any]]] = [
        ("other://h", {}),
        (None, {"size": 0}),
        (None, {"sise": 1}),
        (None, {"password": "x\n"}),
        ("demo://h2", {"host": "h\n"}),
    ]
    for url, keywords in bad:
        with pytest.raises((ValueError, TypeError)):
            settings.updated(url, keywords)
    assert resolve(settings) == {"host": "h1", "user": "u"}


def test_callables_are_asked_when_a_connection_needs_them() -> None:
    async def password() -> str:
        return SECRET

    settings = DemoSettings(None, {"user": lambda: "me", "password": password})
    assert resolve(settings) == {"user": "me", "password": SECRET}


def test_no_text_of_settings_shows_a_secret() -> None:
    """Also not the dict that an adapter looks at."""
    for settings in (DemoSettings(f"demo://u:{SECRET}@h"), DemoSettings("demo://h", {"password": SECRET})):
        for settled in (settings, settings.updated(None, {"size": 1}), copy.deepcopy(settings)):
            assert SECRET not in repr(settled)
            assert SECRET not in repr(settled.values)
            assert settled.values["password"] == Secret(SECRET)
            assert repr(settled) == "<demo://h>"


def test_settings_survive_pickle() -> None:
    """A manager may be sent to a worker process that opens its own pool."""
    settings = DemoSettings(f"demo://u:{SECRET}@h?size=2")
    assert resolve(pickle.loads(pickle.dumps(settings))) == resolve(settings)


def test_an_adapter_that_forgets_to_read_urls_hears_of_it() -> None:
    with pytest.raises(NotImplementedError):
        Settings("demo://h")
    assert repr(Settings()) == "<Settings>"
