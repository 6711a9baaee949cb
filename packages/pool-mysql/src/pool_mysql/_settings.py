"""What the user asked for: the URL's settings and the keyword ones, checked before any I/O, never shown."""

from __future__ import annotations

import inspect
import os
import ssl as tls
from collections.abc import Mapping
from typing import Any, Final

import aiomysql
from aiomysql.connection import charset_by_name
from pool_core import adapters
from pool_core.adapters import URL, Kind, Options, boolean, integer, text

__all__ = ["Settings"]

_TIMEOUT: Final = "use the pool's create_timeout, which bounds the whole connect"
_TLS: Final = "write ssl-mode=REQUIRED, VERIFY_CA, VERIFY_IDENTITY or DISABLED in the URL, or give ssl=ssl.SSLContext"
_STATEMENTS: Final = "bound a statement with max_execution_time or max_statement_time in init_command"
_RECONNECT: Final = "the pool replaces a lost connection"
# Names of PyMySQL, mysqlclient, JDBC, Node and Go that hosters' URLs contain.
_REFUSED: Final = {
    "loop": "a connection belongs to the loop that runs when it is made",
    "database": "write it as the path of the URL, or give db",
    "passwd": "give password",
    "ssl_disabled": _TLS,
    "ssl_verify_cert": _TLS,
    "ssl_verify_identity": _TLS,
    "sslaccept": _TLS,
    "sslrootcert": "write ssl-ca",
    "tls": _TLS,
    "useSSL": _TLS,
    "requireSSL": _TLS,
    "verifyServerCertificate": _TLS,
    "allowPublicKeyRetrieval": "it is always on; give server_public_key to pin the key, or use TLS",
    "characterEncoding": "write charset",
    "collation": 'give init_command="SET collation_connection = ..."',
    "serverTimezone": "give init_command=\"SET time_zone = '+00:00'\"",
    "connect_timeout": _TIMEOUT,
    "connection_timeout": _TIMEOUT,
    "connectTimeout": _TIMEOUT,
    "timeout": _TIMEOUT,
    "read_timeout": _STATEMENTS,
    "write_timeout": _STATEMENTS,
    "socketTimeout": _STATEMENTS,
    "reconnect": _RECONNECT,
    "autoReconnect": _RECONNECT,
    "connection_limit": "use the pool's max_size",
}


def _is_public_key(pem: bytes) -> bool:
    from cryptography.hazmat.primitives import serialization

    try:
        serialization.load_pem_public_key(pem)
    except ValueError:
        return False
    return True


_TLS_OPTIONS: Final = ("ssl_mode", "ssl_ca", "ssl_cert", "ssl_key")
_SPELLINGS: Final = {"sslmode": "ssl_mode", "sslMode": "ssl_mode"} | {
    name.replace("_", "-"): name for name in _TLS_OPTIONS
}
_KINDS: Final[dict[str, Kind[Any]]] = {
    **dict.fromkeys(("charset", "sql_mode", "init_command", "unix_socket", "program_name", "auth_plugin"), text()),
    **dict.fromkeys(("read_default_file", "read_default_group"), text()),
    **dict.fromkeys(("autocommit", "use_unicode", "local_infile", "echo"), boolean()),
    "ssl": Kind(
        "True or an ssl.SSLContext; True is Python's default one, which verifies the certificate and the name (in a URL: "
        "true)",
        (bool, tls.SSLContext),
        lambda text: boolean().read("ssl", text),
    ),
}
_KEYWORDS: Final[dict[str, Kind[Any] | None]] = {
    **dict.fromkeys(inspect.signature(aiomysql.Connection).parameters.keys() - _KINDS.keys() - _REFUSED.keys()),
    "host": text(),
    "port": integer(1, 65535),
    "db": text(),
    "init_command": None,  # of several lines, perhaps
    "server_public_key": Kind("the bytes of a PEM file with a public key", (bytes,), str.encode, _is_public_key),
}
_NAME: Final = "MySQLConnectionManager"
_OPTIONS: Final = Options(_NAME, _KINDS, keywords=_KEYWORDS, refused=_REFUSED | dict.fromkeys(_TLS_OPTIONS, _TLS))
_IN_URL: Final = Options(_NAME, _KINDS | dict.fromkeys(_TLS_OPTIONS, text()), keywords=_KEYWORDS, refused=_REFUSED)


class Settings(adapters.Settings):
    """The driver's keyword arguments."""

    __slots__ = ()

    def read(self, url: str) -> Mapping[str, Any]:
        parts = URL(url, schemes=("mysql", "mariadb"), form="mysql://user:password@host:3306/database")
        options = _IN_URL.read((_SPELLINGS.get(name, name), value) for name, value in parts.query)
        tls_options = {name: options.pop(name) for name in _TLS_OPTIONS if name in options}
        if tls_options:
            if "ssl" in options:
                raise ValueError(f"the URL has ssl and {next(iter(tls_options))}: leave ssl out")
            options["ssl"] = _context(**tls_options)
        named = {
            "host": parts.host,
            "port": parts.port,
            "user": parts.user,
            "password": parts.password,
            "db": parts.path[1:] or None,
        }
        return {name: value for name, value in named.items() if value is not None} | options

    def check(self, values: Mapping[str, Any]) -> None:
        super().check(values)
        _OPTIONS.check(values)
        charset = values.get("charset") or "utf8mb4"
        if charset_by_name(charset) is None:
            raise ValueError(f"charset={charset!r}: expected a character set that the driver knows, such as utf8mb4")

        options = values.get("read_default_file")
        if options and not os.path.isfile(os.path.expanduser(options)):  # noqa: PTH111, PTH113 - as the driver does
            raise ValueError(f"read_default_file={options!r}: there is no such file, and the driver would ignore that")

    def place(self) -> str:
        values = self.values
        where = values.get("unix_socket") or f"{values.get('host') or 'localhost'}:{values.get('port', 3306)}"
        user = values.get("user")
        shown = "" if user is None else "(callable)@" if callable(user) else f"{user}@"
        return f"mysql://{shown}{where}/{values.get('db') or ''}"


def _context(
    ssl_mode: str | None = None, ssl_ca: str | None = None, ssl_cert: str | None = None, ssl_key: str | None = None
) -> tls.SSLContext | bool:
    """Make what MySQL's own clients make of these options."""
    mode = (ssl_mode or ("VERIFY_CA" if ssl_ca else "REQUIRED")).upper().replace("-", "_")
    if mode not in {"DISABLED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"}:
        also = " (PREFERRED, which goes on without TLS, is not)" if mode == "PREFERRED" else ""
        raise ValueError(f"ssl-mode in the URL: expected DISABLED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY{also}")
    if mode == "DISABLED":
        return False
    try:
        context = tls.create_default_context(cafile=ssl_ca)
    except OSError as error:
        raise ValueError(f"ssl-ca in the URL: the file cannot be read: {error}") from error
    context.check_hostname = mode == "VERIFY_IDENTITY"
    if mode == "REQUIRED":
        context.verify_mode = tls.CERT_NONE
    if ssl_cert or ssl_key:
        if not ssl_cert:
            raise ValueError("ssl-key in the URL: write ssl-cert, too")
        try:
            context.load_cert_chain(ssl_cert, ssl_key)
        except OSError as error:
            raise ValueError(f"ssl-cert or ssl-key in the URL: the file cannot be read: {error}") from error
    return context
