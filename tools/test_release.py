"""A release: one command writes versions, bounds and changelogs; another one says what is missing."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import pytest

from tools import release

TODAY = dt.date(2026, 12, 1)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The files that a release touches."""
    for folder in release.packages(release.ROOT):
        copy = tmp_path / "packages" / folder.name
        copy.mkdir(parents=True)
        for name in ("pyproject.toml", "CHANGELOG.md"):
            shutil.copy(folder / name, copy / name)
    for name in ("CONTRIBUTING.md", "CITATION.cff"):
        shutil.copy(release.ROOT / name, tmp_path / name)
    return tmp_path


def decide(root: Path) -> None:
    """Tick all open decisions off."""
    path = root / "CONTRIBUTING.md"
    path.write_text(path.read_text().replace("- [ ] ", "- [x] "))


def test_prepare_sets_version_bounds_and_changelog_of_every_package(repository: Path) -> None:
    """They move together: none can be forgotten."""
    release.prepare(repository, "0.7.0", TODAY)
    for folder in release.packages(repository):
        project = (folder / "pyproject.toml").read_text()
        assert 'version = "0.7.0"' in project
        assert "pool-core>=0.7,<0.8" in project or folder.name == "pool-core"
        assert "## [Unreleased]\n\n## [0.7.0] - 2026-12-01" in (folder / "CHANGELOG.md").read_text()
    assert '"pool-redis>=0.7,<0.8"' in (repository / "packages/pool-core/pyproject.toml").read_text()
    assert "version: 0.7.0" in (repository / "CITATION.cff").read_text()


def test_check_passes_when_all_is_prepared_and_decided(repository: Path) -> None:
    """Nothing else is needed."""
    release.prepare(repository, "0.7.0", TODAY)
    decide(repository)
    assert release.problems(repository, "v0.7.0") == []


def test_check_names_an_open_decision(repository: Path) -> None:
    """Such as the address of the repository: a release without it could not be taken back."""
    release.prepare(repository, "0.7.0", TODAY)
    path = repository / "CONTRIBUTING.md"
    path.write_text(path.read_text().replace("- [x] ", "- [ ] "))
    assert any("decision open" in problem for problem in release.problems(repository, None))


def test_check_names_unreleased_entries_and_a_wrong_tag(repository: Path) -> None:
    """Before `prepare`, every package says so."""
    decide(repository)
    found = release.problems(repository, "v9.9.9")
    assert any("pool-core/CHANGELOG.md has entries under [Unreleased]" in problem for problem in found)
    assert any("the tag v9.9.9 is not the version" in problem for problem in found)


@pytest.mark.parametrize("version", ["v0.7.0", "0.7", "0.0.1", "new"])
def test_prepare_refuses_a_version_that_is_malformed_or_older(repository: Path, version: str) -> None:
    """It says which one, and what to write."""
    with (
        pytest.raises(ValueError, match=version.replace(".", r"\."))
        if version != "0.0.1"
        else pytest.raises(ValueError, match="choose a newer one")
    ):
        release.prepare(repository, version, TODAY)
