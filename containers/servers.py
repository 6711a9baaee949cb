"""The servers of one test run: each kind is started once, shared, watched while it starts, and removed at the end."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

from .address import Address
from .kinds import DIALECTS, KINDS, Kind
from .sources import ContainerSource, ProcessSource, Site, Source, Unavailable, UrlSite

START_TIMEOUT = 45.0  # seconds from the start of a server to its first answer


class ServerFailed(Exception):
    """A server did not come up, or not in time. The text ends with the last lines of its log."""


class Server:
    """A running server, and the faults that can be done to it. `start` always brings it back at the same port.

    As a context manager it is removed at the end; what a test leaves, the end of the run removes.
    """

    def __init__(self, kind: Kind, site: Site, closing: threading.Event) -> None:
        self.kind = kind.key
        self.name = self.version = "unknown"
        self._kind, self._site, self._closing = kind, site, closing
        self._state = "new"
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        at = f"{self.host}:{self.port}"
        return f"<{self.kind} ({self.name} {self.version}) at {at}, {self._state}, {self.label}>"

    @property
    def host(self) -> str:
        return self._site.address.host

    @property
    def port(self) -> int:
        return self._site.address.port

    @property
    def user(self) -> str | None:
        return self._site.address.user

    @property
    def password(self) -> str | None:
        return self._site.address.password

    @property
    def database(self) -> str | None:
        return self._site.address.database

    @property
    def url(self) -> str:
        """What `Pool.from_url` and the adapters take."""
        return self._kind.url(self._site.address)

    @property
    def label(self) -> str:
        """Where it runs, for a report."""
        return self._site.label

    def start(self) -> None:
        """Bring it back from whatever was done to it, and wait until it answers a query."""
        with self._lock:
            if self._state == "paused":
                self._site.unpause()
            elif self._state != "running":
                self._start()
            self._state = "running"
            self._wait_for_an_answer()

    def stop(self) -> None:
        """End it in the orderly way: it closes its connections itself."""
        with self._lock:
            if self._state == "paused":
                self._site.unpause()
            self._site.stop()
            self._state = "stopped"

    def kill(self) -> None:
        """SIGKILL."""
        with self._lock:
            self._site.kill()
            self._state = "stopped"

    def pause(self) -> None:
        """Make it hang: connections stay, new ones are taken, nothing answers."""
        with self._lock:
            self._site.pause()
            self._state = "paused"

    def unpause(self) -> None:
        """Let it go on."""
        with self._lock:
            self._site.unpause()
            self._state = "running"

    def answers(self) -> bool:
        """Whether it answers a query, asked on a new connection. Takes some seconds when it hangs."""
        try:
            self._kind.ask(self._site.address, self._site.execute)
        except Exception:
            return False
        return True

    def logs(self) -> str:
        """The last lines of its log."""
        return self._site.logs()

    def remove(self) -> None:
        """End it for good. Safe at any time."""
        with self._lock:
            if self._state != "removed":
                self._state = "removed"
                self._site.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()

    def heal(self) -> None:
        """Start it if the last test left it paused or stopped."""
        if self._state != "running":
            self.start()

    def _start(self) -> None:
        try:
            self._site.start()
        except Exception as error:
            raise self._failure(f"could not be started: {error}") from None

    def _wait_for_an_answer(self) -> None:
        # Docker's proxy takes connections before the server does: only an answer to a query proves anything.
        began, pause = time.monotonic(), 0.02
        while True:
            try:
                self.name, self.version = self._kind.ask(self._site.address, self._site.execute)
                return
            except Exception as error:
                last = f"{type(error).__name__}: {error}"
            if not self._site.alive():
                raise self._failure("ended while starting")
            if self._closing.is_set():
                raise self._failure("was not waited for, since the run ends")
            if time.monotonic() - began > START_TIMEOUT:
                raise self._failure(f"did not answer within {START_TIMEOUT:.0f} s ({last})")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.2)

    def _failure(self, what: str) -> ServerFailed:
        log = ""
        with contextlib.suppress(Exception):
            log = "\n    ".join(self._site.logs().strip().splitlines()[-20:])
        return ServerFailed(f"{self.kind} ({self.label}) {what}\n  its last log lines:\n    {log or '(none)'}")


class ServerFactory(Protocol):
    """The fixture `server`."""

    def __call__(
        self,
        kind: str,
        *,
        version: str | int | None = None,
        fresh: bool = False,
        args: Sequence[str] = (),
        password: str | None = None,
    ) -> Server: ...


class Servers:
    """All servers of a run."""

    def __init__(self) -> None:
        self.notes: list[str] = []  # what a reader of the report has to know: older servers than wanted
        self._shared: dict[str, Future[Server]] = {}  # by image, or by the variable that names it
        self._made: list[Server] = []
        self._sources: dict[str, Source | Unavailable] = {}
        self._found: dict[tuple[str, str], tuple[Source, Kind] | Unavailable] = {}
        self._lock = threading.RLock()
        self._closing = threading.Event()
        # One thread a kind: while PgBouncer's waits for PostgreSQL, PostgreSQL's must be able to run.
        self._threads = ThreadPoolExecutor(len(KINDS), "server-start")

    def begin(self, kinds: Iterable[str]) -> None:
        """Start these in the background. What takes long and may need a look (images) is brought before it returns."""
        for key in kinds:
            with contextlib.suppress(Unavailable):  # who asks for it is told
                self._future(KINDS[key], None)

    def get(self, key: str, version: str | int | None = None) -> Server:
        """The run's server of this kind, running. Raises `Unavailable` or `ServerFailed`."""
        server = self._future(_known(key, version), version).result(START_TIMEOUT * 2)
        server.heal()
        return server

    def fresh(
        self, key: str, args: Sequence[str] = (), password: str | None = None, version: str | int | None = None
    ) -> Server:
        """A server that nobody else uses. Raises `Unavailable` or `ServerFailed`."""
        kind = _known(key, version)
        login = kind.with_password(password) if password else kind.login
        return self._make(kind, login, args, version)

    def known(self) -> list[Server]:
        """One of each version that was started."""
        return list({(server.name, server.version, server.label): server for server in self._made}.values())

    def close(self) -> None:
        """Remove everything, also what is still starting."""
        self._closing.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        with ThreadPoolExecutor(4) as removers:
            list(removers.map(_remove_quietly, reversed(self._made)))
        for source in self._sources.values():
            if not isinstance(source, Unavailable):
                source.close()

    def _future(self, kind: Kind, version: str | int | None) -> "Future[Server]":
        variable = url_variable(kind) if version is None else None
        name = variable or self._find(kind, version)[1].image
        with self._lock:
            if name not in self._shared:
                self._shared[name] = self._threads.submit(self._shared_server, kind, version, variable)
            return self._shared[name]

    def _shared_server(self, kind: Kind, version: str | int | None, variable: str | None) -> Server:
        if variable:
            return self._launch(Server(kind, UrlSite(kind, variable), self._closing))
        return self._make(kind, kind.login, (), version)

    def _make(self, kind: Kind, login: Address, args: Sequence[str], version: str | int | None) -> Server:
        source, kind = self._find(kind, version)
        upstream = None
        if kind.upstream:
            behind = self.get(kind.upstream)
            if url_variable(KINDS[kind.upstream]):  # which a container may be unable to reach: one of our own then
                behind = self.fresh(kind.upstream)
            upstream = behind._site
        return self._launch(Server(kind, source.make(kind, login, args, upstream), self._closing))

    def _launch(self, server: Server) -> Server:
        with self._lock:
            self._made.append(server)
        try:
            server.start()
        except BaseException:
            server.remove()
            with self._lock:
                self._made.remove(server)
            raise
        return server

    def _find(self, kind: Kind, version: str | int | None) -> tuple[Source, Kind]:
        """The first source that has this kind, and the version that it has: the wanted one, or else the newest.

        Raises:
            Unavailable: with all reasons.
        """
        wanted = str(version or chosen_version(kind.key) or "")
        with self._lock:
            name = (kind.key, wanted)
            if name not in self._found:
                try:
                    self._found[name] = self._look_for(kind, wanted)
                except Unavailable as error:
                    self._found[name] = error
            found = self._found[name]
        if isinstance(found, Unavailable):
            raise found
        return found

    def _look_for(self, kind: Kind, wanted: str) -> tuple[Source, Kind]:
        reasons = []
        for candidate in [kind.at(wanted)] if wanted else [kind.at(version) for version in kind.versions()]:
            try:
                source = self._source("containers", ContainerSource)
                source.prepare(candidate)
            except Unavailable as error:
                reasons.append(f"containers: {error}")
                if "containers" in self._sources and isinstance(self._sources["containers"], Unavailable):
                    break
                continue
            if reasons:
                self.notes.append(f"OLDER SERVER: the tests run on {candidate.image}. {reasons[0]}")
            return source, candidate
        try:
            source = self._source("processes", ProcessSource)
            source.prepare(kind)
            if wanted and not kind.installed().startswith(wanted):
                raise Unavailable(f"the installed one is version {kind.installed()}, not {wanted}")
            return source, kind
        except Unavailable as error:
            reasons.append(f"processes: {error}")
        raise Unavailable(
            f"no {kind.key} {wanted and wanted + ' '}server can be had. "
            + "; ".join([*reasons, f"or set POOL_TEST_{kind.key.upper()}_URL"])
        )

    def _source(self, name: str, make: Callable[[], Source]) -> Source:
        """A source, made once. Raises `Unavailable`."""
        if name not in self._sources:
            try:
                self._sources[name] = make()
            except Unavailable as error:
                self._sources[name] = error
        source = self._sources[name]
        if isinstance(source, Unavailable):
            raise source
        return source


def url_variable(kind: Kind) -> str | None:
    """The name of the variable by which a person named a server of this kind, if one did."""
    variable = f"POOL_TEST_{kind.key.upper()}_URL"
    return variable if os.environ.get(variable) else None


CHOICE = "POOL_TEST_SERVERS"


def chosen() -> dict[str, str]:
    """The kinds and versions that POOL_TEST_SERVERS names, as in "mariadb redis:7"; no version is an empty text."""
    choice: dict[str, str] = {}
    for word in os.environ.get(CHOICE, "").split():
        key, _, version = word.partition(":")
        _known(key, version or None)
        choice[key] = version
    return choice


def chosen_version(key: str) -> str | None:
    """The version of a kind that POOL_TEST_SERVERS asks for."""
    return chosen().get(key) or None


def dialects(package: str) -> list[str]:
    """The kinds on which this package's tests run: all of its protocol, or those that POOL_TEST_SERVERS names."""
    kinds = DIALECTS[package]
    return [key for key in kinds if key in chosen()] or list(kinds)


def _known(key: str, version: str | int | None) -> Kind:
    if key not in KINDS:
        raise ValueError(f"no server {key!r}: choose one of {', '.join(KINDS)}")
    return KINDS[key] if version is None else KINDS[key].at(version)


def _remove_quietly(server: Server) -> None:
    with contextlib.suppress(Exception):
        server.remove()
