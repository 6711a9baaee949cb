"""From a URL to the adapter that claims its scheme, and to the pool's options that stand in its query."""

from __future__ import annotations

import configparser
import importlib
import re
from dataclasses import dataclass, fields
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from ._config import PoolConfig, PoolOptions, QueueStrategy, option_names
from ._text import check_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._manager import ConnectionManager

__all__ = ["EXTRAS", "GROUP", "THREADS_GROUP", "Claim", "claim_of", "claims", "manager_and_options", "scheme_of"]

GROUP = "pool_core.managers"
"""The group of the entry points: the name is a scheme, the object a ``Callable[[str], ConnectionManager[Any]]``."""

THREADS_GROUP = "pool_core.threads.managers"
"""The same for managers of ``pool_core.threads``."""

EXTRAS = {
    "postgresql": "postgres",
    "postgres": "postgres",
    "postgresql+psycopg": "psycopg",
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "valkey": "redis",
    "valkeys": "redis",
    "redis+sentinel": "redis",
    "rediss+sentinel": "redis",
    "redis+cluster": "redis",
    "rediss+cluster": "redis",
    "mysql": "mysql",
    "mariadb": "mysql",
    "mongodb": "mongo",
    "mongodb+srv": "mongo",
    "sqlite": "sqlite",
    "memcached": "memcached",
    "memcacheds": "memcached",
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "odbc": "odbc",
    "mssql": "odbc",
    "neo4j": "neo4j",
    "neo4j+s": "neo4j",
    "neo4j+ssc": "neo4j",
    "bolt": "neo4j",
    "bolt+s": "neo4j",
    "bolt+ssc": "neo4j",
    "arangodb": "arangodb",
    "arangodb+https": "arangodb",
}
"""What to install for a scheme that no installed adapter has: the extras of pool-core, by scheme."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):(//)?")
_HARMLESS = re.compile(r"[\w.+\-]{0,40}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Claim:
    """A distribution's claim to a scheme.

    Attributes:
        scheme: in lower case.
        distribution: its name and version.
        target: what makes the manager, as ``module:object``.
    """

    scheme: str
    distribution: str
    target: str

    def __str__(self) -> str:
        return f"{self.distribution} ({self.target})"

    def load(self) -> Callable[[str], ConnectionManager[Any]]:
        """Import what makes the manager.

        Raises:
            ImportError: it cannot be imported; the text names the distribution and the cause, which is ``__cause__``.
            TypeError: it is not callable.
        """
        try:
            made = EntryPoint(self.scheme, self.target, GROUP).load()
        except Exception as cause:
            msg = (
                f"{self} claims the scheme {self.scheme!r} but cannot be imported: {type(cause).__name__}: {cause}; "
                "repair that installation, or remove it"
            )
            raise ImportError(msg) from cause
        if not callable(made):
            msg = (
                f"{self} claims the scheme {self.scheme!r} but is a {type(made).__name__}: an entry point of the group "
                f"{GROUP!r} must be callable with a URL and return a manager"
            )
            raise TypeError(msg)
        return cast("Callable[[str], ConnectionManager[Any]]", made)


def claims(group: str = GROUP) -> list[Claim]:
    """Look for every claim of every installed distribution, sorted; nothing is imported and nothing remembered."""
    # A set: the same target twice in one distribution is one claim.
    found = {Claim(name.lower(), _owner(dist), target) for name, target, dist in _declared(group)}
    return sorted(found, key=lambda claim: (claim.scheme, claim.distribution, claim.target))


def scheme_of(url: str, group: str = GROUP) -> str:
    """Read a URL's scheme, in lower case.

    Raises:
        ValueError: it has none. The text shows nothing of the URL.
    """
    match = _SCHEME.match(url)
    # "user:password@host" and "localhost:5432" look like a scheme too: what no // follows must be a known one.
    if match and (match[2] or (scheme := match[1].lower()) in EXTRAS or scheme in {c.scheme for c in claims(group)}):
        return match[1].lower()
    msg = f"the URL must begin with a scheme, as in 'postgresql://'; installed adapters: {_installed(claims(group))}"
    raise ValueError(msg)


def claim_of(scheme: str, group: str = GROUP) -> Claim:
    """Find the one claim to a scheme (in lower case).

    Raises:
        ValueError: nobody claims it, or more than one does.
    """
    everybody = claims(group)
    claimants = [claim for claim in everybody if claim.scheme == scheme]
    if not claimants:
        # Installed while we run, within the file system's resolution of time: what the import system remembers of
        # the directories may be stale.
        importlib.invalidate_caches()
        everybody = claims(group)
        claimants = [claim for claim in everybody if claim.scheme == scheme]
    if not claimants:
        threads = " for threads" if group == THREADS_GROUP else ""
        msg = (
            f"no installed adapter claims the scheme {scheme!r}{threads}{_help(scheme)}; "
            f"installed: {_installed(everybody)}"
        )
        raise ValueError(msg)
    if len(claimants) > 1:
        msg = (
            f"the scheme {scheme!r} is claimed by {' and by '.join(map(str, claimants))}: uninstall one of them, or "
            "make the manager yourself: Pool(manager)"
        )
        raise ValueError(msg)
    return claimants[0]


def manager_and_options(url: str, group: str = GROUP) -> tuple[ConnectionManager[Any], PoolOptions[Any]]:
    """Make the manager for a URL, by the adapter that claims its scheme, and read the pool's options in its query.

    ``pool_*`` pairs are cut out of the text; the rest reaches the adapter byte for byte. The errors raised here show
    the scheme, the names of options and their values, and nothing else of the URL.

    Raises:
        ValueError: the URL has white space around it or a control character; no adapter claims the scheme, or more than
            one; an option's value is not allowed, or given twice.
        TypeError: an unknown ``pool_*`` key, or an option that no URL can give.
        ImportError: the adapter cannot be imported.
        Exception: what the adapter says to the URL.
    """
    if not isinstance(url, str):
        msg = f"the URL must be a str, not {type(url).__name__}"
        raise TypeError(msg)
    check_text("the URL", url)
    claim = claim_of(scheme_of(url, group), group)
    rest, options = _cut_options(url)
    return claim.load()(rest), options


def _declared(group: str) -> list[tuple[str, str, Distribution | None]]:
    """Name, target and distribution of each entry point of the group."""
    try:
        return [(point.name, point.value, point.dist) for point in entry_points(group=group)]
    except ValueError:
        pass
    # Since Python 3.15 one malformed entry point, in whatever group of whatever distribution, hides all of them.
    found: list[tuple[str, str, Distribution | None]] = []
    owners: set[str] = set()
    for dist in distributions():
        owner = _owner(dist).partition(" ")[0].lower().replace("_", "-")
        if owner in owners:
            continue  # another installation of the same distribution comes first
        owners.add(owner)
        sections = configparser.ConfigParser(delimiters="=", interpolation=None, strict=False)
        sections.optionxform = str  # type: ignore[method-assign,assignment]
        try:
            sections.read_string(dist.read_text("entry_points.txt") or "")
        except configparser.Error:
            continue
        if sections.has_section(group):
            found += [(name, target, dist) for name, target in sections.items(group)]
    return found


def _owner(dist: Distribution | None) -> str:
    try:
        assert dist is not None
        return f"{dist.name} {dist.version}"
    except Exception:  # noqa: BLE001 - half-removed ones have no metadata; that must not hide the others
        return "a distribution without metadata"


def _installed(found: list[Claim]) -> str:
    return ", ".join(dict.fromkeys(claim.scheme for claim in found)) or "none"


def _help(scheme: str) -> str:
    base, plus, _driver = scheme.partition("+")
    if extra := EXTRAS.get(scheme):
        return f'; install one: pip install "pool-core[{extra}]"'
    if plus and (extra := EXTRAS.get(base)):  # as SQLAlchemy writes it, with the driver's name
        return f'; write {base}:// (its adapter: pip install "pool-core[{extra}]")'
    return "; install one for it, or make the manager yourself: Pool(manager)"


# The query


def _cut_options(url: str) -> tuple[str, PoolOptions[Any]]:
    """Cut the ``pool_*`` pairs out of a URL's query, and read them.

    The query begins at the first ``?`` and ends at the next ``#``. A ``#`` before it does not count: libpq and pymongo
    read one as part of the password.
    """
    head, mark, tail = url.partition("?")
    query, hash_, fragment = tail.partition("#")
    mine: list[str] = []
    theirs: list[str] = []
    for pair in query.split("&"):
        (mine if pair.startswith("pool_") else theirs).append(pair)
    if not mine:
        return url, {}
    rest = "&".join(theirs)
    options: dict[str, object] = {}
    for pair in mine:
        key, equals, text = pair.partition("=")
        option = key.removeprefix("pool_")
        if option not in _READERS:
            msg = f"the URL has the unknown option {_shown(key)}{_near(option)}; allowed: {_allowed()}"
            raise TypeError(msg)
        if option in options:
            msg = f"the URL gives {key} twice: give it once"
            raise ValueError(msg)
        options[option] = _READERS[option](key, unquote(text) if equals else None)
    return head + (mark + rest if rest else "") + hash_ + fragment, cast("PoolOptions[Any]", options)


def _shown(text: str) -> str:
    """Only what cannot be a part of a URL: of a password with a bare ``?`` in it, for example."""
    return repr(text) if _HARMLESS.fullmatch(text) else "(not shown)"


def _near(option: str) -> str:
    import difflib  # rarely needed

    near = difflib.get_close_matches(option, _READERS, 1, 0.7)
    return f" (did you mean pool_{near[0]}?)" if near else ""


def _allowed() -> str:
    return ", ".join(f"pool_{option}" for option in option_names() if option not in _PROGRAM_ONLY)


_FLAGS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
# By the type that PoolConfig declares: how to read it, and what to write.
_KINDS: dict[str, tuple[Callable[[str], object], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": (lambda text: _FLAGS[text.lower()], "true or false (or yes, no, on, off, 1, 0)"),
    "QueueStrategy": (lambda text: QueueStrategy(text.lower()), "lifo or fifo"),
    "str": (str, "a text"),
}
_PROGRAM_ONLY = ("customizer", "error_sink", "listeners")


def _reader(option: str, declared: str) -> Callable[[str, str | None], object]:
    def refuse(key: str, text: str | None) -> object:
        msg = f"{key}={_shown(text or '')}: it cannot be given in a URL; give it to Pool.from_url as {option}=..."
        raise TypeError(msg)

    if option in _PROGRAM_ONLY:
        return refuse
    kind, optional, _ = declared.partition(" | None")
    read, what = _KINDS[kind]
    if optional:
        what += ", or none"

    def parse(key: str, text: str | None) -> object:
        if text is None:
            msg = f"{key} has no value: must be {what}"
            raise ValueError(msg)
        if optional and text.lower() == "none":
            return None
        try:
            return read(text)
        except (ValueError, KeyError):
            msg = f"{key}={_shown(text)}: must be {what}"
            raise ValueError(msg) from None

    return parse


# PoolConfig's annotations are texts, since its module imports annotations from __future__.
_READERS = {option.name: _reader(option.name, str(option.type)) for option in fields(PoolConfig)}
