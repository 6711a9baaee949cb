"""Everything that is checked before a change lands: plain `nox`. `nox --list` names the parts.

The integration sessions need real servers: containers/setup.sh brings them. It may install Docker, so it runs only when
POOL_TEST_SETUP=1 (or CI=true) says that it may; otherwise the command to run by hand is printed. The same holds for the
Pythons that this machine lacks and containers/pythons.sh can bring.
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
sys.path.insert(0, str(ROOT))
from containers import support  # noqa: E402 - nox does not put this folder into the path

PACKAGES = [
    "pool-core",
    "pool-sqlite",
    "pool-postgres",
    "pool-redis",
    "pool-mysql",
    "pool-mongo",
    "pool-memcached",
    "pool-rabbitmq",
    "pool-odbc",
    "pool-neo4j",
    "pool-arangodb",
    "pool-psycopg",
    "pool-sqlalchemy",
]
ADAPTERS = [package for package in PACKAGES if package not in {"pool-core", "pool-sqlalchemy"}]
PYTHONS = ["3.11", "3.12", "3.13", "3.14", "3.15"]
FLOOR, NEWEST = PYTHONS[0], PYTHONS[-1]
DAILY = [FLOOR, "3.14", NEWEST]  # by default; the others are for `matrix` and for CI with more than one machine
FREE_THREADED = "3.14t"  # only in the matrix, and only where there is one
# What the matrix tries: the servers for the tests of each package.
SERVERS = {
    "core": [""],
    "sqlite": [""],
    "postgres": ["postgres:18 pgbouncer:1.26", "postgres:15 pgbouncer:1"],
    "redis": ["redis:8", "redis:7", "valkey:9"],
    "mysql": ["mysql:9", "mariadb:10.11"],
    "mongo": ["mongo:7"],
    "memcached": ["memcached:1"],
    "rabbitmq": ["rabbitmq:4"],
    "odbc": ["postgres:18", "mysql:9", "mariadb:10.11"],
    "neo4j": ["neo4j:5"],
    "arangodb": ["arangodb:3.12"],
    "psycopg": ["postgres:18 pgbouncer:1.26", "postgres:15 pgbouncer:1"],
    "sqlalchemy": ["postgres:18 mysql:9 mariadb:10.11"],
}
WITH_SERVERS = [adapter for adapter in SERVERS if any(SERVERS[adapter])]
HALVES = {"mongo": ["not motor", "motor"]}  # their tests mostly wait: two processes, by what -k selects
EXTRAS = {"pool-mongo": "[motor]", "pool-psycopg": "[binary]"}  # that their tests need
NEEDS = {  # other packages that their tests need, if only to ask the servers who they are
    "odbc": ["pool-postgres", "pool-mysql"],
    "psycopg": ["pool-postgres"],
    "sqlalchemy": ["pool-postgres", "pool-psycopg", "pool-mysql", "pool-sqlite"],
}
DECIDERS = [
    "_agenda.py",
    "_call.py",
    "_calls.py",
    "_check.py",
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
    "_repair.py",
    "_shell.py",
    "_slot.py",
    "_state.py",
    "_statistics.py",
    "_supply.py",
]  # every branch of these is tested
GUARDED = [
    "guard",
    "at_rest",
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
BRING_PYTHON = ROOT / "containers" / "pythons.sh"
ONLY_OLDER_SERVERS = 3  # exit code of setup.sh
SCHEMAS = {  # that check-jsonschema carries
    "vendor.github-workflows": ".github/workflows/*.yml",
    "vendor.dependabot": ".github/dependabot.yml",
    "vendor.readthedocs": ".readthedocs.yaml",
    "vendor.citation-file-format": "CITATION.cff",
}
NEED_SERVERS = {"servers", "integration", "dialect", "cancellation", "minimums", "latest", "docs", "soak", "matrix"}
RESULTS = Path(tempfile.gettempdir(), f"pool-core-results-{os.getpid()}")
SETUP_LOG = RESULTS.with_suffix(".setup.log")
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = [
    "lint",
    *(f"tests-{python}" for python in DAILY),
    "servers",
    "integration",
    *(f"cancellation-{python}" for python in DAILY[1:]),
    "instructions",
    "demo",
    "build",
    "docs",
    "inspector",
    "dashboards",
]

os.environ["POOL_TEST_RESULTS"] = str(RESULTS)
nox.options.report = str(RESULTS.with_suffix(".json"))  # its times are printed at the end


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


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in {"1", "true", "yes"}


def may_set_up() -> bool:
    """Whether this run may install and start things on this machine."""
    return is_set("CI") or is_set("POOL_TEST_SETUP")


def offer_newer_pythons() -> None:
    """Put the Pythons into PATH that containers/pythons.sh has brought, or brings when a session first asks for one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pool-core", "pythons")
    cache = Path(os.environ.get("POOL_TEST_PYTHONS") or cache)
    place = ROOT / ".nox" / "pythons"
    place.mkdir(parents=True, exist_ok=True)
    for minor in PYTHONS:
        name = f"python{minor}"
        if shutil.which(name):
            continue
        # A script also where there is one already: a run beside this one may be using it.
        if (cache / minor / "usr" / "bin" / name).exists() or may_set_up():
            script = f'path=$(bash {BRING_PYTHON} {minor} 2>"{place}/{minor}.log") && exec "$path" "$@"'
            partial = place / f"{name}.partial"
            partial.write_text(f"#!/bin/sh\n{script}\nexit 1\n")
            partial.chmod(0o755)
            partial.rename(place / name)
    os.environ["PATH"] = f"{place}{os.pathsep}{os.environ['PATH']}"
    os.environ.setdefault("PY_DISCOVERY_TIMEOUT", "300")  # seconds for the first call of such a script


allow_pyenv_pythons()
offer_newer_pythons()


# --- what the sessions share ------------------------------------------------------------------------------------------

setups: list[subprocess.Popen[bytes]] = []
warnings: list[str] = []  # repeated at the end


@atexit.register
def report() -> None:
    """After nox's own table: times, which servers were asked, and how many tests there were over all sessions."""
    for process in setups:
        if process.poll() is None:
            process.terminate()
    SETUP_LOG.unlink(missing_ok=True)
    sys.stderr.flush()
    times = RESULTS.with_suffix(".json")
    if times.exists():
        sessions = json.loads(times.read_text())["sessions"]
        times.unlink()
        print("\ntimes:")
        for session in sessions:
            print(
                f"{session['duration'] / 60:5.1f} min  {(session['signatures'] or [session['name']])[0]}: {session['result']}"
            )
        print(f"{sum(session['duration'] for session in sessions) / 60:5.1f} min in all")
    for log in sorted((ROOT / ".nox" / "pythons").glob("*.log")):
        text = log.read_text()
        if "FAILED" in text:
            warnings.append(f"PYTHON {log.stem} IS MISSING: {text.strip().splitlines()[-1]}")
    if RESULTS.exists():
        results = [json.loads(file.read_text()) for file in RESULTS.glob("*.json")]
        shutil.rmtree(RESULTS)
        servers = sorted({line for result in results for line in result["servers"]})
        print("\nservers, by their true names:")
        print(*(servers or ["none were asked"]), sep="\n")
        total = {word: sum(result[word] for result in results) for word in ("passed", "failed", "skipped")}
        print("\n".join(["", *warnings]) if warnings else "")
        print("tests: {passed} passed, {failed} failed, {skipped} skipped".format(**total), flush=True)


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


def use_main_servers(session: nox.Session) -> None:
    """Where an adapter has several servers, run its tests on one: the others are for `matrix`."""
    newer = not (setups and setups[0].returncode == ONLY_OLDER_SERVERS)
    main = f"postgres redis {'mysql' if newer else 'mariadb'}"
    session.env["POOL_TEST_SERVERS"] = os.environ.get("POOL_TEST_SERVERS", main)


def begin_servers(session: nox.Session) -> None:
    """Start to bring servers in the background if a later session needs them, so that it does not wait for them."""
    queue = session._runner.manifest.list_all_sessions()
    if may_set_up() and any(selected and runner.name in NEED_SERVERS for runner, selected in queue):
        start_setup(session)


def start_setup(session: nox.Session) -> None:
    """Start setup.sh, once in a run."""
    if setups:
        return
    session.log(
        f"{SETUP.relative_to(ROOT)} works in the background: the first session that needs servers prints its log"
    )
    python = {"PYTHON": sys.executable} if importlib.util.find_spec("pip") else {}
    with SETUP_LOG.open("wb") as log:
        command = ["bash", str(SETUP)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=os.environ | python
        )
    setups.append(process)


def bring_servers(session: nox.Session) -> None:
    """Set the servers' images up once, if that is allowed here; otherwise say how."""
    if not may_set_up():
        session.log(f"servers that are missing can be had by: sudo {SETUP}   (or set POOL_TEST_SETUP=1)")
        return
    start_setup(session)
    first = setups[0].returncode is None
    code = setups[0].wait()
    if first:
        print(SETUP_LOG.read_text(), end="", flush=True)
    if code == ONLY_OLDER_SERVERS:
        warning = f"NEWER SERVERS ARE MISSING: {SETUP_LOG.read_text().strip().splitlines()[-1]}"
        session.warn(warning)
        if warning not in warnings:
            warnings.append(warning)
    elif code:
        session.error(f"{SETUP.relative_to(ROOT)} failed: {SETUP_LOG.read_text().strip().splitlines()[-1]}")


def bring_program(session: nox.Session, program: str, *packages: str) -> bool:
    """Tell whether there is a program; where that is allowed, install Debian's packages for it."""
    if not shutil.which(program) and may_set_up() and shutil.which("apt-get") and os.geteuid() == 0:
        options = ("-y", "-qq", "--no-install-recommends")
        session.run("apt-get", "install", *options, *packages, external=True, silent=True, success_codes=[0, 100])
    return shutil.which(program) is not None


# --- the sessions -----------------------------------------------------------------------------------------------------


@nox.session(python=FLOOR)
def lint(session: nox.Session) -> None:
    """ruff, mypy --strict and pyright."""
    begin_servers(session)
    install(session, ["dev"], PACKAGES)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")
    session.run("python", "tools/words.py")
    session.run("zizmor", "--offline", "--quiet", ".github")
    for schema, pattern in SCHEMAS.items():
        files = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(pattern))]
        session.run("check-jsonschema", "--builtin-schema", schema, *files)
    # Tests of different packages share file names, so each package's are checked on their own.
    sources = [f"packages/{package}/src" for package in PACKAGES]
    session.run("mypy", *sources)
    session.run("mypy", "--python-version", NEWEST, *sources)
    for tests in (f"packages/{package}/tests" for package in PACKAGES):
        session.run("mypy", "--explicit-package-bases", tests, env={"MYPYPATH": f"{base(tests)}:."})
    options = ("--explicit-package-bases", "--exclude", "containers/images/")
    others = ("containers", "examples", "benchmarks", "browser", "dashboards", "tools", "noxfile.py", "conftest.py")
    session.run("mypy", *options, *others, env={"MYPYPATH": "."})
    python = shutil.which("python", path=session.bin) or sys.executable
    session.run("pyright", "--pythonpath", python)
    session.run("pyright", "--pythonpath", python, "--pythonversion", NEWEST, *sources[1:])


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The core and its embedded default: no server needed."""
    begin_servers(session)
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
@nox.parametrize("backend", WITH_SERVERS, ids=WITH_SERVERS)
def integration(session: nox.Session, backend: str) -> None:
    """One adapter against its main server, everything; `matrix` has the other servers."""
    install(session, ["test", "servers"], ["pool-core", f"pool-{backend}", *NEEDS.get(backend, [])])
    bring_servers(session)
    use_main_servers(session)
    tests = f"packages/pool-{backend}/tests"
    if backend not in HALVES:
        run_tests(session, tests)
        return
    with concurrent.futures.ThreadPoolExecutor(2) as lanes:
        for output in lanes.map(lambda half: run_tests(session, tests, "-k", half, silent=True), HALVES[backend]):
            print(output, flush=True)


@nox.session(python=PYTHONS[1:])
def cancellation(session: nox.Session) -> None:
    """All adapters' cancellation tests on the newer Pythons, whose asyncio differs; each on its main server."""
    install(session, ["test", "servers"], PACKAGES)
    bring_servers(session)
    use_main_servers(session)
    # Those of pool-odbc last: connections that they cut off leave queries on the server, which other tests would count.
    folders = [f"packages/{package}" for package in sorted(PACKAGES, key="pool-odbc".__eq__)]
    run_tests(session, *folders, "-m", "cancellation")


def ask_adapters(session: nox.Session, *options: str) -> None:
    """Run the conformance suite of all adapters, with the releases of their drivers that these options of uv choose."""
    if session.venv_backend != "uv":
        session.skip("only uv can install other versions than the newest that fit")
    install(session, ["test", "servers"], PACKAGES, *options)
    bring_servers(session)
    use_main_servers(session)

    def ask(package: str) -> object:
        return run_tests(session, f"packages/{package}/tests/test_conformance.py", silent=True)

    # Each in a process of its own: the suite counts files and threads, and servers of others start in the background. Two
    # at a time, since most of it is waiting.
    with concurrent.futures.ThreadPoolExecutor(2) as lanes:
        for output in lanes.map(ask, ADAPTERS):
            print(output, flush=True)


@nox.session(python=FLOOR)
def minimums(session: nox.Session) -> None:
    """The adapters with the lowest versions of their drivers that they claim to take."""
    ask_adapters(session, "--resolution", "lowest-direct")


@nox.session(python=NEWEST)
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
    session.install("uv", "twine", "pytest", "pytest-timeout")
    run_tests(session, "tools")
    place = Path(session.create_tmp()).resolve()
    shutil.rmtree(place)
    for package in PACKAGES:
        session.run("uv", "build", "--quiet", "--out-dir", str(place / "dist"), f"packages/{package}")
    made = sorted(map(str, (place / "dist").glob("pool_*")))
    session.run("twine", "check", "--strict", *made)
    session.run("python", "-m", "venv", str(place / "clean"))
    clean = str(next((place / "clean").glob("*/python")))
    wheels = [name for name in made if name.endswith(".whl")]
    options = ("--quiet", "--disable-pip-version-check")
    session.run(clean, "-m", "pip", "install", *options, *wheels, "psycopg[binary]", external=True)
    # From another directory and in isolated mode, so that nothing of this work tree is found by accident.
    with session.chdir(place):
        session.run(clean, "-I", str(ROOT / "containers" / "smoke.py"), external=True)
    # Distributors run the tests of an unpacked sdist.
    session.install(*nox.project.dependency_groups(PYPROJECT, "test", "servers"), *wheels)
    for name, some in {"pool_core": "test_get.py", "pool_sqlite": "test_driver.py"}.items():
        shutil.unpack_archive(next((place / "dist").glob(f"{name}-*.tar.gz")), place / "sdist", filter="data")
        with session.chdir(next((place / "sdist").glob(f"{name}-*"))):
            run_tests(session, "-q", f"tests/{some}")


@nox.session(python=FLOOR)
def docs(session: nox.Session) -> None:
    """The documentation, where a warning is an error; every snippet of it, and every example, is run."""
    install(session, ["docs"], PACKAGES)
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")
    bring_servers(session)
    run_tests(session, "docs", "examples/tests")


@nox.session(name="docs-html", python=None)
def docs_html(session: nox.Session) -> None:
    """The documentation alone, without running it."""
    install(session, ["docs"], PACKAGES)
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")


@nox.session(python=False)
def release(session: nox.Session) -> None:
    """Give all packages a new version and date their changelogs: `nox -s release -- 0.2.0`."""
    session.run(sys.executable, "tools/release.py", "prepare", *session.posargs, external=True)


@nox.session(name="release-check", python=False)
def release_check(session: nox.Session) -> None:
    """Say what stands between the packages and a release; with a tag, `-- v0.2.0`, whether it fits."""
    session.run(sys.executable, "tools/release.py", "check", *session.posargs, external=True)


@nox.session(python=FLOOR)
def inspector(session: nox.Session) -> None:
    """The inspector's page in headless Chromium; `-- --pictures` makes the pictures of the documentation anew."""
    if not bring_program(session, "chromedriver", "chromium", "chromium-driver"):
        warnings.append("THE INSPECTOR'S PAGE WAS NOT LOOKED AT: apt-get install chromium chromium-driver")
        session.skip(warnings[-1])
    install(session, ["test", "browser"], ["pool-core"])
    run_tests(session, "browser/tests")


@nox.session(python=FLOOR)
def dashboards(session: nox.Session) -> None:
    """The dashboard and the alerts against what the exporter exports, and in a real Prometheus where there is one."""
    if not bring_program(session, "promtool", "prometheus"):
        warnings.append("THE ALERTS WERE NOT TRIED: promtool is missing (apt-get install prometheus)")
        session.warn(warnings[-1])
    install(session, ["test"], ["pool-core"])
    run_tests(session, "dashboards/tests")


@nox.session(python=FLOOR)
@nox.parametrize("size", ["full", "quick"], ids=["full", "quick"])
def bench(session: nox.Session, size: str) -> None:
    """Our pool and others, side by side: full takes minutes, quick less than one."""
    install(session, ["servers", "bench"], PACKAGES)
    session.run("python", "-m", "benchmarks", *(["--quick"] if size == "quick" else []), *session.posargs)


@nox.session(python=FLOOR)
def instructions(session: nox.Session) -> None:
    """What a get and its return cost in machine instructions, against a named commit: the same number on a noisy machine."""
    if not bring_program(session, "valgrind", "valgrind"):
        warnings.append("INSTRUCTIONS WERE NOT COUNTED: valgrind is missing (apt-get install valgrind)")
        session.skip(warnings[-1])
    install(session, [], ["pool-core"])
    session.run("python", "-m", "benchmarks.instructions", *session.posargs)


@nox.session(python=FLOOR)
@nox.parametrize("sqlalchemy", ["2.1", "2.0"], ids=["2.1", "2.0"])
def dialect(session: nox.Session, sqlalchemy: str) -> None:
    """SQLAlchemy's own dialect suite over our pool and over its own, on each database: the same tests pass."""
    install(session, ["test", "servers"], PACKAGES)
    session.install(f"sqlalchemy[asyncio]=={sqlalchemy}.*")
    bring_servers(session)
    run_tests(session, "packages/pool-sqlalchemy/tests/dialect_suite.py")


@nox.session(python=FLOOR)
def soak(session: nox.Session) -> None:
    """Minutes of random load, kills and cancels whose books must balance; the deeper walk of the states."""
    install(session, ["test", "servers"], PACKAGES)
    bring_servers(session)
    run_tests(session, "packages", "-m", "soak", "--timeout", "1200")


@nox.session(python=False)
@nox.parametrize("adapter", list(SERVERS), ids=list(SERVERS))
def matrix(session: nox.Session, adapter: str) -> None:
    """Every test of an adapter on every server version and Python; the results go into docs/support.md.

    `nox -s "matrix(mysql)"` is one part; `nox -s "matrix(mysql)" -- 3.14 3.15` only these Pythons.
    """
    uv = shutil.which("uv") or session.error("the matrix needs uv: pip install uv")
    pythons = [*PYTHONS, *([FREE_THREADED] if adapter in {"core", "sqlite"} else [])]
    if unknown := set(session.posargs) - set(pythons):
        session.error(f"{', '.join(sorted(unknown))}: no Python of this part; choose from {', '.join(pythons)}")
    bring_servers(session)
    failed = 0
    for python in session.posargs or pythons:
        rows = run_pairs(session, uv, adapter, python)
        # At once: a part may take half an hour, and when it is stopped nothing that it has found is lost.
        support.merge(rows)
        failed += sum(row.get("failed", 0) for row in rows)
    if failed:
        session.error(f"{failed} tests failed: see docs/support.md")


def run_pairs(session: nox.Session, uv: str, adapter: str, python: str) -> list[support.Row]:
    """One Python with every server of an adapter."""
    interpreter = shutil.which(f"python{python}")
    runs = interpreter and subprocess.run([interpreter, "--version"], capture_output=True, check=False).returncode == 0
    if not interpreter or not runs:
        return [support.missing(adapter, choice, python, "no such Python was found") for choice in SERVERS[adapter]]
    venv = ROOT / ".nox" / f"matrix-{adapter}-{python}"
    session.run(uv, "venv", "--quiet", "--clear", "--python", interpreter, str(venv), external=True)
    mine = str(next(venv.glob("*/python")))
    packages = ["pool-core", f"pool-{adapter}", *NEEDS.get(adapter, [])] if adapter != "core" else ["pool-core"]
    named = [part for package in packages for part in ("-e", f"packages/{package}{EXTRAS.get(package, '')}")]
    groups = nox.project.dependency_groups(PYPROJECT, "test", "servers")
    # Where a driver has no wheel for this Python yet, the rows below say so.
    session.run(
        uv, "pip", "install", "--quiet", "--python", mine, *groups, *named, external=True, success_codes=[0, 1, 2]
    )
    rows = []
    for choice in SERVERS[adapter]:
        left = Path(session.create_tmp(), f"results-{python}")
        shutil.rmtree(left, ignore_errors=True)
        env = {"POOL_TEST_SERVERS": choice, "POOL_TEST_RESULTS": str(left.resolve()), "POOL_GUARD": "off"}
        options = ["-n", "2"] if adapter == "core" else []
        tests = [mine, "-m", "pytest", "-q", f"packages/pool-{adapter}/tests", *options]
        session.run(*tests, env=env, external=True, success_codes=[0, 1, 2, 3, 4])
        results = [json.loads(file.read_text()) for file in left.glob("*.json")]
        try:
            rows.append(support.row(adapter, choice, python, results[0]))
        except (IndexError, KeyError):
            rows.append(support.missing(adapter, choice, python, "the tests could not be run: no driver or no server"))
        RESULTS.mkdir(exist_ok=True)
        for file in left.glob("*.json"):
            shutil.copy(file, RESULTS)
    return rows
