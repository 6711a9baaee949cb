"""The walls of the house: who may import what."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pool_core
import pytest

SOURCE = Path(pool_core.__file__).parent
ADAPTERS = SOURCE.parents[2]


def imports(path: Path, *, outermost: bool = False) -> set[str]:
    """What a module imports at run time, as absolute names."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if outermost else [n for n in ast.walk(tree) if not _checking_only(tree, n)]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add("." * node.level + node.module)
        elif isinstance(node, ast.ImportFrom):
            found |= {"." * node.level + alias.name for alias in node.names}
    return found


def _checking_only(tree: ast.Module, node: ast.AST) -> bool:
    return any(
        isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test) and node in set(ast.walk(block))
        for block in tree.body
    )


POLICY = ("_deadlock", "_slot", "_supply", "_queue", "_idle", "_agenda", "_state", "_repair")
"""The modules that decide. The shell acts."""

ARROWS = (
    *("_text", "_errors", "_statistics", "_events", "_manager", "_config"),
    *("_slot", "_deadlock", "_supply", "_queue", "_idle", "_agenda", "_state", "_repair"),
    *("_hooks", "_call", "_messages", "_calls", "_lifecycle", "_gets", "_shell"),
    *("_look", "_guard", "_lease", "_registry", "_check", "_pool"),
)
"""From the bottom to the top: what a module imports at run time stands before it."""


@pytest.mark.parametrize("module", POLICY)
def test_the_state_knows_no_loop_no_clock_no_chance_and_no_threads(module: str) -> None:
    """Decide in the state, act in the shell."""
    path = SOURCE / f"{module}.py"
    standard = {"__future__", "collections", "enum", "heapq", "itertools", "math", "typing"}
    assert imports(path) <= standard | {f".{name}" for name in (*POLICY, "_statistics")}
    assert "await" not in {type(node).__name__.lower() for node in ast.walk(ast.parse(path.read_text()))}


def test_arrows_point_down_only() -> None:
    """Facts; policy; shell; lease and pool."""
    for position, module in enumerate(ARROWS):
        path = SOURCE / f"{module}.py"
        lower = {f".{name}" for name in ARROWS[:position]} | ({"."} if module == "_lifecycle" else set())
        # from_url looks the registry up when it is called; the registry knows the configuration only.
        allowed = lower | {"._registry"} if module == "_pool" else lower
        found = {name for name in imports(path) if name.startswith(".")}
        assert found <= allowed | {"._events"}, module


@pytest.mark.parametrize("module", ARROWS)
def test_no_module_and_no_class_of_the_run_time_is_too_long_to_read(module: str) -> None:
    """Somebody new to it holds the core in his head after an hour."""
    source = (SOURCE / f"{module}.py").read_text()
    assert source.count("\n") <= 700
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            methods = [inner for inner in node.body if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef))]
            assert len(methods) <= 46, f"{node.name} has {len(methods)} methods"


@pytest.mark.parametrize("path", sorted((SOURCE / "testing").glob("*.py")), ids=lambda path: path.name)
def test_the_kit_uses_public_names_and_the_standard_library_only(path: Path) -> None:
    """What it needs, every adapter author has."""
    for name in imports(path):
        if name.startswith(".."):
            assert name.removeprefix("..") in pool_core.__all__, name
        elif not name.startswith("."):
            top = name.partition(".")[0]
            assert top == "pool_core" or top in sys.stdlib_module_names, name
            assert not name.startswith("pool_core._"), name


@pytest.mark.parametrize("path", sorted(ADAPTERS.glob("pool-*/src/pool_*/*.py")), ids=lambda path: path.name)
def test_adapters_use_public_names_of_the_core_only(path: Path) -> None:
    """As a third-party adapter would."""
    if "pool_core" not in path.parts:
        assert not {name for name in imports(path) if name.startswith("pool_core._")}


def test_importing_the_pool_is_cheap() -> None:
    """At most 25 modules on top of asyncio, 15 of them foreign; the events' classes only for those who ask for one."""
    code = (
        "import sys, asyncio; before = set(sys.modules); import pool_core; pool_core.Pool; made = set(sys.modules) - before;"
        "print(len(made), len([name for name in made if not name.startswith('pool_core')]));"
        "assert 'pool_core._events' not in sys.modules; pool_core.Connected"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    total, foreign = map(int, done.stdout.split())
    assert total <= 25
    assert foreign <= 15


def test_the_face_needs_no_asyncio_before_somebody_asks_for_a_pool() -> None:
    """A program of threads shares errors, options and managers with it."""
    code = (
        "import sys, pool_core; pool_core.PoolConfig, pool_core.PoolTimeout, pool_core.Connected;"
        "assert 'asyncio' not in sys.modules; from pool_core import Pool; assert 'asyncio' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_face_is_nothing_but_names() -> None:
    """Every public name is exported, sorted, and exists."""
    assert sorted(pool_core.__all__) == sorted(set(pool_core.__all__))
    for name in pool_core.__all__:
        assert getattr(pool_core, name) is not None
    assert set(pool_core.__all__) <= set(dir(pool_core))
    with pytest.raises(AttributeError, match="module 'pool_core' has no attribute 'Aquired'"):
        _ = pool_core.Aquired  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
