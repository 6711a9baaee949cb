"""Where a manager connects to and how: checked before any I/O, and never shown with a secret in it."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias, cast

from pymongo.errors import PyMongoError

__all__ = ["Credential", "Settings"]

Credential: TypeAlias = str | Callable[[], str | Awaitable[str]]

SCHEMES: Final = ("mongodb://", "mongodb+srv://")
_CREDENTIALS: Final = ("username", "password")
# Options whose values are secrets, beside the password. Their errors are not quoted.
_SECRET_OPTIONS: Final = ("authmechanismproperties", "tlscertificatekeyfilepassword", "ssl_pem_passphrase")
_HARMLESS_WARNINGS: Final = ("Unknown option", "Duplicate URI option")  # passed on as the driver gives them
_ESCAPE: Final = (
    "percent-escape user and password with urllib.parse.quote_plus: mongodb://user:p%40ss@host:27017/database"
)
_BAD_PERCENT: Final = re.compile("%(?![0-9a-fA-F]{2})")
_SCHEME: Final = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")


class Settings:
    """What the driver's client is made from. Its texts show hosts and database, and nothing else."""

    __slots__ = ("_options", "_url", "place")

    def __init__(self, url: str | None, options: Mapping[str, Any], make: Callable[..., object]) -> None:
        """Check and keep them.

        Args:
            url: ``mongodb://`` or ``mongodb+srv://``; None: the driver's default, or ``host=`` among the options.
            options: the driver's own; ``username`` and ``password`` may also be callables, sync or async, that return
                a string.
            make: makes a client without connecting; it is called with harmless credentials, for the driver's checks.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: a URL or an option that the driver does not take.
        """
        options = dict(options)
        if url is not None and not isinstance(url, str):
            raise TypeError(f"url is of type {type(url).__name__}: give a mongodb:// URL as a string, or None")
        if url is not None and "host" in options:
            raise ValueError("both a URL and host= are given: name the servers in one of them")
        hosts = options.get("host")
        if isinstance(hosts, str) and "://" in hosts:
            url = options.pop("host")
        elif isinstance(hosts, (list, tuple)) and any("/" in str(host) and "://" in str(host) for host in hosts):
            raise ValueError(
                "host= is a list with a URL in it: give one URL, with all hosts in it, as the first argument"
            )
        self._url = url
        self._options = options
        self.place: Final[str] = _check(url, options, make)

    def __repr__(self) -> str:
        return f"<{self.place}>"

    def updated(self, url: str | None, options: Mapping[str, Any], make: Callable[..., object]) -> Settings:
        """These settings, with those that are given in the place of the old ones. The driver ignores case in names, so do we.

        Raises:
            TypeError, ValueError: as for new ones.
        """
        given = {name.lower() for name in options} | ({"host"} if url is not None else set())
        kept = {name: value for name, value in self._options.items() if name.lower() not in given}
        if url is None and "host" not in given:
            url = self._url
        return Settings(url, {**kept, **options}, make)

    async def arguments(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        """What to call the driver's client with, credentials fetched: for use at once, not for keeping."""
        options = dict(self._options)
        for name in _CREDENTIALS:
            if callable(options.get(name)):
                options[name] = await _fetch(name, options[name])
        return (() if self._url is None else (self._url,)), options


async def _fetch(name: str, source: Callable[[], str | Awaitable[str]]) -> str:
    value = source()
    if inspect.isawaitable(value):
        value = await value
    if not isinstance(value, str):
        raise TypeError(f"the callable given as {name} returned a {type(value).__name__}: it must return a string")
    return value


def _check(url: str | None, options: dict[str, Any], make: Callable[..., object]) -> str:
    """Let the driver check everything but the credentials, which its messages may quote. Return what may be shown."""
    harmless = dict(options)
    for name in _CREDENTIALS:
        if name in harmless:
            if not (harmless[name] is None or isinstance(harmless[name], str) or callable(harmless[name])):
                raise TypeError(f"{name} is of type {type(harmless[name]).__name__}: give a string, or a callable")
            if harmless[name] is not None:
                harmless[name] = "placeholder"
    arguments: tuple[str, ...] = ()
    quotable = not any(name.lower() in _SECRET_OPTIONS for name in options)
    place = f"mongodb://{_shown(options.get('host'))}"
    if url is not None:
        cleaned, place, url_is_clear = _without_credentials(url)
        arguments = (cleaned,)
        quotable = quotable and url_is_clear
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            make(*arguments, **harmless)
        except (PyMongoError, ValueError, TypeError) as error:
            raise _refusal(error, quotable=quotable) from None
    for warning in told:
        # A bad value in a URL is only a warning for the driver, which then goes on without the option.
        if warning.category is UserWarning and not str(warning.message).startswith(_HARMLESS_WARNINGS):
            raise _refusal(ValueError(str(warning.message)), quotable=quotable) from None
        warnings.warn(warning.message, stacklevel=5)
    return place


def _refusal(error: Exception, *, quotable: bool) -> Exception:
    reason = str(error) if quotable else f"{type(error).__name__}, whose text may hold a secret"
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"the driver refuses these settings: {reason}")


def _without_credentials(url: str) -> tuple[str, str, bool]:
    """Split a URL: with harmless credentials, as it may be shown, and whether the driver's error may be quoted."""
    scheme = next((scheme for scheme in SCHEMES if url.startswith(scheme)), None)
    if scheme is None:
        given = _SCHEME.match(url)
        raise ValueError(
            f"the URL has {f'the scheme {given[0]}' if given else 'no scheme'}: it must start with {' or '.join(SCHEMES)}"
        )
    rest = url.removeprefix(scheme)
    before_path, slash, path = rest.partition("/")
    userinfo, at, hosts = before_path.rpartition("@")
    if not at and "@" in path.partition("?")[0]:
        raise ValueError(f"the URL cannot be read without doubt, since an @ stands behind a slash: {_ESCAPE}")
    if at and (_BAD_PERCENT.search(userinfo) or userinfo.count(":") > 1 or set(userinfo) & set("@?#")):
        raise ValueError(f"user or password of the URL hold one of : / ? # @ % as it is: {_ESCAPE}")
    if at and not userinfo.partition(":")[0]:
        raise ValueError(f"the URL has a password and no user: {_ESCAPE}")
    harmless = ("user:placeholder@" if ":" in userinfo else "user@") if at else ""
    options = path.partition("?")[2].lower()
    clear = ("@" in before_path or "@" not in path) and not any(name in options for name in _SECRET_OPTIONS)
    place = scheme + hosts.partition("?")[0] + slash + path.partition("?")[0]
    return scheme + harmless + hosts + slash + path, place if clear or at else scheme, clear


def _shown(hosts: object) -> str:
    if hosts is None:
        return "localhost"
    return ",".join(cast("list[str]", hosts)) if isinstance(hosts, (list, tuple)) else str(hosts)
