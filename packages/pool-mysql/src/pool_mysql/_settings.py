"""What the user asked for: the URL's settings and the keyword ones, checked before any I/O, never shown."""

from __future__ import annotations

import inspect
import ssl as tls
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import aiomysql
from aiomysql.connection import charset_by_name

__all__ = ["Settings"]

_SCHEMES: Final = ("mysql", "mariadb")
_DRIVER: Final = frozenset(inspect.signature(aiomysql.Connection).parameters)
_REFUSED: Final = {
    "loop": "a connection belongs to the loop that runs when it is made",
    "connect_timeout": "it covers TCP only, and on Python 3.11 it can swallow a cancellation; "
    "the pool's create_timeout bounds the whole connect",
}
_TEXTS: Final = frozenset(
    {"charset", "sql_mode", "init_command", "unix_socket", "program_name", "auth_plugin"}
    | {"read_default_file", "read_default_group"}
)
_SWITCHES: Final = frozenset({"autocommit", "use_unicode", "local_infile", "echo", "ssl"})
_SWITCH: Final = {"true": True, "1": True, "false": False, "0": False}


class Settings:
    """The driver's keyword arguments. A new URL replaces all that the old one said; keyword arguments win over both."""

    __slots__ = ("_keywords", "_url")

    def __init__(self, url: str | None, keywords: Mapping[str, Any]) -> None:
        self._url = {} if url is None else _read_url(url)
        self._keywords = dict(keywords)
        _check(self._keywords)

    def updated(self, url: str | None, keywords: Mapping[str, Any]) -> Settings:
        """Make the settings for the connections to come."""
        new = Settings(url, {**self._keywords, **keywords})
        if url is None:
            new._url = self._url
        return new

    def for_driver(self) -> dict[str, Any]:
        """Make the arguments of one connect."""
        return {**self._url, **self._keywords}

    def __repr__(self) -> str:
        settings = self.for_driver()
        where = settings.get("unix_socket") or f"{settings.get('host') or 'localhost'}:{settings.get('port', 3306)}"
        user = settings.get("user")
        shown = "" if user is None else "(callable)@" if callable(user) else f"{user}@"
        return f"mysql://{shown}{where}/{settings.get('db') or ''}"


def _read_url(url: str) -> dict[str, Any]:
    """Take a URL apart. No error names more of it than a scheme or the name of a setting."""
    if not isinstance(url, str):
        raise TypeError(
            f"the URL is of type {type(url).__name__}: give a str, mysql://user:password@host:3306/database"
        )
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        raise ValueError(
            "the URL does not begin with mysql:// or mariadb://: write mysql://user:password@host:3306/database"
        )
    login, _, after = rest.rpartition("@")
    if any(sign in login for sign in "/?#@") or any(sign in rest for sign in "\r\n\t"):
        raise ValueError(
            "the URL has a sign in its user name or password that ends that part: write / as %2F, ? as %3F, # as %23, "
            "@ as %40"
        )
    if "#" in after:
        raise ValueError("the URL has a part behind '#', which means nothing here: write # as %23")
    try:
        parts = urlsplit(f"mysql://{after}")  # without the login: its errors quote what they were given
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("the URL has a host or port that cannot be read: write host:3306 or [::1]:3306") from None
    user, colon, password = login.partition(":")
    try:
        named = {
            "host": host and unquote(host, errors="strict"),
            "port": port,
            "user": unquote(user, errors="strict"),
            "password": unquote(password, errors="strict") if colon else None,
            "db": unquote(parts.path[1:], errors="strict"),
        }
    except UnicodeDecodeError:
        raise ValueError("the URL has a %xx that is not UTF-8: write the bytes of its UTF-8 form") from None
    settings = {name: value for name, value in named.items() if value not in {None, ""}}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        settings[name] = _read_option(name, text)
    _check(settings)
    return settings


def _read_option(name: str, text: str) -> Any:
    if name in _TEXTS:
        return text
    if name in _SWITCHES:
        if text.lower() not in _SWITCH:
            raise ValueError(f"the URL has a setting {name} that is not true or false: write {name}=true")
        return _SWITCH[text.lower()]
    if name in _DRIVER and name not in _REFUSED:
        raise ValueError(f"the setting {name} cannot stand in a URL: give it as a keyword argument")
    _check({name: text})
    raise AssertionError(f"bug: {name} is known and read nowhere")


def _check(settings: Mapping[str, Any]) -> None:
    """Refuse what the driver would take and ignore, or answer with a riddle. Passwords are not shown."""
    for name in settings:
        if name in _REFUSED:
            raise ValueError(f"the setting {name} is not taken here: {_REFUSED[name]}")
        if name not in _DRIVER:
            allowed = ", ".join(sorted(_DRIVER - _REFUSED.keys()))
            raise TypeError(f"aiomysql has no setting {name!r}: allowed are {allowed}")
    port = settings.get("port", 3306)
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise ValueError(f"port={port!r}: give an int from 1 to 65535")
    for name in ("user", "password"):
        value = settings.get(name)
        if not (value is None or isinstance(value, str) or callable(value)):
            raise TypeError(f"{name} is of type {type(value).__name__}: give a str or a callable that returns one")
    charset = settings.get("charset") or "utf8mb4"
    if not isinstance(charset, str) or charset_by_name(charset) is None:
        raise ValueError(f"charset={charset!r}: the driver knows no such character set; utf8mb4 holds every text")
    ssl = settings.get("ssl")
    if not (ssl is None or isinstance(ssl, bool | tls.SSLContext)):
        raise TypeError(
            f"ssl is of type {type(ssl).__name__}: give an ssl.SSLContext, or True for "
            "Python's default one, which verifies the server's certificate and name"
        )
