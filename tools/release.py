"""Give all packages a new version, or check that they are ready: `nox -s release -- 0.2.0`, `nox -s release-check`.

The versions of all packages move together until 1.0: an adapter for 0.2 needs `pool-core>=0.2,<0.3`, and an extra of
pool-core needs the adapter of the same minor version.
"""

from __future__ import annotations

import datetime as dt
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
BOUNDS = re.compile(r"(pool-[a-z0-9]+(?:\[[a-z,]+\])?)>=[\d.]+,<[\d.]+")


def packages(root: Path) -> list[Path]:
    """Return the folders of all packages, the core first."""
    return sorted(
        (path.parent for path in root.glob("packages/*/pyproject.toml")), key=lambda p: (p.name != "pool-core", p)
    )


def prepare(root: Path, version: str, today: dt.date) -> None:
    """Write a version, its bounds and its changelog sections into every package.

    Raises:
        ValueError: the version is malformed, or not newer than the present one.
    """
    match = VERSION.fullmatch(version)
    if not match:
        raise ValueError(f"{version!r} is not a version: write it as 0.2.0, without a v")
    new = tuple(map(int, match.groups()))
    for folder in packages(root):
        project = folder / "pyproject.toml"
        text = project.read_text()
        old = tomllib.loads(text)["project"]["version"]
        if tuple(map(int, old.split("."))) >= new:
            raise ValueError(f"{folder.name} has version {old} already: choose a newer one than that")
        text = text.replace(f'version = "{old}"', f'version = "{version}"', 1)
        project.write_text(BOUNDS.sub(rf"\1>={new[0]}.{new[1]},<{new[0]}.{new[1] + 1}", text))
        changelog = folder / "CHANGELOG.md"
        section = f"## [Unreleased]\n\n## [{version}] - {today.isoformat()}"
        changelog.write_text(changelog.read_text().replace("## [Unreleased]", section, 1))
    citation = root / "CITATION.cff"
    citation.write_text(re.sub(r"(?m)^version: .*$", f"version: {version}", citation.read_text()))


def problems(root: Path, tag: str | None) -> list[str]:
    """Return what stands between the packages and a release."""
    found = []
    decisions = (root / "CONTRIBUTING.md").read_text().partition("## Decisions of the owner")[2].partition("\n## ")[0]
    found += [
        f"CONTRIBUTING.md, decision open: {line[6:]}" for line in decisions.splitlines() if line.startswith("- [ ] ")
    ]
    versions = {}
    for folder in packages(root):
        version = versions[folder.name] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["version"]
        changelog = (folder / "CHANGELOG.md").read_text()
        if f"## [{version}] - 20" not in changelog:
            found.append(f"{folder.name}/CHANGELOG.md has no section for {version}: run `nox -s release -- <version>`")
        if changelog.partition("## [Unreleased]\n")[2].partition("\n## ")[0].strip():
            found.append(
                f"{folder.name}/CHANGELOG.md has entries under [Unreleased]: run `nox -s release -- <version>`"
            )
    if len(set(versions.values())) > 1:
        found.append(f"the versions differ: {', '.join(f'{name} {version}' for name, version in versions.items())}")
    if tag is not None and {tag} != {f"v{version}" for version in versions.values()}:
        found.append(f"the tag {tag} is not the version of every package, {versions['pool-core']}")
    return found


def main(arguments: list[str]) -> str | None:
    """Run the command line; the text is what failed."""
    match arguments:
        case ["prepare", version]:
            try:
                prepare(ROOT, version, dt.datetime.now(dt.UTC).date())
            except ValueError as error:
                return str(error)
            print(  # noqa: T201
                f"All packages have version {version}. Read the changelogs, commit, and tag the commit v{version}."
            )
            return None
        case ["check", *tag] if len(tag) < 2:
            return "\n".join(problems(ROOT, tag[0] if tag else None)) or None
        case _:
            return "expected: release.py prepare 0.2.0, or release.py check [v0.2.0]"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
