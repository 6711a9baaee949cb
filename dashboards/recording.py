"""Half an hour in the life of a pool, as Prometheus scrapes it: load, a rush, an outage, a leak and a recovery.

The pool runs on virtual time with the real exporter, so half an hour takes seconds; the samples go into a database of
Prometheus' own by promtool, and a real Prometheus answers the queries.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pool_core import Pool, PoolUnavailable
from pool_core.prometheus import instrument
from pool_core.testing import FakeConnection, FakeManager, run
from prometheus_client import CollectorRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BEGAN = 1_796_000_400  # seconds since 1970, at a full minute
MINUTES = 30
STEP = 15
"""Seconds between two scrapes."""


class Server(FakeManager):
    """A database that takes time, and goes away for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.up = True

    async def connect(self) -> FakeConnection:
        """Connect, if it is up."""
        await asyncio.sleep(0.02)
        if not self.up:
            msg = "refused"
            raise ConnectionRefusedError(msg)
        return await super().connect()

    async def is_valid(self, conn: FakeConnection, /) -> bool:
        """Take a round trip."""
        await asyncio.sleep(0.002)
        return await super().is_valid(conn)

    def has_broken(self, conn: FakeConnection, /) -> bool:
        """Tell whether it went away."""
        return not self.up or super().has_broken(conn)


def sample() -> dict[str, list[str]]:
    """Let the half hour pass; return the lines of OpenMetrics by family."""
    registry = CollectorRegistry()
    families: dict[str, list[str]] = {}

    def scrape(at: int) -> None:
        for family in registry.collect():
            lines = families.setdefault(family.name, [f"# TYPE {family.name} {family.type}"])
            for each in family.samples:
                if each.name.endswith("_created"):
                    continue
                labels = {**each.labels, "job": "shop", "instance": "shop-1:8000"}
                text = ",".join(f'{name}="{value}"' for name, value in labels.items())
                lines.append(f"{each.name}{{{text}}} {each.value} {at}")

    async def main() -> None:
        chance = random.Random(1)
        server = Server()
        workers = 6
        lost: list[Any] = []

        async def work(number: int) -> None:
            while True:
                await asyncio.sleep(chance.expovariate(1.4))
                if number >= workers:
                    continue
                with suppress(PoolUnavailable):
                    async with pool.get():
                        await asyncio.sleep(chance.expovariate(4))

        options: dict[str, Any] = {"connection_timeout": 5.0, "max_lifetime": 600.0, "max_waiting": 60}
        pool = Pool(server, name="orders", max_size=10, min_idle=2, error_sink=lambda _: None, **options)
        instrument(pool, registry=registry)
        async with pool:
            tasks = [asyncio.create_task(work(number)) for number in range(90)]
            for at in range(0, MINUTES * 60, STEP):
                minute = at / 60
                workers = 90 if 7 <= minute < 11 else 18
                server.up = not 17 <= minute < 19.5
                if minute == 24:
                    lost.append(await pool.get())
                if minute == 28:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        lost.clear()
                scrape(BEGAN + at)
                await asyncio.sleep(STEP)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(main)
    return families


class Prometheus:
    """A server of Prometheus that has the half hour."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Answer a query over the half hour."""
        asked = {"query": query, "start": BEGAN + 60, "end": BEGAN + MINUTES * 60 - STEP, "step": STEP}
        url = f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            with error:
                msg = f"{query}: {error.read().decode()}"
            raise AssertionError(msg) from None
        return found


@contextmanager
def prometheus(place: Path) -> Iterator[Prometheus]:
    """Run a Prometheus with the half hour."""
    lines = [line for family in sample().values() for line in family]
    (place / "samples.om").write_text("\n".join([*lines, "# EOF", ""]))
    (place / "prometheus.yml").write_text("global: {}\n")
    promtool, program = shutil.which("promtool"), shutil.which("prometheus")
    assert promtool
    assert program
    made = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(place / "samples.om"), str(place / "data")]
    subprocess.run(made, check=True, capture_output=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    options = {
        "config.file": place / "prometheus.yml",
        "storage.tsdb.path": place / "data",
        "storage.tsdb.retention.time": "100y",
        "web.listen-address": address,
    }
    command = [program, *(f"--{name}={value}" for name, value in options.items())]
    with (place / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            for _ in range(100):
                with suppress(OSError), urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
                    break
                assert process.poll() is None, (place / "log").read_text()
                time.sleep(0.2)
            yield Prometheus(f"http://{address}")
        finally:
            process.terminate()
