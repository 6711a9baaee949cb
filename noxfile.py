"""Everything that is checked before a change lands: plain `nox`. `nox --list` names the parts.

The integration sessions need real servers: containers/setup.sh brings them. It may install Docker, so it runs only when
POOL_TEST_SETUP=1 (or CI=true) says that it may; otherwise the command to run by hand is printed.
"""

import atexit
import concurrent.futures
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PACKAGES = ["pool-core", "pool-sqlite", "pool-postgres", "pool-redis", "pool-mysql", "pool-mongo"]
ADAPTERS = PACKAGES[1:]
PYTHONS = ["3.11", "3.12", "3.13"]
FLOOR = PYTHONS[0]
EXTRAS = {"pool-mongo": "[motor]"}  # that their tests need
DECIDERS = [
    "_agenda.py",
    "_call.py",
    "_calls.py",
    "_deadlock.py",
    "_gets.py",
    "_guard.py",
    "_hooks.py",
    "_idle.py",
    "_lease.py",
    "_lifecycle.py",
    "_messages.py",
    "_pool.py",
    "_queue.py",
    "_shell.py",
    "_slot.py",
    "_state.py",
    "_statistics.py",
    "_supply.py",
]  # every branch of these is tested
GUARDED = [
    "guard",
    "storms",
    "get",
    "connecting",
    "giving_back",
    "open_and_close",
    "openings",
    "foreign_code",
]  # topics
GUARDED += ["hooks_that_raise", "queueing", "standstill", "at_once", "owner", "corners", "warm_path", "cancellation"]
SETUP = ROOT / "containers" / "setup.sh"
RESULTS = Path(tempfile.gettempdir(), f"pool-core-results-{os.getpid()}")
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"

os.environ["POOL_TEST_RESULTS"] = str(RESULTS)


def allow_pyenv_pythons() -> None:
    """Let `python3.12` be found where pyenv has it: pyenv answers only for the versions that PYENV_VERSION names."""
    if "PYENV_VERSION" in os.environ or not shutil.which("pyenv"):
        return
    known = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True, check=False).stdout.split()
    newest: dict[str, tuple[int, ...]] = {}
    for version in known:
        if re.fullmatch(r"\d+\.\d+\.\d+", version):
            numbers = tuple(map(int, version.split(".")))
            minor = f"{numbers[0]}.{numbers[1]}"
            newest[minor] = max(newest.get(minor, numbers), numbers)
    wanted = [".".join(map(str, newest[minor])) for minor in PYTHONS if minor in newest]
    if wanted:
        os.environ["PYENV_VERSION"] = ":".join(wanted)


allow_pyenv_pythons()


# --- what the sessions share ------------------------------------------------------------------------------------------

servers_brought: list[bool] = []


@atexit.register
def report() -> None:
    """After nox's own table: which servers were asked, and how many tests there were over all sessions."""
    if not RESULTS.exists():
        return
    results = [json.loads(file.read_text()) for file in RESULTS.glob("*.json")]
    shutil.rmtree(RESULTS)
    servers = sorted({line for result in results for line in result["servers"]})
    sys.stderr.flush()
    print("\nservers, by their true names:")
    print(*(servers or ["none were asked"]), sep="\n")
    total = {word: sum(result[word] for result in results) for word in ("passed", "failed", "skipped")}
    print("tests: {passed} passed, {failed} failed, {skipped} skipped".format(**total), flush=True)


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in {"1", "true", "yes"}


def install(session: nox.Session, groups: list[str], packages: list[str], *options: str) -> None:
    """Install development groups, then packages of this repository as editable."""
    if groups:
        session.install(*nox.project.dependency_groups(PYPROJECT, *groups))
    named = [f"packages/{package}{EXTRAS.get(package, '')}" for package in packages]
    session.install(*options, *(part for name in named for part in ("-e", name)))


def base(tests: str) -> Path:
    """Where the module names of a folder of tests begin."""
    return Path(tests).parent if (ROOT / tests / "__init__.py").exists() else Path(tests)


def run_tests(session: nox.Session, *arguments: str, silent: bool = False, env: dict[str, str] | None = None) -> object:
    """Run pytest; silent returns what it printed."""
    return session.run("python", "-m", "pytest", *arguments, *session.posargs, silent=silent, env=env)


def bring_servers(session: nox.Session) -> None:
    """Set the servers' images up once, if that is allowed here; otherwise say how."""
    if not (is_set("CI") or is_set("POOL_TEST_SETUP")):
        session.log(f"servers that are missing can be had by: sudo {SETUP}   (or set POOL_TEST_SETUP=1)")
        return
    if servers_brought:
        return
    session.log(f"{SETUP.relative_to(ROOT)} says what it installs and starts on this machine:")
    python = {"PYTHON": sys.executable} if importlib.util.find_spec("pip") else {}
    session.run("bash", str(SETUP), external=True, env=python)
    servers_brought.append(True)


# --- the sessions -----------------------------------------------------------------------------------------------------


@nox.session(python=FLOOR)
def lint(session: nox.Session) -> None:
    """ruff, mypy --strict and pyright."""
    install(session, ["dev"], PACKAGES)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    # Tests of different packages share file names, so each package's are checked on their own.
    session.run("mypy", *(f"packages/{package}/src" for package in PACKAGES))
    for tests in (f"packages/{package}/tests" for package in PACKAGES):
        session.run("mypy", "--explicit-package-bases", tests, env={"MYPYPATH": f"{base(tests)}:."})
    options = ("--explicit-package-bases", "--exclude", "containers/images/")
    others = ("containers", "examples", "benchmarks", "noxfile.py", "conftest.py")
    session.run("mypy", *options, *others, env={"MYPYPATH": "."})
    python = shutil.which("python", path=session.bin) or sys.executable
    session.run("pyright", "--pythonpath", python)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The core and its embedded default: no server needed."""
    install(session, ["test"], ["pool-core", "pool-sqlite"])
    covered = session.python == FLOOR
    session.env["COVERAGE_FILE"] = str(Path(session.create_tmp()) / "coverage")
    # Two at a time: the time is virtual, and what they need is the processor.
    options = ["-n", "2", *(["--cov", "--cov-report="] if covered else [])]
    session.env["POOL_GUARD"] = "off"  # it doubles the time: see below
    run_tests(session, "packages/pool-core/tests", "packages/pool-sqlite/tests", *options)
    if covered:
        deciders = ",".join(f"*/pool_core/{name}" for name in DECIDERS)
        session.run("coverage", "report", f"--include={deciders}", "--fail-under=100")
        # After every callback of the loop: nothing that was decided is left undone.
        guarded = [f"packages/pool-core/tests/test_{topic}.py" for topic in GUARDED]
        run_tests(session, *guarded, "-n", "2", env={"POOL_GUARD": "on"})


@nox.session(python=FLOOR)
def servers(session: nox.Session) -> None:
    """The real servers themselves: each comes up, says who it is, and survives what the tests do to it."""
    install(session, ["test", "servers"], PACKAGES)
    bring_servers(session)
    run_tests(session, "containers/tests")


@nox.session(python=FLOOR)
@nox.parametrize("backend", ["postgres", "redis", "mysql", "mongo"], ids=["postgres", "redis", "mysql", "mongo"])
def integration(session: nox.Session, backend: str) -> None:
    """One adapter against its real server, everything."""
    install(session, ["test", "servers"], ["pool-core", f"pool-{backend}"])
    bring_servers(session)
    run_tests(session, f"packages/pool-{backend}/tests")


@nox.session(python=PYTHONS[1:])
def cancellation(session: nox.Session) -> None:
    """All adapters' cancellation tests on the newer Pythons, whose asyncio differs."""
    install(session, ["test", "servers"], PACKAGES)
    bring_servers(session)
    run_tests(session, "packages", "-m", "cancellation")


def ask_adapters(session: nox.Session, *options: str) -> None:
    """The kit's questions to all adapters, with the releases of their drivers that these options of uv choose."""
    if session.venv_backend != "uv":
        session.skip("only uv can install other versions than the newest that fit")
    install(session, ["test", "servers"], PACKAGES, *options)
    bring_servers(session)

    def ask(package: str) -> object:
        return run_tests(session, f"packages/{package}/tests/test_conformance.py", silent=True)

    # Each in a process of its own: the kit counts files and threads, and servers of others start in the background. Two
    # at a time, since most of it is waiting.
    with concurrent.futures.ThreadPoolExecutor(2) as lanes:
        for output in lanes.map(ask, ADAPTERS):
            print(output, flush=True)


@nox.session(python=FLOOR)
def minimums(session: nox.Session) -> None:
    """The adapters with the lowest versions of their drivers that they claim to take."""
    ask_adapters(session, "--resolution", "lowest-direct")


@nox.session(python=PYTHONS[-1], default=False)
def latest(session: nox.Session) -> None:
    """The adapters with the newest releases of their drivers, also those that they do not claim to take yet."""
    place = Path(session.create_tmp(), "overrides.txt")
    projects = [
        nox.project.load_toml(ROOT / "packages" / package / "pyproject.toml")["project"] for package in ADAPTERS
    ]
    drivers = {re.split(r"[<>=\[]", line)[0] for project in projects for line in project["dependencies"]}
    place.write_text("\n".join(sorted(drivers - {"pool-core"})))
    ask_adapters(session, "--upgrade", "--override", str(place))


@nox.session(python=FLOOR)
def demo(session: nox.Session) -> None:
    """The main job: many tasks over a small pool on a real SQLite file, against connect-per-query."""
    install(session, [], ["pool-core", "pool-sqlite"])
    session.run("python", "examples/demo.py", *session.posargs)


@nox.session(python=FLOOR)
def build(session: nox.Session) -> None:
    """Wheels and sdists, checked, installed by plain pip into a clean environment, and tried there."""
    session.install("uv", "twine")
    place = Path(session.create_tmp()).resolve()
    shutil.rmtree(place)
    for package in PACKAGES:
        session.run("uv", "build", "--quiet", "--out-dir", str(place / "dist"), f"packages/{package}")
    made = sorted(map(str, (place / "dist").glob("pool_*")))
    session.run("twine", "check", "--strict", *made)
    session.run("python", "-m", "venv", str(place / "clean"))
    clean = str(next((place / "clean").glob("*/python")))
    wheels = [name for name in made if name.endswith(".whl")]
    session.run(clean, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wheels, external=True)
    # From another directory and in isolated mode, so that nothing of this work tree is found by accident.
    with session.chdir(place):
        session.run(clean, "-I", str(ROOT / "containers" / "smoke.py"), external=True)


@nox.session(python=FLOOR)
def docs(session: nox.Session) -> None:
    """The documentation, where a warning is an error; every snippet of it, and every example, is run."""
    install(session, ["docs"], PACKAGES)
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")
    bring_servers(session)
    run_tests(session, "docs", "examples/tests")


@nox.session(python=FLOOR, default=False)
@nox.parametrize("size", ["full", "quick"], ids=["full", "quick"])
def bench(session: nox.Session, size: str) -> None:
    """Our pool and others, side by side: full takes minutes, quick less than one."""
    install(session, ["servers", "bench"], PACKAGES)
    session.run("python", "-m", "benchmarks", *(["--quick"] if size == "quick" else []), *session.posargs)


@nox.session(python=FLOOR, default=False)
def soak(session: nox.Session) -> None:
    """Minutes of random load, kills and cancels whose books must balance; the deeper walk of the states."""
    install(session, ["test", "servers"], PACKAGES)
    bring_servers(session)
    run_tests(session, "packages", "-m", "soak", "--timeout", "1200")
