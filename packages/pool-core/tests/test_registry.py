"""From a URL to its adapter and the pool's options: ``Pool.from_url`` and the registry behind it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import Pool, PoolConfig, QueueStrategy
from pool_core._config import option_names
from pool_core._registry import EXTRAS, manager_and_options

from .fake_adapters import MAKER, Adapters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Adapters]:
    with Adapters.at(tmp_path / "site", monkeypatch) as made:
        yield made


@pytest.fixture
def alone(adapters: Adapters) -> Adapters:
    adapters.hide_others()
    return adapters


def error_of(call: Callable[[], object], kind: type[Exception]) -> str:
    """The text of the error that a call raises."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    return str(caught.value)


# Finding the adapter


def test_the_scheme_chooses_the_adapter_and_the_query_sets_the_options(adapters: Adapters) -> None:
    """This is the whole of from_url: one line of configuration makes a pool."""
    module = adapters.install("fake")
    pool = Pool.from_url("fake://user:pw@host/db?ssl=on&pool_max_size=20&pool_queue_strategy=fifo")
    assert adapters.seen(module) == ["fake://user:pw@host/db?ssl=on"]
    assert pool.config == PoolConfig(max_size=20, queue_strategy=QueueStrategy.FIFO)


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\0"])
def test_a_url_with_white_space_never_reaches_an_adapter(adapters: Adapters, end: str) -> None:
    """The line break of a mounted secret: one driver strips it, another one opens another database."""
    module = adapters.install("fake")
    said = error_of(lambda: Pool.from_url(f"fake://user:canary@host/db{end}"), ValueError)
    assert said.startswith(("the URL ends with a line break", "the URL has white space or a control character"))
    assert "canary" not in said
    assert module not in sys.modules


def test_an_argument_beats_the_url(adapters: Adapters) -> None:
    """The program knows better than its configuration what it cannot do without."""
    adapters.install("fake")
    pool = Pool.from_url("fake://h?pool_max_size=20&pool_min_idle=2", max_size=5)
    assert (pool.config.max_size, pool.config.min_idle) == (5, 2)


def test_an_adapter_installed_later_is_found(adapters: Adapters) -> None:
    """A notebook that installs what it misses need not be started again."""
    adapters.install("fake")
    assert "later" in error_of(lambda: Pool.from_url("later://h"), ValueError)
    module = adapters.install("later", dist="pool-later")
    assert isinstance(Pool.from_url("later://h"), Pool)
    assert adapters.seen(module) == ["later://h"]


@pytest.mark.parametrize(("claimed", "asked"), [("fake", "FaKe"), ("Fake", "fake"), ("fake+Srv.2-x", "FAKE+SRV.2-X")])
def test_schemes_are_compared_without_case(adapters: Adapters, claimed: str, asked: str) -> None:
    """RFC 3986, 3.1; and the URL itself is not changed."""
    module = adapters.install(claimed)
    Pool.from_url(f"{asked}://Host")
    assert adapters.seen(module) == [f"{asked}://Host"]


def test_an_unknown_scheme_lists_the_installed_ones(alone: Adapters) -> None:
    """Most often it is a typing error, and the list shows it."""
    alone.install("fake", "faker")
    assert error_of(lambda: Pool.from_url("fakr://u:pw@h"), ValueError) == (
        "no installed adapter claims the scheme 'fakr'; install one for it, or make the manager yourself: "
        "Pool(manager); installed: fake, faker"
    )


@pytest.mark.parametrize(("scheme", "extra"), sorted(EXTRAS.items()))
def test_a_scheme_of_ours_that_is_not_installed_says_what_to_install(alone: Adapters, scheme: str, extra: str) -> None:
    """pool-core comes without adapters: this is the first error that a newcomer may see."""
    said = error_of(lambda: Pool.from_url(f"{scheme}://h"), ValueError)
    assert said == (
        f"no installed adapter claims the scheme {scheme!r}; install one: "
        f'pip install "pool-core[{extra}]"; installed: none'
    )


def test_a_scheme_with_a_drivers_name_says_how_to_write_it(alone: Adapters) -> None:
    """Many a configuration has its URL from SQLAlchemy."""
    said = error_of(lambda: Pool.from_url("postgresql+asyncpg://h"), ValueError)
    assert 'write postgresql:// (its adapter: pip install "pool-core[postgres]")' in said


def test_the_schemes_with_an_extra_are_those_that_our_adapters_claim() -> None:
    """The table of extras stands in the core and the claims in the adapters: they must not drift apart."""
    packages = Path(__file__).parents[2]
    declared: dict[str, str] = {}
    for file in packages.glob("pool-*/pyproject.toml"):
        points = tomllib.loads(file.read_text())["project"].get("entry-points", {}).get("pool_core.managers", {})
        declared |= dict.fromkeys(points, file.parent.name)
    if not declared:
        pytest.skip("the adapters are not here: this is the source of pool-core alone")
    assert declared == {scheme: f"pool-{extra}" for scheme, extra in EXTRAS.items()}
    extras = tomllib.loads((packages / "pool-core/pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS.values()) <= set(extras)


def test_two_claimants_are_an_error_that_names_both(adapters: Adapters) -> None:
    """Which of the two is first on sys.path is no way to choose a driver."""
    one = adapters.install("fake", dist="pool-one")
    two = adapters.install("fake", dist="pool-two")
    assert error_of(lambda: Pool.from_url("fake://u:pw@h"), ValueError) == (
        f"the scheme 'fake' is claimed by pool-one 1.2 ({one}:make) and by pool-two 1.2 ({two}:make): uninstall one "
        "of them, or make the manager yourself: Pool(manager)"
    )
    assert one not in sys.modules
    assert two not in sys.modules


def test_the_same_claim_written_twice_is_one(adapters: Adapters) -> None:
    """A distribution that lists its scheme in two spellings does not contradict itself."""
    module = adapters.install("fake", "FAKE")
    Pool.from_url("fake://h")
    assert adapters.seen(module) == ["fake://h"]


def test_a_distribution_without_metadata_does_not_hide_the_others(adapters: Adapters) -> None:
    """A half-removed installation leaves such a directory behind."""
    adapters.install("torn", dist="pool-torn", metadata=False)
    module = adapters.install("fake")
    Pool.from_url("fake://h")
    assert adapters.seen(module) == ["fake://h"]


# Adapters that fail


def test_an_adapter_that_can_not_be_imported_is_named_with_the_cause(adapters: Adapters) -> None:
    """As when the driver below it was removed."""
    module = adapters.install("fake", source="import no_such_driver")
    with pytest.raises(ImportError) as caught:
        Pool.from_url("fake://user:canary@h")
    assert str(caught.value) == (
        f"pool-fake 1.2 ({module}:make) claims the scheme 'fake' but cannot be imported: ModuleNotFoundError: "
        "No module named 'no_such_driver'; repair that installation, or remove it"
    )
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("", "make", "AttributeError"),
        ("1 / 0", "make", "ZeroDivisionError: division by zero"),
        (MAKER, "no target", "cannot be imported"),
    ],
)
def test_whatever_goes_wrong_in_the_import_is_an_import_error(
    adapters: Adapters, source: str, target: str, said: str
) -> None:
    """An adapter's module may raise anything; the caller has one kind to catch."""
    adapters.install("fake", source=source, target=target)
    text = error_of(lambda: Pool.from_url("fake://h"), ImportError)
    assert said in text
    assert "pool-fake 1.2" in text


def test_a_malformed_entry_point_of_another_distribution_hides_no_adapter(adapters: Adapters) -> None:
    """Since Python 3.15 the library raises for all entry points when one, of any group, is malformed."""
    module = adapters.install("fake", "FAKE")
    adapters.install("other", dist="pool-other", target="no target")
    Pool.from_url("fake://h")
    assert adapters.seen(module) == ["fake://h"]
    assert "pool-other 1.2" in error_of(lambda: Pool.from_url("other://h"), ImportError)


def test_an_entry_point_that_is_not_callable_is_refused(adapters: Adapters) -> None:
    """A module instead of the object in it is the likely mistake."""
    adapters.install("fake", source="make = 3")
    assert "pool-fake 1.2" in error_of(lambda: Pool.from_url("fake://h"), TypeError)


def test_an_entry_point_that_makes_no_manager_is_refused(adapters: Adapters) -> None:
    """Else the pool would fail at its first connect."""
    adapters.install("fake", source="def make(url): return object()")
    assert "has no method connect" in error_of(lambda: Pool.from_url("fake://h"), TypeError)


def test_what_the_adapter_says_to_the_url_comes_unchanged(adapters: Adapters) -> None:
    """The adapter knows its URLs; from_url adds nothing."""
    adapters.install("fake", source="def make(url): raise ValueError('no database in the URL')")
    assert error_of(lambda: Pool.from_url("fake://h"), ValueError) == "no database in the URL"


# The rest of the URL


@pytest.mark.parametrize(
    ("url", "rest"),
    [
        ("fake://h?pool_max_size=3", "fake://h"),
        ("fake://h/db?pool_max_size=3#part", "fake://h/db#part"),
        ("fake://h?a=1&pool_max_size=3&b=2", "fake://h?a=1&b=2"),
        ("fake://h?pool_max_size=3&a=1", "fake://h?a=1"),
        ("fake://h?a=1&pool_max_size=3", "fake://h?a=1"),
        ("fake://h?a=1&a=2&pool_max_size=3&a=1", "fake://h?a=1&a=2&a=1"),
        ("fake://h?a=%26pool_min_idle%3D1&pool_max_size=3", "fake://h?a=%26pool_min_idle%3D1"),
        ("fake://h?a&&b=&pool_max_size=3", "fake://h?a&&b="),
        ("fake://u:p%40%2F%3f@h1:1,h2:2,[::1]:3/d?pool_max_size=3", "fake://u:p%40%2F%3f@h1:1,h2:2,[::1]:3/d"),
        ("fake://u:p#w@h/d?pool_max_size=3", "fake://u:p#w@h/d"),
        ("fake:///a/b c/\u00fc.db?pool_max_size=3&mode=r+w", "fake:///a/b c/\u00fc.db?mode=r+w"),
        ("fake://h?a=b?c&pool_max_size=3", "fake://h?a=b?c"),
        ("fake:relative?pool_max_size=3", "fake:relative"),
    ],
)
def test_what_is_not_the_pools_reaches_the_driver_byte_for_byte(adapters: Adapters, url: str, rest: str) -> None:
    """Drivers read multi-host, percent-encoded and repeated parts each in their way: nothing may be tidied up."""
    module = adapters.install("fake")
    assert Pool.from_url(url).config.max_size == 3
    assert adapters.seen(module) == [rest]


@pytest.mark.parametrize(
    "url",
    [
        "fake://h?",
        "fake://h?#",
        "FAKE://H?&",
        "fake://h?a=1#x?pool_max_size=3",
        "fake://h?a=1#x&pool_max_size=3",
        "fake://pool_max_size=3",
        "fake://h?xpool_max_size=3&POOL_MAX_SIZE=3&pool%5Fmax_size=3&maxPoolSize=3&poolsize=3",
        "fake://u:p%40@[::1]:1,[fe80::1%25eth0]:2/d?a=%zz&b=%20+",
    ],
)
def test_a_url_without_options_is_not_touched(adapters: Adapters, url: str) -> None:
    """Nothing of it was meant for the pool."""
    module = adapters.install("fake")
    assert Pool.from_url(url).config == PoolConfig()
    assert adapters.seen(module) == [url]


# Options


@pytest.mark.parametrize(
    ("text", "option", "value"),
    [
        ("max_size=7", "max_size", 7),
        ("min_idle=0", "min_idle", 0),
        ("max_uses=none", "max_uses", None),
        ("max_uses=100", "max_uses", 100),
        ("max_waiting=None", "max_waiting", None),
        ("alive_bypass=0", "alive_bypass", 0.0),
        ("connection_timeout=2.5", "connection_timeout", 2.5),
        ("connection_timeout=NONE", "connection_timeout", None),
        ("max_lifetime=1e3", "max_lifetime", 1000.0),
        ("leak_threshold=%31%30", "leak_threshold", 10.0),
        ("queue_strategy=fifo", "queue_strategy", QueueStrategy.FIFO),
        ("queue_strategy=LIFO", "queue_strategy", QueueStrategy.LIFO),
        ("name=my%20pool%26more", "name", "my pool&more"),
        ("name=a=b", "name", "a=b"),
        ("name=none", "name", "none"),
        *((f"guard={text}", "guard", True) for text in ("true", "True", "1", "yes", "ON")),
        *((f"detect_deadlock={text}", "detect_deadlock", False) for text in ("false", "FALSE", "0", "no", "Off")),
    ],
)
def test_values_are_read_by_the_options_type(adapters: Adapters, text: str, option: str, value: object) -> None:
    """A URL has only texts; the option's type says what was meant."""
    adapters.install("fake")
    found = getattr(Pool.from_url(f"fake://h?pool_{text}").config, option)
    assert found == value
    assert type(found) is type(value)


def test_every_option_is_either_read_or_refused_with_a_reason(adapters: Adapters) -> None:
    """An option that is added to the pool later must not be forgotten here."""
    adapters.install("fake")
    refused = []
    for option in option_names():
        default = getattr(PoolConfig(), option)
        text = default.value if isinstance(default, QueueStrategy) else str(default)
        try:
            _, options = manager_and_options(f"fake://h?pool_{option}={text}")
        except TypeError as error:
            refused.append(option)
            assert str(error).startswith(f"pool_{option}=")
            assert str(error).endswith(f": it cannot be given in a URL; give it to Pool.from_url as {option}=...")
        else:
            assert options == {option: default}
    assert refused == ["customizer", "error_sink", "listeners"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_size=ten", "pool_max_size='ten': must be a whole number"),
        ("max_size=2.5", "pool_max_size='2.5': must be a whole number"),
        ("max_size=none", "pool_max_size='none': must be a whole number"),
        ("max_size=", "pool_max_size='': must be a whole number"),
        ("max_size", "pool_max_size has no value: must be a whole number"),
        ("max_uses=x", "pool_max_uses='x': must be a whole number, or none"),
        ("idle_timeout=10m", "pool_idle_timeout='10m': must be a number, or none"),
        ("guard=maybe", "pool_guard='maybe': must be true or false (or yes, no, on, off, 1, 0)"),
        ("guard=none", "pool_guard='none': must be true or false (or yes, no, on, off, 1, 0)"),
        ("queue_strategy=random", "pool_queue_strategy='random': must be lifo or fifo"),
        ("max_size=1&pool_max_size=1", "the URL gives pool_max_size twice: give it once"),
        ("max_size=0", "max_size=0: must be at least 1"),
        ("idle_timeout=0", "idle_timeout=0.0: must be a finite number of seconds, greater than 0, or None"),
        ("reap_interval=inf", "reap_interval=inf: must be a finite number of seconds, greater than 0"),
        ("lifetime_jitter=nan", "lifetime_jitter=nan: must be at least 0 and below 1"),
        ("max_size=1&pool_min_idle=2", "min_idle=2: must not be greater than max_size=1"),
    ],
)
def test_a_bad_value_is_a_value_error_that_names_option_value_and_what_is_allowed(
    adapters: Adapters, text: str, said: str
) -> None:
    """Whoever reads it has a configuration before them, not this code."""
    adapters.install("fake")
    assert error_of(lambda: Pool.from_url(f"fake://h?pool_{text}"), ValueError) == said


def test_an_unknown_option_is_a_type_error_that_names_it_and_the_allowed_ones(adapters: Adapters) -> None:
    """As with a misspelt keyword argument; a driver would at best ignore it."""
    adapters.install("fake")
    said = error_of(lambda: Pool.from_url("fake://h?pool_maxsize=3"), TypeError)
    head, _, allowed = said.partition("; allowed: ")
    assert head == "the URL has the unknown option 'pool_maxsize' (did you mean pool_max_size?)"
    assert allowed.split(", ") == [
        f"pool_{name}" for name in option_names() if name not in ("customizer", "error_sink", "listeners")
    ]


# What no error may show


@pytest.mark.parametrize(
    "url",
    [
        "nosuch://user:canary@h/d",
        "user:canary@host/db",
        "canary:5432",
        "host=h password=canary",
        "canary",
        "",
        "//user:canary@h",
        "fake://user:canary@h?pool_max_size=x",
        "fake://user:canary@h?pool_nosuch=1",
        "fake://user:canary@h?pool_max_size=1&pool_max_size=1",
        "fake://user:canary@h?pool_listeners=x",
        "fake://user:x?pool_max_size=canary@h/d",
        "fake://user:x?y&pool_canary@h/d",
        "fake://user:x?y&pool_name=z&pool_listeners=canary@h/d",
        "broken://user:canary@h",
        "twice://user:canary@h",
        "number://user:canary@h",
    ],
)
def test_no_error_shows_user_or_password(adapters: Adapters, url: str) -> None:
    """Errors end up in logs that many can read, and start-up is where they are raised."""
    adapters.install("fake")
    adapters.install("broken", dist="pool-broken", source="import no_such_driver")
    adapters.install("number", dist="pool-number", source="make = 3")
    adapters.install("twice", dist="pool-one")
    adapters.install("twice", dist="pool-two")
    with pytest.raises((ValueError, TypeError, ImportError)) as caught:
        Pool.from_url(url)
    text = "".join(traceback.format_exception(caught.value, chain=True)).replace("from_url(url)", "")
    assert "canary" not in text
    assert "user" not in str(caught.value)


def test_without_a_scheme_the_error_says_so(alone: Adapters) -> None:
    """A libpq DSN, or a host and port, is a likely mistake."""
    alone.install("fake")
    for url in ("localhost:5432", "host=h", ""):
        assert error_of(lambda url=url: Pool.from_url(url), ValueError) == (  # type: ignore[misc]
            "the URL must begin with a scheme, as in 'postgresql://'; installed adapters: fake"
        )


def test_a_url_that_is_no_text_is_refused() -> None:
    """A pydantic or yarl URL wants str() first; its repr must not be shown."""
    url: Any = b"fake://user:canary@h"
    assert error_of(lambda: Pool.from_url(url), TypeError) == "the URL must be a str, not bytes"


def test_the_registry_is_imported_only_when_it_is_asked() -> None:
    """importlib.metadata costs more than the whole pool, and most programs make their manager themselves."""
    look = "import sys, pool_core; print([m for m in sys.modules if m in ('pool_core._registry', 'pool_core._cli')])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "[]\n"
