"""Names of options that other pools have, or that are nearly right: the TypeError says which one is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pool_core import Pool
from pool_core.testing import ScriptedManager

from .fake_adapters import Adapters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MISSPELT: dict[str, str] = {
    "min_size": "min_idle",
    "minsize": "min_idle",
    "maxsize": "max_size",
    "max_overflow": "max_size",
    "pool_size": "max_size",
    "max_connections": "max_size",
    "timeout": "connection_timeout",
    "pool_recycle": "max_lifetime",
    "reaper_rate": "reap_interval",
    "max_sise": "max_size",
    "idle_time_out": "idle_timeout",
    "max_life_time": "max_lifetime",
}


@pytest.fixture
def adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Adapters]:
    """A place to install adapters."""
    with Adapters.at(tmp_path / "site", monkeypatch) as made:
        yield made


def made_directly(**options: Any) -> object:
    """Make a pool of a manager."""
    return Pool(ScriptedManager(), **options)


def made_from_url(**options: Any) -> object:
    """Make a pool for a URL."""
    return Pool.from_url("fake://host", **options)


@pytest.mark.parametrize("make", [made_directly, made_from_url])
@pytest.mark.parametrize("wrong", MISSPELT)
def test_a_misspelt_option_is_a_type_error_that_names_the_right_one(
    wrong: str, make: Callable[..., object], adapters: Adapters
) -> None:
    """The text spoke of PoolConfig.__init__(), which no user has called."""
    adapters.install("fake")
    with pytest.raises(TypeError) as caught:
        make(**{wrong: 3})
    text = str(caught.value)
    assert wrong in text
    assert MISSPELT[wrong] in text.removeprefix(wrong)
    assert "__init__" not in text
    assert "PoolConfig" not in text


def test_an_option_like_no_other_is_a_type_error_without_inner_names() -> None:
    """There is nothing to suggest, but the name must be there."""
    with pytest.raises(TypeError, match="zzz") as caught:
        Pool(ScriptedManager(), zzz=3)  # type: ignore[call-arg]
    assert "__init__" not in str(caught.value)
    assert "PoolConfig" not in str(caught.value)


def test_two_misspelt_options_are_both_named() -> None:
    """One correction for both."""
    with pytest.raises(TypeError) as caught:
        Pool(ScriptedManager(), min_size=3, maxsize=5)  # type: ignore[call-arg]
    for name in ("min_size", "min_idle", "maxsize", "max_size"):
        assert name in str(caught.value)
