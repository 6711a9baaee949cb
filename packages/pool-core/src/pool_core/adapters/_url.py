"""Takes a connection URL apart. No error quotes any part of it but its scheme: any other part may be the password's."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from pool_core._text import check_text

from ._secrets import Secret

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["URL", "Host"]

_ESCAPE: Final = (
    "percent-encode what is special in a user name, password, path or option: "
    "/ is %2F, ? is %3F, # is %23, @ is %40, : is %3A, % is %25"
)
_BAD_PERCENT: Final = re.compile("%(?![0-9A-Fa-f]{2})")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*")


@dataclass(frozen=True, slots=True)
class Host:
    """One server of a URL.

    Attributes:
        name: a name, an IPv4 address, an IPv6 address without its brackets, or a decoded path (``%2Frun%2Fx.sock``).
        port: 1 to 65535; None: the URL names none.
    """

    name: str
    port: int | None = None

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return name if self.port is None else f"{name}:{self.port}"


class URL:
    """A connection URL: ``scheme://user:password@host:port,host:port/path?option=value``, percent-decoded.

    ``repr`` shows the scheme, the hosts and the path.

    Attributes:
        scheme: in lower case.
        user: None: the URL names none.
        password: None: the URL has none. An empty one (``user:@host``) is an empty secret.
        hosts: the servers; empty: the URL names none.
        path: with its first ``/``, as ``"/database"``; ``""`` if the URL has none.
        query: the options in their order, names and values decoded (``+`` is a space).
    """

    __slots__ = ("hosts", "password", "path", "query", "scheme", "user")

    def __init__(self, url: str, *, schemes: Collection[str], form: str, several_hosts: bool = False) -> None:
        """Take a URL apart.

        Args:
            url: the URL.
            schemes: those that are allowed, in lower case, without ``://``.
            form: an example for error messages, such as ``"amqp://user:password@host:5672/vhost"``.
            several_hosts: allow a list of hosts, separated by commas.

        Raises:
            TypeError: `url` is not a str.
            ValueError: the URL is malformed or ambiguous, or has another scheme. The text quotes nothing of it.
        """
        if not isinstance(url, str):
            raise TypeError(f"the URL is of type {type(url).__name__}: expected a str, {form}")
        check_text("the URL", url, space=False)
        scheme, separator, rest = url.partition("://")
        if not separator or scheme.lower() not in schemes:
            allowed = " or ".join(f"{name}://" for name in schemes)
            found = "it has another scheme" if separator and _SCHEME.fullmatch(scheme) else "it has no scheme"
            raise ValueError(f"the URL must start with {allowed}, but {found}: write {form}")
        end = next((index for index, sign in enumerate(rest) if sign in "/?#"), len(rest))
        login, at, hosts = rest[:end].rpartition("@")
        tail = rest[end:]
        # A raw "/", "?" or "#" in a password ends it early; then an "@" follows where none can be.
        if "#" in tail or "@" in tail or "@" in login or _BAD_PERCENT.search(rest):
            raise ValueError(f"the URL cannot be read without doubt: {_ESCAPE}")
        user, colon, password = login.partition(":")
        if ":" in password:
            raise ValueError(f"the URL cannot be read without doubt: {_ESCAPE}")
        path, _, query = tail.partition("?")
        self.scheme = scheme.lower()
        self.user = _decoded("user name", user) if at and user else None
        self.password = Secret(_decoded("password", password)) if colon else None
        self.hosts = tuple(_host(spec, form) for spec in hosts.split(",")) if hosts else ()
        if len(self.hosts) > 1 and not several_hosts:
            raise ValueError(f"the URL names several hosts, and only one can be used here: write {form}")
        self.path = check_text("the URL's path", _decoded("path", path))
        self.query = tuple(_pair(pair) for pair in query.split("&") if pair)

    @property
    def host(self) -> str | None:
        """The first host's name; None: the URL names none."""
        return self.hosts[0].name if self.hosts else None

    @property
    def port(self) -> int | None:
        """The first host's port; None: the URL names none."""
        return self.hosts[0].port if self.hosts else None

    def __repr__(self) -> str:
        return f"{self.scheme}://{','.join(map(str, self.hosts))}{self.path}"


def _decoded(what: str, part: str) -> str:
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError:
        pass
    raise ValueError(f"the URL's {what} has a %xx that is not UTF-8: percent-encode the bytes of its UTF-8 form")


def _host(spec: str, form: str) -> Host:
    if spec.startswith("["):
        name, bracket, port = spec[1:].partition("]")
        name = _decoded("host", name)
        if not bracket or (port and not port.startswith(":")) or not _is_ipv6(name):
            raise ValueError("a host of the URL is not an IPv6 address in brackets: write it as in [::1]:1234")
        port = port[1:]
    else:
        name, _, port = spec.partition(":")
        name = _decoded("host", name)
        if ":" in port:
            raise ValueError("a host of the URL has more than one colon: write an IPv6 address in brackets, [::1]:1234")
        if not name:
            raise ValueError(f"a host of the URL is empty: write {form}")
    check_text("a host of the URL", name, space=False)
    if not port:
        return Host(name)
    port = _decoded("port", port)
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise ValueError(f"a port of the URL is not a number from 1 to 65535: correct it, or {_ESCAPE}")
    return Host(name, int(port))


def _is_ipv6(name: str) -> bool:
    try:
        ipaddress.IPv6Address(name)
    except ValueError:
        return False
    return True


def _pair(pair: str) -> tuple[str, str]:
    name, equals, value = pair.replace("+", " ").partition("=")
    if not (name and equals):
        raise ValueError(f"the URL has an option without a name or a value: write ?option=value, and {_ESCAPE}")
    return _decoded("option", name), _decoded("option", value)
