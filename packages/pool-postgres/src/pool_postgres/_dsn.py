"""Checks a connection URL before the driver sees it: the driver's own messages may quote parts of a password."""

from __future__ import annotations

import re
from typing import Final, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, unquote_plus, urlsplit

__all__ = ["check", "place", "readable"]

T = TypeVar("T")

SCHEMES: Final = ("postgresql", "postgres")
_ESCAPE: Final = "percent-encode @ : / ? # and % inside user and password"


def readable(dsn: T) -> T | str:
    """Move a list of hosts that has brackets into the query, ``?host=...``, where the driver reads it the same way.

    `urllib.parse.urlsplit`, which the driver uses, refuses ``h1,[::1]:5433`` as a host since Python 3.14 and in security
    releases of older ones.
    """
    match = isinstance(dsn, str) and re.fullmatch(r"([a-zA-Z]+://)([^/?#@]*@)?([^/?#@]*)([^?#]*)(\?[^#]*)?(#.*)?", dsn)
    if not match or not {"[", ","} <= set(match[3]):
        return dsn
    scheme, login, hosts, path, query, fragment = match.groups(default="")
    # Beside hosts before the path, the driver ignores these two.
    kept = [pair for pair in query[1:].split("&") if unquote_plus(pair.partition("=")[0]) not in {"", "host", "port"}]
    return f"{scheme}{login}{path}?{'&'.join([*kept, f'host={hosts}'])}{fragment}"


def check(dsn: object) -> None:
    """Raise unless this is a URL that asyncpg can read. No part of it is quoted: any part may be the password's.

    Raises:
        TypeError: neither a string nor None.
        ValueError: malformed, or of another scheme.
    """
    if dsn is None:
        return
    if not isinstance(dsn, str):
        raise TypeError(f"dsn is of type {type(dsn).__name__}: give a URL as a string, or None for keywords only")
    try:
        parts = urlsplit(dsn)
        query = dict(parse_qsl(parts.query, strict_parsing=True, keep_blank_values=True) if parts.query else ())
    except ValueError:
        raise ValueError(f"the dsn is no URL: {_ESCAPE}, and write IPv6 addresses in brackets") from None
    if parts.scheme not in SCHEMES:
        raise ValueError("the dsn has another scheme: it must start with postgresql:// or postgres://")
    if not dsn.lower().startswith(f"{parts.scheme}://"):
        raise ValueError("the dsn lacks the two slashes after its scheme: write postgresql://user@host/database")
    if parts.fragment or "@" in _hosts(parts) or ("@" in parts.path and "@" not in parts.netloc):
        raise ValueError(f"the dsn cannot be read without doubt: {_ESCAPE}")
    hosts = _hosts(parts)
    specs = [spec for spec in (hosts, query.get("host", "")) if spec]
    for spec in ",".join(specs).split(",") if specs else ():
        _check_host(spec)
    for port in query.get("port", "").split(",") if query.get("port") else ():
        _check_port(port)


def place(dsn: str | None, options: dict[str, object]) -> str:
    """Name hosts and database for a repr: nothing else, since anything else may be a secret."""
    parts = urlsplit(dsn or "postgresql://")
    query = dict(parse_qsl(parts.query))
    given = options.get("host") or _hosts(parts) or query.get("host") or ""
    hosts = ",".join(map(str, given)) if isinstance(given, (list, tuple)) else str(given)
    if options.get("host") and isinstance(options.get("port"), int):
        hosts += f":{options['port']}"
    path = parts.path.removeprefix("/") or query.get("dbname") or query.get("database")
    return f"postgresql://{hosts}/{options.get('database') or path or ''}"


def _hosts(parts: SplitResult) -> str:
    return parts.netloc.partition("@")[2] if "@" in parts.netloc else parts.netloc


def _check_host(spec: str) -> None:
    if spec.startswith("["):
        address, bracket, port = spec[1:].partition("]")
        if not (address and bracket) or (port and not port.startswith(":")):
            raise ValueError("a host of the dsn is no IPv6 address in brackets, as in [::1]:5432")
        port = port[1:]
    elif spec.startswith("/"):
        return
    else:
        host, _, port = spec.partition(":")
        if not host:
            raise ValueError("a host of the dsn is empty: leave the whole list out to use the driver's default")
    if port:
        _check_port(unquote(port))


def _check_port(port: str) -> None:
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"a port of the dsn is no number from 1 to 65535: correct it, or {_ESCAPE}")
