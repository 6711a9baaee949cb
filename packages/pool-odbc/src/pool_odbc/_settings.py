"""Where a manager connects to and how: URLs, connection strings and keywords, checked before any I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import pyodbc
from pool_core import adapters as base

__all__ = ["DriverMissingError", "Settings"]

SCHEMES: Final = ("odbc", "mssql")
_FORM: Final = "odbc://user:password@host:5432/database?driver=PostgreSQL+Unicode"
# pyodbc's own arguments. All others are keywords of the ODBC driver, whose names ODBC takes in any case.
_PYODBC: Final[Mapping[str, base.Kind[Any]]] = {
    "autocommit": base.boolean(),
    "timeout": base.integer(0),
    "readonly": base.boolean(),
}
_NAMES: Final = {"user": "UID", "password": "PWD", "host": "SERVER", "port": "PORT", "database": "DATABASE"}
_KEYWORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9_ \-]*")
_SPECIAL: Final = re.compile(r"[\[\]{}(),;?*=!@]|^\s|\s$")
_PAIR: Final = re.compile(r"\s*([^=;{}]+?)\s*=\s*(\{(?:[^}]|\}\})*\}|[^;{}]*)\s*(?:;|$)")
_MSSQL_DRIVER: Final = re.compile(r"ODBC Driver (\d+) for SQL Server")

# What to install, by a word in the driver's name: on Debian and Ubuntu, macOS, Windows.
_PACKAGES: Final = {
    "postgres": ("odbc-postgresql", "psqlodbc", "the installer from https://odbc.postgresql.org"),
    "mariadb": ("odbc-mariadb", "mariadb-connector-odbc", "MariaDB Connector/ODBC"),
    "mysql": ("odbc-mariadb (or MySQL's own mysql-connector-odbc)", "mysql-connector-odbc", "MySQL Connector/ODBC"),
    "sqlite": ("libsqliteodbc", "sqliteodbc", "the installer from http://www.ch-werner.de/sqliteodbc"),
    "sql server": ("msodbcsql18 (from Microsoft's packages)", "msodbcsql18 (from Microsoft's tap)", "msodbcsql18"),
    "freetds": ("tdsodbc", "freetds", "Microsoft's msodbcsql18 instead"),
}


class DriverMissingError(pyodbc.InterfaceError):  # type: ignore[misc, unused-ignore]
    """The ODBC driver or data source that the settings name is not installed. The text says what to install."""


class Settings(base.Settings):
    """Keywords of a connection string, and pyodbc's arguments."""

    __slots__ = ()

    credentials: ClassVar[tuple[str, ...]] = ("UID", "PWD")
    secret: ClassVar[frozenset[str]] = frozenset({"PWD"})
    rivals: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"DSN", "FILEDSN", "DRIVER"}),)

    def __init__(self, url: str | None = None, keywords: Mapping[str, Any] | None = None) -> None:
        super().__init__(url, _named(keywords or {}))

    def updated(self, url: str | None, keywords: Mapping[str, Any]) -> Settings:
        """Make the settings for the connections to come."""
        return super().updated(url, _named(keywords))

    def read(self, url: str) -> dict[str, Any]:
        """Turn a URL or a connection string into keywords."""
        if not isinstance(url, str):
            raise TypeError(f"the URL is of type {type(url).__name__}: expected {_FORM}, or a connection string")
        if "://" not in url.partition("=")[0]:
            return _connection_string(url)
        parts = base.URL(url, schemes=SCHEMES, form=_FORM)
        values: dict[str, Any] = {"UID": parts.user, "PWD": parts.password, "DATABASE": parts.path[1:] or None}
        if parts.hosts and parts.scheme == "mssql":  # SQL Server's drivers take the port so
            values["SERVER"] = parts.host if parts.port is None else f"{parts.host},{parts.port}"
        else:
            values |= {"SERVER": parts.host, "PORT": parts.port and str(parts.port)}
        values = {name: value for name, value in values.items() if value is not None}
        options: dict[str, Any] = {}
        for name, value in parts.query:
            key = _name(name)
            if key in options or key in values:
                raise ValueError(f"{name} stands twice in the URL: give it once")
            options[key] = _PYODBC[key].read(key, value) if key in _PYODBC else value
        if parts.scheme == "mssql" and not options.keys() & {"DSN", "FILEDSN"}:
            options.setdefault("DRIVER", "")  # the newest one for SQL Server
        return values | options

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse what ODBC would take and misread."""
        super().check(values)
        for name, value in values.items():
            if name in _PYODBC:
                _PYODBC[name].check(name, value)
            elif name not in self.credentials and not (value is None or isinstance(value, str | int)):
                raise TypeError(f"{name} is of type {type(value).__name__}: expected a str or an int")
            elif isinstance(value, str) and name not in self.credentials:
                base.check_text(name, value)
        if not values.keys() & {"DSN", "FILEDSN", "DRIVER"}:
            installed = ", ".join(pyodbc.drivers()) or "none"
            raise ValueError(f"no ODBC driver is named: give driver=... or dsn=... (installed drivers: {installed})")

    def place(self) -> str:
        """Driver or data source, server and database."""
        values = self.values
        named = (
            f"{name}={values[name]}" for name in ("DSN", "DRIVER", "SERVER", "PORT", "DATABASE") if values.get(name)
        )
        return "odbc " + ";".join(named)

    @property
    def port(self) -> int | None:
        """The server's port, if it is named."""
        text = str(self.values.get("PORT") or "") or str(self.values.get("SERVER") or "").partition(",")[2]
        return int(text) if text.isdigit() else None

    async def arguments(self) -> tuple[str, dict[str, Any], str | None]:
        """The connection string, pyodbc's arguments, and the password: for use at once, not for keeping.

        Raises:
            DriverMissingError: no driver for SQL Server is installed, and none was named.
        """
        values = await self.resolved()
        options = {name: values.pop(name) for name in tuple(values) if name in _PYODBC}
        if values.get("DRIVER") == "":
            values["DRIVER"] = _sql_server_driver()
        string = ";".join(f"{name}={_escaped(name, value)}" for name, value in values.items() if value is not None)
        return string, options, values.get("PWD")


def missing(driver: str) -> DriverMissingError:
    """The error that says what to install."""
    known = next((packages for word, packages in _PACKAGES.items() if word in driver.lower()), None)
    advice = (
        f"install {known[0]} on Debian and Ubuntu, {known[1]} on macOS (Homebrew), {known[2]} on Windows"
        if known
        else "install it, or correct its name in the settings"
    )
    installed = ", ".join(pyodbc.drivers()) or "none"
    return DriverMissingError(
        "IM002", f"[IM002] the ODBC driver or data source {driver!r} is not installed: {advice}; installed: {installed}"
    )


def _sql_server_driver() -> str:
    installed = pyodbc.drivers()
    versions = {int(match[1]): name for name in installed if (match := _MSSQL_DRIVER.fullmatch(name))}
    if versions:
        return str(versions[max(versions)])
    if "FreeTDS" in installed:
        return "FreeTDS"
    raise missing("ODBC Driver 18 for SQL Server")


def _named(keywords: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, value in keywords.items():
        key = _name(name)
        if key in named:
            raise TypeError(f"{name} is given twice, under two spellings: give it once")
        named[key] = value
    return named


def _name(name: str) -> str:
    """The name of a keyword as ODBC writes it, or of an argument of pyodbc."""
    if not _KEYWORD.fullmatch(name):
        raise ValueError("an option's name is not a keyword of ODBC: letters, digits, spaces, - and _")
    return name if name in _PYODBC else _NAMES.get(name.lower(), name.upper())


def _connection_string(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    end, text = 0, text.strip(" ")
    while end < len(text):
        pair = _PAIR.match(text, end)
        if pair is None or not _KEYWORD.fullmatch(pair[1]):
            raise ValueError(
                "the connection string cannot be read: write KEYWORD=value;KEYWORD={value with ; in it}, or a URL, "
                f"{_FORM}"
            )
        name, value = _NAMES.get(pair[1].lower(), pair[1].upper()), pair[2]
        if name in values:
            raise ValueError(f"{name} stands twice in the connection string: give it once")
        values[name] = value[1:-1].replace("}}", "}") if value.startswith("{") else value
        end = pair.end()
    return values


def _escaped(name: str, value: object) -> str:
    text = str(value)
    if name == "DRIVER" or _SPECIAL.search(text):
        return "{" + text.replace("}", "}}") + "}"
    return text
