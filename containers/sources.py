"""Where a server runs: in a container, as a process of an ordinary user, or somewhere that a person named by URL.

Each kind of place offers the same methods. None of them waits for the server to answer: `servers` does that.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from .address import Address
from .kinds import Kind, Place, find, library

PREFIX = "debian-built/"  # of the images that setup.sh builds
SETUP = Path(__file__).with_name("setup.sh")
OWNER_LABEL = "pool-core.owner"
STOP_TIMEOUT = 15  # seconds for a graceful end, then it is killed
PING_TIMEOUT = 5  # seconds for the Docker daemon to show that it is alive
DOCKER_TIMEOUT = 30  # seconds for one call of the Docker daemon


class Unavailable(Exception):
    """This kind of server cannot be had in this way; the text says why and what to do."""


class Site(Protocol):
    """A place in which one server runs."""

    address: Address
    label: str  # what a report calls it
    inside: Address  # where another server at the same kind of place reaches it

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def unpause(self) -> None: ...
    def remove(self) -> None: ...
    def alive(self) -> bool: ...
    def logs(self) -> str: ...
    def execute(self, command: Sequence[str]) -> str: ...


class Source(Protocol):
    """A way to get servers."""

    def prepare(self, kind: Kind) -> None:
        """Bring what takes long (an image). Raises `Unavailable`."""

    def make(self, kind: Kind, login: Address, arguments: Sequence[str], upstream: Site | None) -> Site:
        """A place for one server, not yet started. Raises `Unavailable`."""
        ...

    def close(self) -> None: ...


# --- what is common ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    """A port that nobody listens on, below the range from which systems draw the ports of outgoing connections.

    A server must come back at the same port, and a port of that range could be taken meanwhile: even by a client of
    ours that connects to itself.
    """
    for port in random.sample(range(20000, 32000), 200):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise Unavailable("no free port between 20000 and 32000 on 127.0.0.1")


def owner() -> str:
    """This process, so that what it leaves behind when killed can be told from what belongs to a living run."""
    process = library("psutil").Process()
    return f"{socket.gethostname()}/{os.getpid()}/{process.create_time():.0f}"


def is_orphan(mark: str) -> bool:
    """Whether the process that made something is gone. Of another machine's processes nothing is known: False."""
    psutil = library("psutil")
    try:
        host, pid, created = mark.rsplit("/", 2)
        if host != socket.gethostname():
            return False
        return bool(abs(psutil.Process(int(pid)).create_time() - int(created)) > 2)
    except psutil.NoSuchProcess:
        return True
    except ValueError:
        return False


# --- containers -------------------------------------------------------------------------------------------------------


class ContainerSource:
    """Containers through testcontainers: official images where they can be had, else those that setup.sh built."""

    def __init__(self) -> None:
        check_docker()
        # testcontainers reads its settings when it is imported. Ryuk, its own sweeper, needs an image that not every
        # machine can pull: what killed runs leave behind is swept here.
        os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                docker = library("docker")
                library("testcontainers.core.container")
                settings = library("testcontainers.core.config").testcontainers_config
        except ImportError as error:
            raise Unavailable(f"{error.name} is not installed (dependency group 'servers')") from None
        self._hub = settings.hub_image_name_prefix
        settings.hub_image_name_prefix = ""  # the whole name is given below
        self._client: Any = docker.from_env(timeout=DOCKER_TIMEOUT)
        self._images: dict[str, str] = {}
        self._network: Any = None
        self._lock = threading.Lock()
        self._sweep()

    def prepare(self, kind: Kind) -> None:
        absent = library("docker.errors").ImageNotFound
        if kind.image in self._images:
            return
        for name in (self._hub + kind.image, PREFIX + kind.image):
            with contextlib.suppress(absent):
                self._client.images.get(name)
                self._images[kind.image] = name
                return
        try:
            self._client.images.pull(self._hub + kind.image)
        except Exception as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise Unavailable(f"no image {kind.image} and no registry ({reason}): as root, run {SETUP}") from None
        self._images[kind.image] = self._hub + kind.image

    def make(self, kind: Kind, login: Address, arguments: Sequence[str], upstream: Site | None) -> "ContainerSite":
        self.prepare(kind)
        behind = None
        network = None
        if upstream is not None:
            assert isinstance(upstream, ContainerSite), "bug: a container was put before something that is none"
            network = self._join(upstream)
            behind = upstream.inside
        return ContainerSite(kind, login, self._images[kind.image], arguments, behind, network)

    def close(self) -> None:
        if self._network is not None:
            with contextlib.suppress(Exception):
                self._network.remove()
        self._client.close()

    def _join(self, upstream: "ContainerSite") -> str:
        """The name of this run's network, made and joined by `upstream`: there a name survives a new start."""
        with self._lock:
            if self._network is None:
                self._network = self._client.networks.create(f"pool-core-{os.getpid()}", labels={OWNER_LABEL: owner()})
            self._network.reload()
            if upstream.id not in {container.id for container in self._network.containers}:
                self._network.connect(upstream.id, aliases=[upstream.inside.host])
            return str(self._network.name)

    def _sweep(self) -> None:
        """Remove the containers and networks of runs that were killed."""
        everything = {"label": OWNER_LABEL}
        for container in self._client.containers.list(all=True, filters=everything, ignore_removed=True):
            if is_orphan(container.labels.get(OWNER_LABEL, "")):
                with contextlib.suppress(Exception):
                    container.remove(force=True, v=True)
        for network in self._client.networks.list(filters=everything):
            if is_orphan(network.attrs["Labels"].get(OWNER_LABEL, "")):
                with contextlib.suppress(Exception):
                    network.remove()


class ContainerSite:
    """One container. Its port is chosen here, not by Docker: so it stays the same over stop and start."""

    def __init__(
        self,
        kind: Kind,
        login: Address,
        image: str,
        arguments: Sequence[str],
        behind: Address | None,
        network: str | None,
        port: int | None = None,
        tmpfs: dict[str, str] | None = None,
    ) -> None:
        self.label = f"container {image}"
        self._kind, self._image, self._tmpfs = kind, image, tmpfs or {}
        self._environment = kind.environment(login, behind)
        self._command = [*kind.arguments(login), *arguments]
        self._network, self._chosen_port = network, port
        self._container: Any = None
        self._place(port or free_port(), login)

    def _place(self, port: int, login: Address) -> None:
        self.address = replace(login, host="127.0.0.1", port=port)
        self.inside = replace(login, host=f"{self._kind.key}-{port}", port=self._kind.port)

    @property
    def id(self) -> str:
        return str(self._container.get_container_id())

    def start(self) -> None:
        if self._container is None:
            self._create()
        else:
            self._wrapped.start()

    def _create(self) -> None:
        make = library("testcontainers.core.container").DockerContainer
        for attempts_left in (2, 1, 0):
            container = make(self._image, docker_client_kw={"timeout": DOCKER_TIMEOUT})
            container.env = dict(self._environment)
            container.ports = {f"{self._kind.port}/tcp": ("127.0.0.1", self.address.port)}
            network = {"network": self._network} if self._network else {}
            container.with_kwargs(labels={OWNER_LABEL: owner()}, **network)
            container.tmpfs = self._tmpfs
            if self._command:
                container.with_command(self._command)
            try:
                container.start()
            except BaseException as error:
                container.stop()
                # Somebody took the port between our look and Docker's.
                if attempts_left and self._chosen_port is None and "already" in str(error) and "in use" in str(error):
                    self._place(free_port(), self.address)
                    continue
                raise
            self._container = container
            return

    def stop(self) -> None:
        self._wrapped.stop(timeout=STOP_TIMEOUT)

    def kill(self) -> None:
        self._wrapped.kill()
        self._wrapped.wait(timeout=STOP_TIMEOUT)

    def pause(self) -> None:
        self._wrapped.pause()

    def unpause(self) -> None:
        self._wrapped.unpause()

    def remove(self) -> None:
        if self._container is not None:
            self._container.stop()

    def alive(self) -> bool:
        self._wrapped.reload()
        return self._wrapped.status in {"running", "paused"}

    def logs(self) -> str:
        return str(self._wrapped.logs(tail=20).decode(errors="replace")) if self._container is not None else ""

    def execute(self, command: Sequence[str]) -> str:
        return str(self._container.exec(list(command)).output.decode(errors="replace"))

    @property
    def _wrapped(self) -> Any:
        return self._container.get_wrapped_container()


def check_docker() -> None:
    """Raise `Unavailable`, with what to do, unless the Docker daemon answers.

    Asked at its socket, since the library would leave a connection open when there is no answer.
    """
    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not host.startswith("unix://"):
        raise Unavailable(
            f"DOCKER_HOST={host} is not a socket of this machine, so 127.0.0.1 would not reach its servers"
        )
    path = host.removeprefix("unix://")
    try:
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.settimeout(PING_TIMEOUT)
            daemon.connect(path)
            daemon.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            answer = daemon.recv(64)
    except PermissionError:
        raise Unavailable(f"Docker is there but you may not use {path}: join the group 'docker', or be root") from None
    except TimeoutError:
        raise Unavailable(f"Docker's daemon at {path} takes connections but does not answer: see to it") from None
    except OSError as error:
        raise Unavailable(f"Docker is not running ({path}: {error.strerror}): as root, run {SETUP}") from None
    if b" 200 " not in answer:
        raise Unavailable(f"what listens at {path} does not answer like Docker: {answer[:40]!r}")


# --- processes --------------------------------------------------------------------------------------------------------

STATE = Path(tempfile.gettempdir())
DIRECTORY_PREFIX = "pool-core-server-"


class ProcessSource:
    """Installed programs, run by an ordinary user: the one who runs the tests, or `nobody` where that is root."""

    def __init__(self) -> None:
        try:
            library("psutil")
        except ImportError:
            raise Unavailable("psutil is not installed (dependency group 'servers')") from None
        if sys.platform == "win32":
            raise Unavailable("processes are stopped and paused by POSIX signals, which Windows lacks")
        self._sweep()

    def prepare(self, kind: Kind) -> None:
        if reason := kind.missing():
            raise Unavailable(reason)

    def make(self, kind: Kind, login: Address, arguments: Sequence[str], upstream: Site | None) -> "ProcessSite":
        self.prepare(kind)
        return ProcessSite(kind, login, arguments, upstream.inside if upstream else None)

    def close(self) -> None: ...

    def _sweep(self) -> None:
        """End the processes of runs that were killed, and remove their directories."""
        for note in STATE.glob(f"{DIRECTORY_PREFIX}*/owner"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                facts = json.loads(note.read_text())
                if is_orphan(facts["owner"]):
                    for process in _family(facts["pid"], facts["created"]):
                        process.kill()
                    shutil.rmtree(note.parent, ignore_errors=True)


class ProcessSite:
    """One server's processes and the directory in which it keeps its data."""

    def __init__(self, kind: Kind, login: Address, arguments: Sequence[str], behind: Address | None) -> None:
        self.label = "local process"
        self._kind = kind
        self._arguments = list(arguments)
        self.address = self.inside = replace(login, host="127.0.0.1", port=free_port())
        self._directory = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=STATE))
        self._log = self._directory / "log"
        # Servers refuse to run as root, or should. What is made of Python lives in this environment, which `nobody` may
        # not be able to read.
        self._user = "nobody" if os.getuid() == 0 and not kind.in_python else None
        self._process: subprocess.Popen[bytes] | None = None
        self._place = Place(self._directory, self.address, behind, self._run)
        self._prepared = False

    def start(self) -> None:
        if not self._prepared:
            self._log.touch()
            self._directory.chmod(0o700)
            self._kind.prepare(self._place)
            self._hand_over()
            self._prepared = True
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._kind.command(self._place), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C is for the tests; they stop their servers themselves
                user=self._user,
                extra_groups=[] if self._user else None,
            )
        created = library("psutil").Process(self._process.pid).create_time()
        note = {"owner": owner(), "pid": self._process.pid, "created": created}
        (self._directory / "owner").write_text(json.dumps(note))

    def stop(self) -> None:
        process = self._running
        process.send_signal(self._kind.stop_signal)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._send(signal.SIGKILL)
        self._running.wait(STOP_TIMEOUT)

    def pause(self) -> None:
        self._send(signal.SIGSTOP)

    def unpause(self) -> None:
        self._send(signal.SIGCONT)

    def remove(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def logs(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:]) if self._log.exists() else ""

    def execute(self, command: Sequence[str]) -> str:
        program, *arguments = command
        found = find(program) or program
        return subprocess.run([found, *arguments], capture_output=True, text=True, timeout=10, check=False).stdout

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "bug: a process was disturbed before it was started"
        return self._process

    def _send(self, number: signal.Signals) -> None:
        # PostgreSQL's children lead sessions of their own: no process group holds them all.
        for process in _family(self._running.pid):
            with contextlib.suppress(Exception):
                process.send_signal(number)

    def _run(self, command: Sequence[str], text: str) -> None:
        """Run a step of the preparation as the server's user; its output goes to the server's log."""
        self._hand_over()
        with self._log.open("ab") as log:
            done = subprocess.run(
                command,
                input=text.encode(),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env=self._environment(),
                timeout=60,
                check=False,
                user=self._user,
                extra_groups=[] if self._user else None,
            )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed with exit code {done.returncode}")

    def _hand_over(self) -> None:
        """Give the files that were written here to the server's user."""
        if self._user:
            for path in (self._directory, *self._directory.iterdir()):
                shutil.chown(path, self._user)

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "MYSQL", "MARIADB"))}
        return kept | self._kind.environment(self.address, self._place.upstream)


def _family(pid: int, created: float | None = None) -> Iterator[Any]:
    """A process and its children, itself first; nothing if the number has gone to another process since."""
    psutil = library("psutil")
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        if created is None or abs(parent.create_time() - created) < 2:
            yield from [parent, *parent.children(recursive=True)]


# --- a URL ------------------------------------------------------------------------------------------------------------


class UrlSite:
    """A server that a person named. It is not ours, so it is not disturbed."""

    def __init__(self, kind: Kind, variable: str) -> None:
        self.label = f"given by {variable}"
        self.address = self.inside = kind.parse(os.environ[variable])
        self._variable = variable

    def start(self) -> None: ...

    def stop(self) -> None:
        self._refuse("stopped")

    def kill(self) -> None:
        self._refuse("killed")

    def pause(self) -> None:
        self._refuse("paused")

    def unpause(self) -> None:
        self._refuse("unpaused")

    def remove(self) -> None: ...

    def alive(self) -> bool:
        return True

    def logs(self) -> str:
        return ""

    def execute(self, command: Sequence[str]) -> str:
        return ""

    def _refuse(self, deed: str) -> None:
        raise RuntimeError(
            f"the server of {self._variable} is not ours and is never {deed}: ask for server(..., fresh=True)"
        )
