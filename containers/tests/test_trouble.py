"""What goes wrong is said clearly and soon, and nothing is left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from containers import sources
from containers.kinds import KINDS, Kind, library
from containers.servers import Server, ServerFactory, ServerFailed, Servers
from containers.sources import OWNER_LABEL, ContainerSite, ContainerSource, ProcessSource, Unavailable

ROOT = Path(__file__).parents[2]
REDIS = KINDS["redis"]


@pytest.fixture
def own() -> Iterator[Servers]:
    """Servers of this test alone."""
    servers = Servers()
    yield servers
    servers.close()


@pytest.fixture
def containers() -> Iterator[ContainerSource]:
    """Docker, where there is any."""
    try:
        source = ContainerSource()
        source.prepare(REDIS)
    except Unavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"NO DOCKER: {error}")
    yield source
    source.close()


def run_pytest(folder: Path, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A test run of its own on one file of tests."""
    (folder / "test_it.py").write_text(text)
    kept = {name: value for name, value in os.environ.items() if name not in {"CI", "POOL_TEST_RESULTS"}}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "containers.plugin", "-p", "no:cacheprovider", "-rs", str(folder)],
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def owned(mark: str) -> list[str]:
    client = library("docker").from_env()
    try:
        everything = client.containers.list(all=True, filters={"label": OWNER_LABEL})
        return [container.name for container in everything if f"/{mark}/" in container.labels[OWNER_LABEL]]
    finally:
        client.close()


ASK = "def test_it(server):\n    server('redis')\n"
NOTHING = {"DOCKER_HOST": "unix:///nonexistent/docker.sock", "PATH": ""}


def test_without_any_server_a_person_gets_a_loud_skip_that_says_what_to_do(tmp_path: Path) -> None:
    """Who lacks Docker must learn how to get it, and may still run the rest."""
    done = run_pytest(tmp_path, ASK, **NOTHING)
    assert done.returncode == 0
    assert "1 skipped" in done.stdout
    assert "NO SERVER: no redis server can be had" in done.stdout
    assert "containers/setup.sh" in done.stdout
    assert "Debian package redis-server" in done.stdout
    assert "POOL_TEST_REDIS_URL" in done.stdout


def test_without_any_server_a_run_with_ci_set_fails(tmp_path: Path) -> None:
    """A green CI that skipped every real server would prove nothing."""
    done = run_pytest(tmp_path, ASK, **NOTHING, CI="true")
    assert done.returncode == 1
    assert "CI is set" in done.stdout


def test_an_older_server_is_used_loudly_where_the_newer_image_is_missing(
    own: Servers, containers: ContainerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer images come from a suite that changes every day: most tests are worth running without them."""
    prepare = ContainerSource.prepare

    def prepare_the_older(self: ContainerSource, kind: Kind) -> None:
        if kind.image == "redis:8":
            raise Unavailable("no image redis:8 and no registry")
        prepare(self, kind)

    monkeypatch.setattr(ContainerSource, "prepare", prepare_the_older)
    assert own.get("redis").version.startswith("7")
    assert own.notes == ["OLDER SERVER: the tests run on redis:7. containers: no image redis:8 and no registry"]
    with pytest.raises(Unavailable, match="no redis 8 server can be had"):
        own.get("redis", 8)


def test_a_choice_of_servers_with_a_typing_error_is_refused(tmp_path: Path) -> None:
    """A version that was not found would run the tests on another one."""
    done = run_pytest(tmp_path, ASK, POOL_TEST_SERVERS="mariadb redis:6")
    assert done.returncode == 4
    assert "POOL_TEST_SERVERS='mariadb redis:6': no redis of version 6: choose one of 8, 7" in done.stderr


@pytest.mark.parametrize(("choice", "names"), [("", "redis valkey"), ("valkey", "valkey"), ("mariadb", "redis valkey")])
def test_tests_of_a_protocol_run_on_each_server_or_on_those_chosen(tmp_path: Path, choice: str, names: str) -> None:
    """Redis and Valkey differ; so do MySQL and MariaDB."""
    package = tmp_path / "pool-redis"
    package.mkdir()
    done = run_pytest(package, "def test_it(dialect): print(f'ran on {dialect}')\n", POOL_TEST_SERVERS=choice)
    assert done.returncode == 0, done.stdout
    done = run_pytest(package, "def test_it(dialect): assert not dialect\n", POOL_TEST_SERVERS=choice)
    assert [name for name in ("redis", "valkey", "mysql") if f"test_it[{name}]" in done.stdout] == names.split()


def test_a_server_that_ends_while_starting_shows_its_last_log_lines(own: Servers) -> None:
    """`did not start` alone sends people guessing."""
    began = time.monotonic()
    with pytest.raises(ServerFailed, match=r"(?s)ended while starting.*max_connections.*nonsense"):
        own.fresh("postgres", ["-c", "max_connections=nonsense"])
    assert time.monotonic() - began < 20


def test_a_server_that_never_answers_is_given_up_in_bounded_time(own: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test run must not wait for ever on one server."""
    monkeypatch.setattr("containers.servers.START_TIMEOUT", 1.0)
    with pytest.raises(ServerFailed, match=r"(?s)did not answer within 1 s.*last log lines"):
        own.fresh("redis", ["--port", "6380"])  # where nobody will look for it


def test_a_taken_port_is_named(containers: ContainerSource) -> None:
    """After a stop, somebody else may have taken the port that a server must come back to."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        image = next(iter(containers._images.values()))
        site = ContainerSite(REDIS, REDIS.login, image, (), None, None, port)
        with Server(REDIS, site, Event()) as mine, pytest.raises(ServerFailed, match=rf"(?s){port}.*in use"):
            mine.start()
    assert str(port) not in str(containers._client.api.containers(all=True))


def test_a_full_disk_is_named(containers: ContainerSource) -> None:
    """The server's own words about it are in its log."""
    postgres = KINDS["postgres"]
    containers.prepare(postgres)
    image = containers._images[postgres.image]
    full = {"/var/lib/postgresql": "size=4m"}
    site = ContainerSite(postgres, postgres.login, image, (), None, None, None, full)
    with Server(postgres, site, Event()) as mine, pytest.raises(ServerFailed, match="No space left on device"):
        mine.start()


def test_a_docker_that_does_not_answer_is_given_up_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hung daemon takes connections and says nothing, for ever."""
    monkeypatch.setattr(sources, "PING_TIMEOUT", 0.3)
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(tmp_path / "docker.sock"))
        daemon.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
        with pytest.raises(Unavailable, match="does not answer"):
            ContainerSource()


def test_a_docker_that_one_may_not_use_is_told_from_one_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is another: a group, not a set-up. (Root may use every socket, so the refusal is scripted.)"""

    def refuse(self: socket.socket, address: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(Unavailable, match="you may not use .*: join the group 'docker'"):
        ContainerSource()


def test_the_set_up_says_that_it_needs_root() -> None:
    """Where Docker is not running, only root can start it."""
    done = subprocess.run(
        ["bash", "-s"],
        input=(ROOT / "containers" / "setup.sh").read_text(),
        user="nobody" if os.getuid() == 0 else None,
        extra_groups=[] if os.getuid() == 0 else None,
        env={"PATH": os.environ["PATH"], "DOCKER_HOST": "unix:///nonexistent/docker.sock"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "FAILED: starting Docker needs root" in done.stderr


STUBS = {
    "docker": (
        'case "$1 $2 $3" in info*|version*) echo 20 ;; "image inspect "*) case "$*" in *forky*|*built*) exit 1 ;; '
        "*postgres:15|*redis:7|*mariadb:10.11|*mongo:7|*pgbouncer:1) ;; *) exit 1 ;; esac ;; *) exit 1 ;; esac"
    ),
    "patchelf": "exit 1",
    "mmdebstrap": "echo 'E: rabbitmq-server depends on what the archive lacks'; exit 1",
    "apt-get": "echo 'http://archive.invalid bookworm main'",
    "python": "exit 0",
}


def run_stubbed(script: str, folder: Path, *arguments: str, user: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script on a machine that is played: it has the images of Debian 12, no registry, and a broken archive."""
    for name, stub in (STUBS | {"id": f"echo {user}"}).items():
        (folder / name).write_text(f"#!/bin/sh\n{stub}\n")
        (folder / name).chmod(0o755)
    places = {"PYTHON": str(folder / "python"), "TMPDIR": str(folder), "POOL_TEST_PYTHONS": str(folder / "pythons")}
    return subprocess.run(
        ["bash", str(ROOT / "containers" / script), *arguments],
        env={"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder)} | places,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_set_up_says_which_part_it_could_not_bring_and_brings_the_other(tmp_path: Path) -> None:
    """The newer suite changes every day, and one day it cannot be installed."""
    done = run_stubbed("setup.sh", tmp_path)
    assert done.returncode == 3
    assert "the bookworm images are there" in done.stdout
    assert "rabbitmq-server depends on what the archive lacks" in done.stderr
    assert "FAILED: no forky images: the reason is above" in done.stderr
    assert run_stubbed("setup.sh", tmp_path, "bookworm").returncode == 0
    assert run_stubbed("setup.sh", tmp_path, "forky").returncode == 1


def test_the_set_up_refuses_a_part_that_there_is_not(tmp_path: Path) -> None:
    """A typing error must not build everything."""
    done = run_stubbed("setup.sh", tmp_path, "trixie")
    assert done.returncode == 2
    assert "no part 'trixie': give bookworm or forky" in done.stderr


def test_a_python_that_cannot_be_unpacked_is_named_with_the_archives_words(tmp_path: Path) -> None:
    """And nothing half unpacked is left for the next run to take for a Python."""
    done = run_stubbed("pythons.sh", tmp_path, "3.14")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "depends on what the archive lacks" in done.stderr
    assert "FAILED: mmdebstrap could not unpack Python 3.14" in done.stderr
    assert not (tmp_path / "pythons" / "3.14").exists()


def test_a_python_is_asked_for_by_its_version(tmp_path: Path) -> None:
    """Everything else would become a path of root's."""
    done = run_stubbed("pythons.sh", tmp_path, "../3.14")
    assert done.returncode == 2
    assert "'../3.14' is no Python version: give one as in 3.14" in done.stderr


def test_a_python_is_brought_by_root_only_and_another_user_learns_the_command(tmp_path: Path) -> None:
    """It may install Debian packages."""
    done = run_stubbed("pythons.sh", tmp_path, "3.14", user=1000)
    assert done.returncode == 1
    assert "needs root. Run: sudo " in done.stderr


@pytest.mark.usefixtures("containers")
def test_a_package_s_server_starts_while_other_tests_run(tmp_path: Path) -> None:
    """Nobody should wait for what could have been under way."""
    package = tmp_path / "pool-redis" / "tests"
    package.mkdir(parents=True)
    wait = (
        "from containers.plugin import SERVERS\n"
        "def test_without_a_server(request):\n"
        "    [started] = request.config.stash[SERVERS]._shared.values()\n"
        "    assert started.result(30).answers()\n"
    )
    done = run_pytest(package, wait + ASK, POOL_TEST_SERVERS="redis")
    assert done.returncode == 0, done.stdout
    assert "redis: Redis" in done.stdout


@pytest.mark.usefixtures("containers")
def test_ctrl_c_leaves_no_container(tmp_path: Path) -> None:
    """Servers that stay behind eat a person's memory."""
    ask = (
        "import os, signal\n"
        "def test_it(server):\n"
        "    server('redis'), server('redis', fresh=True)\n"
        "    print(f'pid={os.getpid()}=')\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = run_pytest(tmp_path, ask, PYTEST_ADDOPTS="-s")
    assert done.returncode == 2
    assert owned(done.stdout.split("pid=")[1].split("=")[0]) == []


def test_what_a_killed_run_left_is_swept_and_what_a_living_run_has_is_not(
    tmp_path: Path, containers: ContainerSource, server: ServerFactory
) -> None:
    """SIGKILL lets nobody tidy up, and two runs at once must not remove each other's servers."""
    ask = (
        "import os, signal\n"
        "def test_it(server):\n"
        "    print('id=' + server('redis')._site.id + '=', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run_pytest(tmp_path, ask, PYTEST_ADDOPTS="-s")
    assert done.returncode == -signal.SIGKILL
    left = done.stdout.split("id=")[1].split("=")[0]
    mine = server("redis")
    containers._sweep()  # unless a run beside this one did so already
    assert left not in {container.id for container in containers._client.containers.list(all=True)}
    assert mine.answers()


def test_a_server_given_by_url_is_used_and_never_disturbed(
    server: ServerFactory, own: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is somebody else's."""
    monkeypatch.setenv("POOL_TEST_REDIS_URL", server("redis").url)
    given = own.get("redis")
    assert given.port == server("redis").port
    assert given.label == "given by POOL_TEST_REDIS_URL"
    for fault in (given.stop, given.kill, given.pause):
        with pytest.raises(RuntimeError, match="POOL_TEST_REDIS_URL is not ours"):
            fault()
    with own.fresh("redis") as mine:
        mine.kill()
    assert given.answers()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].programs])
def test_without_docker_an_installed_server_does_the_same(
    own: Servers, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not everybody may run Docker."""
    if reason := KINDS[kind].missing():
        pytest.skip(f"NOT INSTALLED HERE: {reason}")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    mine = own.get(kind)
    assert mine.label == "local process"
    port = mine.port
    mine.pause()
    mine.unpause()
    mine.kill()
    assert not mine.answers()
    mine.start()
    mine.stop()
    assert not mine.answers()
    mine.start()
    assert mine.port == port
    assert mine.answers()


def test_processes_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    """As with containers."""
    installed = [kind for kind in ("postgres", "redis", "mariadb") if not KINDS[kind].missing()]
    if not installed:
        pytest.skip("NOT INSTALLED HERE: no server at all")
    ask = (
        "import os, signal\n"
        "def test_it(server):\n"
        f"    site = server({installed[0]!r})._site\n"
        "    print(f'left={site._process.pid},{site._directory}=', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run_pytest(tmp_path, ask, PYTEST_ADDOPTS="-s", DOCKER_HOST="unix:///nonexistent/docker.sock")
    pid, directory = done.stdout.split("left=")[1].split("=")[0].split(",")
    ProcessSource()  # unless a run beside this one did so already
    assert not Path(directory).exists()
    began = time.monotonic()
    while library("psutil").pid_exists(int(pid)):  # the kernel takes a moment to bury it
        assert time.monotonic() - began < 10
        time.sleep(0.02)
