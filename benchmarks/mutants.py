"""Measure the tests by mutation: change one place of the core at a time, and see whether a test fails.

    python -m benchmarks.mutants --work /tmp/mutants --sample 60 _state.py _lease.py
    python -m benchmarks.mutants --work /tmp/mutants --sample 120 _state.py _lease.py    # goes on: 60 more
    python -m benchmarks.mutants --work /tmp/mutants --report

The work directory holds a snapshot of the repository, which tests cover which line (collected once, in some minutes),
and the results, one JSON object a line. The work tree itself is never changed. To test newer code, or newer tests, begin
with another directory; ``--only FILE:LINE`` then repeats some mutants.

Each mutant meets the cheapest and most specific tests of its line first, and, if these pass, all others that fit into a
minute; the slow ones come last. A run that does not end counts as killed. A line that no test covers survives.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from coverage import CoverageData

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ROOT = Path(__file__).parent.parent
CORE = Path("packages/pool-core/src/pool_core")
TESTS = "packages/pool-core/tests"
IGNORED = shutil.ignore_patterns(".*", "__pycache__", "results", "_build", "dist")
SLOW = ("test_state_walk.py", "test_state_machine.py", "test_storms.py")
"""These meet nearly every line and take long, so they run last, in this order."""

FIRST = 40
"""Tests in the first run of a mutant."""
SIBLINGS, NEIGHBOURS = 3, 8
"""How many parameters of one test function, and how many tests of one file, may be among them."""
FIRST_SECONDS = 5.0
REST_SECONDS, SLOW_SECONDS = 30.0, 60.0
"""How long the tests of a run may take without a mutant. Measured under coverage; they need half of it."""
WALK = {"POOL_WALK_STATES": "500"}
"""Each walk is shorter than usual, so that all of them fit."""


# --- mutants ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one file: ``start`` and ``end`` are offsets in its bytes, ``lines`` its first and last one."""

    file: str
    line: int
    lines: tuple[int, int]
    statement: int
    operator: str
    before: str
    after: str
    start: int
    end: int

    @property
    def key(self) -> str:
        text = f"{self.file}:{self.start}:{self.end}:{self.before}:{self.after}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.end :]


COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.Pow: ast.Mult,
}


class Finder(ast.NodeVisitor):
    """Find the places to change. What no test should depend on is left out: annotations, slots, asserts, texts."""

    silent: ClassVar = {"__slots__", "__all__", "msg"}

    def __init__(self, file: str, source: bytes) -> None:
        self.file = file
        self.source = source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.statement = 0  # the line of the innermost one
        self.depth = 0  # of functions: what a module or class lacks, its import would miss
        self.found: list[Mutant] = []
        self.visit(ast.parse(source))

    def change(self, node: ast.expr | ast.stmt, operator: str, after: str) -> None:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[node.end_lineno - 1] + node.end_col_offset
        before = self.source[start:end].decode()
        lines = (node.lineno, node.end_lineno)
        self.found.append(Mutant(self.file, node.lineno, lines, self.statement, operator, before, after, start, end))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            self.statement = node.lineno
        super().visit(node)

    def condition(self, test: ast.expr, *values: bool) -> None:
        if not isinstance(test, ast.Constant):
            for value in values:
                self.change(test, "condition", str(value))

    # -- expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        for index, op in enumerate(node.ops):
            ops = [*node.ops]
            ops[index] = COMPARISONS[type(op)]()
            self.change(node, "comparison", f"({ast.unparse(ast.Compare(node.left, ops, node.comparators))})")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self.change(node, "and/or", f"({ast.unparse(ast.BoolOp(op, node.values))})")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.change(node, "not", f"({ast.unparse(node.operand)})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = (node.left, node.right)
        if type(node.op) in ARITHMETIC and not any(isinstance(side, (ast.JoinedStr, ast.List)) for side in texts):
            op = ARITHMETIC[type(node.op)]()
            self.change(node, "arithmetic", f"({ast.unparse(ast.BinOp(node.left, op, node.right))})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.change(node, "constant", str(not value))
        elif isinstance(value, (int, float)):
            self.change(node, "constant", f"({value + 1})")
            self.change(node, "constant", f"({value - 1})")

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.condition(node.test, True, False)
        self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg != "stacklevel":
            self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Python 3.11 does not know where the parts of an f-string are."""

    # -- statements

    def delete(self, node: ast.stmt) -> None:
        if self.depth:
            self.change(node, "deletion", "pass")

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self.delete(node)
            self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not any(isinstance(target, ast.Name) and target.id in self.silent for target in node.targets):
            self.delete(node)
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.delete(node)
            self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.delete(node)
        if type(node.op) in ARITHMETIC:
            op = ARITHMETIC[type(node.op)]()
            self.change(node, "arithmetic", ast.unparse(ast.AugAssign(node.target, op, node.value)))
        self.visit(node.value)

    def visit_Delete(self, node: ast.Delete) -> None:
        self.delete(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self.change(node.value, "return", "None")
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        test = ast.unparse(node.test)
        if test == "TYPE_CHECKING":
            return
        if "TYPE_CHECKING" not in test:
            self.condition(node.test, True, False)
            self.visit(node.test)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_While(self, node: ast.While) -> None:
        self.condition(node.test, False)
        self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        """It cannot fail, or helps the type checker."""

    # -- definitions

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if node.name == "__repr__":
            return
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self.depth += 1
        for statement in node.body:
            self.visit(statement)
        self.depth -= 1

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        depth, self.depth = self.depth, 0
        for statement in node.body:
            self.visit(statement)
        self.depth = depth


def sample(mutants: Sequence[Mutant], size: int, seed: int) -> list[Mutant]:
    """Draw from each file as many as from any other. A larger sample of the same seed begins with the smaller one."""
    files: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        files[mutant.file].append(mutant)
    for file, members in files.items():
        random.Random(f"{seed} {file}").shuffle(members)
    drawn: list[Mutant] = []
    while len(drawn) < min(size, len(mutants)):
        drawn += [members.pop() for members in files.values() if members]
    return drawn[:size]


# --- tests ------------------------------------------------------------------------------------------------------------


class Tree:
    """The snapshot in which mutants live: the repository's files, and pytest runs among them."""

    def __init__(self, work: Path) -> None:
        self.path = work / "tree"
        self.arguments = work / "arguments.txt"
        if not self.path.exists():
            shutil.copytree(ROOT, self.path, ignore=IGNORED)

    def read(self, file: str) -> bytes:
        return (self.path / CORE / file).read_bytes()

    def write(self, file: str, source: bytes) -> None:
        """Replace a module. Its compiled form may be as old and as long, so it goes."""
        (self.path / CORE / file).write_bytes(source)
        for compiled in (self.path / CORE).glob(f"**/__pycache__/{Path(file).stem}.*"):
            compiled.unlink()

    def pytest(self, arguments: Iterable[str], *, seconds: float, **variables: str) -> tuple[int | None, str]:
        """Run pytest: its exit code, None if it did not end in time, and what it printed."""
        shutil.rmtree(self.path / ".hypothesis", ignore_errors=True)  # examples of the mutant before
        options = ["-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        self.arguments.write_text("\n".join([*options, *arguments]))
        sources = [str(self.path / CORE.parent), str(self.path / "packages/pool-sqlite/src"), str(self.path)]
        with subprocess.Popen(
            [sys.executable, "-m", "pytest", f"@{self.arguments}"],
            cwd=self.path,
            env={**os.environ, **WALK, "PYTHONPATH": os.pathsep.join(sources), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                printed, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return None, ""
            return process.returncode, printed


class Tests:
    """The tests that pass, how long each takes, and which of them cover a line."""

    def __init__(self, tree: Tree, work: Path) -> None:
        times, coverage = work / "times.json", work / "coverage"
        if not times.exists():
            print("collecting which tests cover which line: this takes some minutes", flush=True)
            times.write_text(json.dumps(_collect(tree, coverage), indent=0))
        self.seconds: dict[str, float] = json.loads(times.read_text())
        self.lines: dict[str, dict[int, set[str]]] = {}
        self.breadth: Counter[str] = Counter()  # how many lines a test covers
        data = CoverageData(str(coverage))
        data.read()
        home = tree.path / CORE
        for path in data.measured_files():
            if Path(path).is_relative_to(home):
                lines = {
                    line: {context.split("|")[0] for context in contexts}
                    for line, contexts in data.contexts_by_lineno(path).items()
                }
                self.lines[str(Path(path).relative_to(home))] = lines
                for tests in lines.values():
                    self.breadth.update(tests)

    def covering(self, mutant: Mutant) -> list[str]:
        """The tests of a mutant's lines, in the order in which to run them."""
        lines = self.lines.get(mutant.file, {})
        first, last = mutant.lines
        tests = set().union(*(lines.get(line, ()) for line in range(first, last + 1)))
        tests = tests or lines.get(mutant.statement, set())
        if "" in tests:  # the import runs it
            tests = set().union(*lines.values())
        return sorted(tests & self.seconds.keys(), key=lambda test: (_slowness(test), self.cost(test), test))

    def cost(self, test: str) -> float:
        """Seconds, and as much for a test that covers two thousand lines: it is less likely to look at this one."""
        return self.seconds[test] + self.breadth[test] / 2000

    def first(self, tests: Iterable[str]) -> list[str]:
        """Few that are fast, of several functions and files."""
        chosen: list[str] = []
        taken: Counter[str] = Counter()
        left = FIRST_SECONDS
        for test in tests:
            file, function = _file(test), test.split("[")[0]
            near = taken[function] >= SIBLINGS or taken[file] >= NEIGHBOURS
            if not (near or _slowness(test)) and self.seconds[test] <= left:
                taken.update((function, file))
                left -= self.seconds[test]
                chosen.append(test)
        return chosen[:FIRST]

    def rest(self, tests: Iterable[str], first: Iterable[str]) -> list[str]:
        """As many others as fit into the time."""
        chosen = []
        left = {False: REST_SECONDS, True: SLOW_SECONDS}
        for test in (test for test in tests if test not in set(first)):
            slow = _slowness(test) > 0
            if self.seconds[test] <= left[slow]:
                left[slow] -= self.seconds[test]
                chosen.append(test)
        return chosen


def _file(test: str) -> str:
    return test.split("::", maxsplit=1)[0]


def _slowness(test: str) -> int:
    """0: it is not one of the slow ones; else its place among them."""
    name = Path(_file(test)).name
    return 1 + SLOW.index(name) if name in SLOW else 0


def _collect(tree: Tree, coverage: Path) -> dict[str, float]:
    """Run all tests once, by themselves: the seconds of each that passed."""
    options = [TESTS, "--cov", "--cov-context=test", "--cov-report=", "--durations=0", "--durations-min=0", "-rfE"]
    code, printed = tree.pytest(options, seconds=3600, COVERAGE_FILE=str(coverage), POOL_GUARD="off")
    if code not in (0, 1):
        raise SystemExit(f"pytest ended with {code}:\n{printed[-3000:]}")
    failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", printed, re.MULTILINE)
    for test in failed:
        print(f"left out, since it fails without a mutant: {test}")
    times = re.findall(r"^([\d.]+)s call +(.+)$", printed, re.MULTILINE)
    return {test: float(seconds) for seconds, test in times if test not in failed}


# --- runs -------------------------------------------------------------------------------------------------------------


def judge(mutant: Mutant, tree: Tree, tests: Tests) -> dict[str, object]:
    """Let a mutant meet its tests."""
    began = time.monotonic()
    source = tree.read(mutant.file)
    covering = tests.covering(mutant)
    first = tests.first(covering)
    ran, outcome, killer = 0, "survived" if covering else "uncovered", ""
    tree.write(mutant.file, mutant.apply(source))
    try:
        for chosen in (first, tests.rest(covering, first)):
            if chosen and not killer:
                ran += len(chosen)
                killer = _killer(tree, chosen, 20 + 4 * sum(tests.seconds[test] for test in chosen))
    finally:
        tree.write(mutant.file, source)
    if killer:
        outcome = "killed"
    return {**asdict(mutant), "outcome": outcome, "killer": killer, "tests": ran, "seconds": time.monotonic() - began}


def _killer(tree: Tree, tests: Sequence[str], seconds: float) -> str:
    """The first test that fails, or what else went wrong; nothing if all pass."""
    code, printed = tree.pytest(["-x", "--tb=no", "-o", "timeout=20", *tests], seconds=seconds, POOL_GUARD="on")
    if code is None:
        return "out of time"
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", printed, re.MULTILINE)
    return "" if code == 0 else failed[1] if failed else f"pytest ended with {code}"


def report(results: Sequence[dict[str, object]]) -> Iterator[str]:
    """A table of the files, and the survivors."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        outcomes[str(result["file"])][str(result["outcome"])] += 1
        outcomes["all"][str(result["outcome"])] += 1
    yield f"{'file':24} {'killed':>7} {'survived':>9} {'uncovered':>10} {'rate':>6}"
    for file, counts in sorted(outcomes.items(), key=lambda item: (item[0] == "all", item[0])):
        rate = f"{counts['killed'] / counts.total():.0%}"
        yield f"{file:24} {counts['killed']:7} {counts['survived']:9} {counts['uncovered']:10} {rate:>6}"
    seconds = [float(str(result["seconds"])) for result in results]
    killed = [float(str(result["seconds"])) for result in results if result["outcome"] == "killed"]
    yield f"seconds each: median {statistics.median(seconds):.1f}, of the killed {statistics.median(killed or [0]):.1f}"
    for result in sorted(results, key=lambda result: (str(result["file"]), int(str(result["line"])))):
        if result["outcome"] != "killed":
            before, after = (" ".join(str(result[side]).split()) for side in ("before", "after"))
            yield f"{result['outcome']}: {result['file']}:{result['line']}  {before}  ->  {after}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="*", help="modules of pool_core, such as _state.py")
    parser.add_argument("--work", type=Path, required=True, help="directory for the snapshot and the results")
    parser.add_argument("--sample", type=int, default=60, help="how many mutants, over all files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], metavar="FILE:LINE", help="all mutants of this line")
    parser.add_argument("--report", action="store_true", help="run nothing, and show what there is")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    log = work / "results.jsonl"
    results: dict[str, dict[str, object]] = {}
    if log.exists():
        results = {entry["key"]: entry for entry in map(json.loads, log.read_text().splitlines())}
    if not arguments.report:
        work.mkdir(parents=True, exist_ok=True)
        tree = Tree(work)
        tests = Tests(tree, work)
        only = [place.rsplit(":", 1) for place in arguments.only]
        files = sorted({*arguments.files, *(file for file, _ in only)})
        mutants = [mutant for file in files for mutant in Finder(file, tree.read(file)).found]
        places = {(file, int(line)) for file, line in only}
        chosen = [mutant for mutant in mutants if (mutant.file, mutant.line) in places]
        for number, mutant in enumerate(chosen or sample(mutants, arguments.sample, arguments.seed), 1):
            if mutant.key in results and not chosen:
                continue
            result = results[mutant.key] = {"key": mutant.key, **judge(mutant, tree, tests)}
            with log.open("a") as lines:
                lines.write(json.dumps(result) + "\n")
            print(f"{number}: {result['outcome']} {mutant.file}:{mutant.line} ({mutant.operator})", flush=True)
    print(*report(list(results.values())), sep="\n")


if __name__ == "__main__":
    main()
