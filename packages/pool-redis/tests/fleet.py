"""Several Redis or Valkey servers that know each other: a cluster of six, and a master with two replicas and three sentinels.

Containers that share one network namespace, so that the address by which the servers know each other is the one by which
the tests reach them: 127.0.0.1. Where the run has processes instead of containers, processes.
"""

import contextlib
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from containers.kinds import library
from containers.servers import Server
from containers.sources import OWNER_LABEL, free_port, owner

PATIENCE = 40.0  # seconds for a fleet to find itself; it takes about seven


class Node(Protocol):
    """One server of a fleet, and what can be done to it. It always comes back at the same port."""

    port: int

    def start(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def unpause(self) -> None: ...
    def remove(self) -> None: ...


class _Container:
    def __init__(self, image: str, port: int, command: Sequence[str], network: str) -> None:
        self.port = port
        made = library("testcontainers.core.container").DockerContainer(image)
        made.with_command(list(command)).with_kwargs(network_mode=network, labels={OWNER_LABEL: owner()})
        made.start()
        self._made = made

    @property
    def _wrapped(self) -> Any:
        return self._made.get_wrapped_container()

    def start(self) -> None:
        self._wrapped.start()

    def kill(self) -> None:
        self._wrapped.kill()
        self._wrapped.wait(timeout=10)

    def pause(self) -> None:
        self._wrapped.pause()

    def unpause(self) -> None:
        self._wrapped.unpause()

    def remove(self) -> None:
        self._made.stop()


class _Process:
    def __init__(self, port: int, command: Sequence[str], directory: str) -> None:
        self.port, self._command, self._directory = port, command, directory
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=self._directory, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def unpause(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.unpause()
        self.kill()


class Fleet:
    """The servers, by their ports."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = {node.port: node for node in nodes}

    @property
    def ports(self) -> list[int]:
        return list(self.nodes)

    def ask(self, port: int, *command: str) -> Any:
        """One command to one server. Raises while it does not answer."""
        with redis.Redis(
            port=port, socket_timeout=2, decode_responses=True, retry=Retry(NoBackoff(), 0), protocol=2
        ) as client:
            return client.execute_command(*command)

    def role(self, port: int) -> str:
        """master or slave, or nothing while it does not answer."""
        try:
            return str(self.ask(port, "ROLE")[0])
        except redis.RedisError:
            return ""

    def heal(self) -> None:
        """Bring back whoever was killed or paused."""
        for node in self.nodes.values():
            with contextlib.suppress(Exception):  # it is not paused
                node.unpause()
            with contextlib.suppress(Exception):  # it runs
                if not self.role(node.port) and not self._answers(node.port):
                    node.start()

    def _answers(self, port: int) -> bool:
        try:
            return bool(self.ask(port, "PING"))
        except redis.RedisError:
            return False


def until(condition: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait for a condition; what it raises means not yet."""
    began = time.monotonic()
    while True:
        last: object = None
        try:
            if last := condition():
                return
        except redis.RedisError as error:
            last = error
        if time.monotonic() - began > patience:
            raise AssertionError(f"{what}: not within {patience:.0f} s ({last})")
        time.sleep(0.1)


@contextlib.contextmanager
def servers(like: Server, commands: dict[int, list[str]]) -> Iterator[Fleet]:
    """Run a server for each command, as the run runs its Redis: in containers or as processes."""
    with contextlib.ExitStack() as stack:
        nodes: list[Node]
        if like.label.startswith("container "):
            image = like.label.removeprefix("container ")
            made = library("testcontainers.core.container").DockerContainer(image)
            made.ports = {f"{port}/tcp": ("127.0.0.1", port) for port in commands}
            made.with_command(["sleep", "infinity"]).with_kwargs(labels={OWNER_LABEL: owner()})
            stack.callback(made.stop)
            made.start()
            network = f"container:{made.get_container_id()}"

            def start(item: tuple[int, list[str]]) -> Node:
                node = _Container(image, item[0], item[1], network)
                stack.callback(node.remove)
                return node

            with ThreadPoolExecutor(3) as threads:
                nodes = list(threads.map(start, commands.items()))
        else:
            import pytest

            program = f"{like.kind}-server"
            if shutil.which(program) is None:
                pytest.skip(f"NO SERVER: a fleet needs containers, or {program} on this machine")
            nodes = []
            for port, command in commands.items():
                directory = stack.enter_context(tempfile.TemporaryDirectory())
                nodes.append(_Process(port, [part.replace("/data", directory) for part in command], directory))
                stack.callback(nodes[-1].remove)
        fleet = Fleet(nodes)
        for port in commands:
            until(partial(fleet.ask, port, "PING"), f"the server at {port} answers")
        yield fleet


def _ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return sorted(ports)


def _server(like: Server, port: int, *more: str) -> list[str]:
    # The shell stands before it so that the image's entry point leaves the command as it is.
    words = [f"{like.kind}-server", "--port", str(port), "--dir", "/data", "--save", "''", "--appendonly", "no", *more]
    return ["sh", "-c", "exec " + " ".join([*words, "--protected-mode", "no"])]


@contextlib.contextmanager
def cluster(like: Server, masters: int = 3, replicas: int = 1) -> Iterator[Fleet]:
    """A cluster; every slot is served, every replica is in step."""
    ports = _ports(masters * (1 + replicas))
    more = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--cluster-announce-ip", "127.0.0.1"]
    with servers(like, {port: _server(like, port, *more) for port in ports}) as fleet:
        lead = ports[:masters]
        for number, port in enumerate(lead):
            first, last = number * 16384 // masters, (number + 1) * 16384 // masters - 1
            fleet.ask(port, "CLUSTER", "ADDSLOTSRANGE", str(first), str(last))
            fleet.ask(port, "CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for number, port in enumerate(ports):  # each meets each: by hearsay alone it takes them seconds
            for other in ports[:number]:
                fleet.ask(port, "CLUSTER", "MEET", "127.0.0.1", str(other))

        known = {port: str(fleet.ask(port, "CLUSTER", "MYID")) for port in ports}

        def acquainted(port: int) -> bool:
            return all(name in str(fleet.ask(port, "CLUSTER", "NODES")) for name in known.values())

        for port in ports:
            until(partial(acquainted, port), "all nodes know each other")
        for number, port in enumerate(ports[masters:]):
            fleet.ask(port, "CLUSTER", "REPLICATE", known[lead[number % masters]])
        for port in lead:
            fleet.ask(port, "FLUSHALL")  # a replica that has replicated nothing yet is left out of CLUSTER SLOTS
        settled(fleet)
        yield fleet


def settled(fleet: Fleet) -> None:
    """Wait until every node of a cluster says that all are well, and every master's replica is in step."""

    def well(port: int) -> bool:
        facts = str(fleet.ask(port, "CLUSTER", "INFO"))
        role = fleet.ask(port, "ROLE")
        seen = str(fleet.ask(port, "CLUSTER", "NODES"))
        replicas = all(len(entry) > 3 for entry in fleet.ask(port, "CLUSTER", "SLOTS"))
        in_step = role[0] == "master" or role[3] == "connected"
        return "cluster_state:ok" in facts and "fail" not in seen and replicas and in_step

    for port in fleet.ports:
        until(partial(well, port), f"the node at {port} is well")


@contextlib.contextmanager
def sentinels(like: Server) -> Iterator[tuple[Fleet, Fleet]]:
    """A master with two replicas, and three sentinels that know it as mymaster. Yields servers and sentinels."""
    ports = _ports(6)
    master, watching = ports[0], ports[3:]
    commands = {master: _server(like, master)}
    for port in ports[1:3]:
        replica = ["--replicaof", "127.0.0.1", str(master), "--replica-announce-ip", "127.0.0.1"]
        commands[port] = _server(like, port, *replica, "--repl-diskless-sync-delay", "0")
    for port in watching:
        lines = [
            f"port {port}",
            "dir /tmp",
            "protected-mode no",
            "sentinel announce-ip 127.0.0.1",
            f"sentinel monitor mymaster 127.0.0.1 {master} 2",
            "sentinel down-after-milliseconds mymaster 1000",
            "sentinel failover-timeout mymaster 3000",
            "sentinel parallel-syncs mymaster 2",
        ]
        # What a sentinel has learnt survives its restart: the file is written once.
        file = f"/data/sentinel-{port}.conf"
        script = f"test -f {file} || printf '%s\\n' {' '.join(f'{line!r}' for line in lines)} > {file}"
        commands[port] = ["sh", "-c", f"{script}; exec {like.kind}-server {file} --sentinel"]
    with servers(like, commands) as fleet:
        both = Fleet([fleet.nodes[port] for port in ports[:3]]), Fleet([fleet.nodes[port] for port in watching])
        watched(*both, replicas=2)
        yield both


def reunited(data: Fleet, watchers: Fleet) -> None:
    """Bring back whoever was killed or paused, and let an old master follow the new one.

    The sentinels would tell it so by themselves, after eight seconds.
    """
    data.heal()
    watchers.heal()
    elected = 0

    def agreed() -> bool:
        nonlocal elected
        named = {watchers.ask(port, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")[1] for port in watchers.ports}
        elected = int(named.pop())
        return not named and data.role(elected) == "master"

    until(agreed, "all sentinels name one master")
    for port in data.ports:
        if port != elected and data.role(port) == "master":
            data.ask(port, "REPLICAOF", "127.0.0.1", str(elected))
    watched(data, watchers)


def watched(data: Fleet, watchers: Fleet, replicas: int = 0) -> None:
    """Wait until all sentinels see one master in good health, and its replicas are in step.

    Args:
        replicas: so many must be known to each sentinel; it looks for them every ten seconds only.
    """

    def well(port: int) -> bool:
        reply = watchers.ask(port, "SENTINEL", "MASTER", "mymaster")
        facts = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        known = str(watchers.ask(port, "SENTINEL", "REPLICAS", "mymaster")).count("'ok'")
        roles = [data.ask(port, "ROLE") for port in data.ports]
        return (
            str(facts["flags"]).strip("{'}") == "master"
            and data.role(int(facts["port"])) == "master"
            and known >= replicas
            and int(facts["num-other-sentinels"]) == 2
            and sum(role[0] == "slave" and role[3] == "connected" for role in roles) == 2
        )

    for port in watchers.ports:
        until(partial(well, port), f"the sentinel at {port} sees its service")
