"""Distributions with entry points, in a directory of their own on ``sys.path``."""

from __future__ import annotations

import itertools
import sys
import types
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pool_core._registry import claims

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self

    import pytest

MAKER = """
from pool_core.testing import ScriptedManager

seen = []

def make(url):
    seen.append(url)
    return ScriptedManager()
"""

_numbers = itertools.count()


class Adapters:
    """What the test has installed; nothing of it stays in ``sys.modules`` or on ``sys.path`` afterwards."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self._monkeypatch = monkeypatch
        self._modules: list[str] = []

    @classmethod
    @contextmanager
    def at(cls, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Self]:
        """Begin with none."""
        directory.mkdir()
        monkeypatch.syspath_prepend(directory)
        made = cls(directory, monkeypatch)
        yield made
        for module in made._modules:
            sys.modules.pop(module, None)

    def hide_others(self) -> None:
        """Let nothing be installed but these."""
        path = [entry for entry in sys.path if not entry.endswith(("site-packages", "src"))]
        self._monkeypatch.setattr(sys, "path", path)
        assert all(claim.target.startswith("fake_adapter_") for claim in claims())

    def install(
        self, *schemes: str, dist: str = "pool-fake", source: str = MAKER, target: str = "make", metadata: bool = True
    ) -> str:
        """Install one; return the name of its module."""
        module = f"fake_adapter_{next(_numbers)}"
        self._modules.append(module)
        (self.directory / f"{module}.py").write_text(source)
        info = self.directory / f"{dist.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        if metadata:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2\n")
        lines = "".join(f"{scheme} = {module}:{target}\n" for scheme in schemes)
        (info / "entry_points.txt").write_text(f"[pool_core.managers]\n{lines}")
        return module

    def provide(self, scheme: str, make: Callable[[str], object]) -> None:
        """Install one that calls a function of the test."""
        name = self.install(scheme)
        module = types.ModuleType(name)
        module.make = make  # type: ignore[attr-defined]
        sys.modules[name] = module

    def seen(self, module: str) -> list[str]:
        """The URLs that an adapter was given."""
        found: Any = sys.modules[module]
        urls: list[str] = found.seen
        return urls
