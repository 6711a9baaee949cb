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
from containers.kinds import KINDS, library
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
    full = {"/var/lib/postgresql/data": "size=4m"}
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


@pytest.mark.usefixtures("containers")
def test_a_package_s_server_starts_while_other_tests_run(tmp_path: Path) -> None:
    """Nobody should wait for what could have been under way."""
    package = tmp_path / "pool-redis" / "tests"
    package.mkdir(parents=True)
    wait = (
        "from containers.plugin import SERVERS\n"
        "def test_without_a_server(request):\n"
        "    started = request.config.stash[SERVERS]._shared['redis']\n"
        "    assert started.result(30).answers()\n"
    )
    done = run_pytest(package, wait + ASK)
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


@pytest.mark.parametrize("kind", KINDS)
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
