"""Where a manager connects to and how: checked before any I/O, and never shown with a secret in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from pool_core.adapters import URL, Secret
from pool_core.adapters import Settings as BaseSettings
from pymongo.errors import PyMongoError

__all__ = ["Settings"]

_SCHEMES: Final = ("mongodb", "mongodb+srv")
_FORM: Final = "mongodb://user:p%40ss@host:27017/database"
# Options whose values are secrets, beside the password. Their errors are not quoted.
_SECRET_OPTIONS: Final = ("authmechanismproperties", "tlscertificatekeyfilepassword", "ssl_pem_passphrase")
_HARMLESS_WARNINGS: Final = ("Unknown option", "Duplicate URI option")  # passed on as the driver gives them


class Settings(BaseSettings):
    """What the driver's client is made from. Its texts show hosts and database, and nothing else."""

    __slots__ = ("_make", "_place")

    credentials: ClassVar[tuple[str, ...]] = ("username", "password")
    secret: ClassVar[frozenset[str]] = frozenset({"url", "password"})

    def __init__(self, url: str | None, options: Mapping[str, Any], make: Callable[..., object]) -> None:
        """Check and keep them.

        Args:
            url: ``mongodb://`` or ``mongodb+srv://``; None: the driver's default, or ``host=`` among the options.
            options: the driver's own; ``username`` and ``password`` may also be callables.
            make: makes a client without connecting; it is called with harmless credentials, for the driver's checks.

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: a URL or an option that the driver does not take.
        """
        options = dict(options)
        if url is not None and "host" in options:
            raise ValueError("both a URL and host= are given: name the servers in one of them")
        hosts = options.get("host")
        if isinstance(hosts, str) and "://" in hosts:
            url = options.pop("host")
        elif isinstance(hosts, (list, tuple)) and any("/" in str(host) and "://" in str(host) for host in hosts):
            raise ValueError(
                "host= is a list with a URL in it: give one URL, with all hosts in it, as the first argument"
            )
        self._make = make
        super().__init__(None, options if url is None else {"url": url, **options})

    def updated(self, url: str | None, keywords: Mapping[str, Any]) -> Settings:
        """As the base class's. The driver ignores case in names, so do we."""
        given = {name.lower() for name in keywords} | (
            {"url", "host"} if url is not None or "host" in keywords else set()
        )
        kept = {name: value for name, value in self.values.items() if name.lower() not in given}
        old = kept.pop("url", None)
        return Settings(url if old is None else old.reveal(), {**kept, **keywords}, self._make)

    async def arguments(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        """What to call the driver's client with, credentials fetched: for use at once, not for keeping."""
        options = await self.resolved()
        return ((options.pop("url"),) if "url" in options else ()), options

    def place(self) -> str:
        """Where they lead."""
        return self._place

    def check(self, values: Mapping[str, Any]) -> None:
        """Let the driver check everything but the credentials, which its messages may quote."""
        super().check(values)
        options = {
            name: "placeholder" if name in self.credentials and value is not None else value
            for name, value in values.items()
            if name != "url"
        }
        secretive = any(name.lower() in _SECRET_OPTIONS for name in options)
        arguments: tuple[str, ...] = ()
        self._place = f"mongodb://{_shown(options.get('host'))}"
        if "url" in values:
            url = values["url"].reveal() if isinstance(values["url"], Secret) else values["url"]
            parts = URL(url, schemes=_SCHEMES, form=_FORM, several_hosts=True)
            if parts.password is not None and parts.user is None:
                raise ValueError(f"the URL has a password and no user: write {_FORM}")
            self._place = repr(parts)
            arguments = (_without_credentials(url, parts),)
            secretive = secretive or any(name.lower() in _SECRET_OPTIONS for name, _ in parts.query)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                self._make(*arguments, **options)
            except (PyMongoError, ValueError, TypeError) as error:
                raise _refusal(error, secretive=secretive) from None
        for warning in told:
            # A bad value in a URL is only a warning for the driver, which then goes on without the option.
            if warning.category is UserWarning and not str(warning.message).startswith(_HARMLESS_WARNINGS):
                raise _refusal(ValueError(str(warning.message)), secretive=secretive) from None
            warnings.warn(warning.message, stacklevel=7)


def _refusal(error: Exception, *, secretive: bool) -> Exception:
    reason = f"{type(error).__name__}, whose text may hold a secret" if secretive else str(error)
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"the driver refuses these settings: {reason}")


def _without_credentials(url: str, parts: URL) -> str:
    login = "" if parts.user is None else "user@" if parts.password is None else "user:placeholder@"
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{login}{rest.rpartition('@')[2]}"  # `URL` has made sure of it: there is no other @


def _shown(hosts: object) -> str:
    return (
        "localhost" if hosts is None else ",".join(map(str, hosts)) if isinstance(hosts, (list, tuple)) else str(hosts)
    )
