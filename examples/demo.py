"""Many tasks over a small pool on a real SQLite file, against a connection for each query on the same work.

    python examples/demo.py [--tasks 200] [--size 5] [--seconds 10]

Each task asks for one row after another, by its key, and now and then writes one. First every query opens a connection
of its own, with the same settings; then all share a pool. Both have half of the time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self, TypeAlias

import aiosqlite
from pool_core import Pool, Statistics
from pool_sqlite import SqliteConnectionManager

ROWS = 10_000
WRITES = 0.02
"""The share of queries that write: SQLite has one writer at a time, whoever connects it."""

Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[aiosqlite.Connection]]


@dataclass
class Result:
    """What one way of connecting achieved."""

    name: str
    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    """Seconds from asking for a connection to having one."""
    totals: list[float] = field(default_factory=list)
    """Seconds of the whole: waiting, the query, giving back."""
    failures: Counter[str] = field(default_factory=Counter)
    opened: int = 0

    @property
    def rate(self) -> float:
        return len(self.totals) / self.seconds if self.seconds else 0.0


# --- the work ---------------------------------------------------------------------------------------------------------


def prepare(path: Path) -> None:
    """Make the file: a table with some rows, in write-ahead mode."""
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA journal_mode = WAL")
        with raw:
            raw.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, name TEXT, balance INTEGER)")
            raw.executemany("INSERT INTO accounts VALUES (?, ?, 100)", ((n, f"account {n}") for n in range(ROWS)))


async def query(conn: aiosqlite.Connection, chance: random.Random) -> None:
    """One read, or sometimes one write."""
    key = chance.randrange(ROWS)
    if chance.random() < WRITES:
        await conn.execute("UPDATE accounts SET balance = balance + 1 WHERE id = ?", (key,))
        await conn.commit()
    else:
        async with conn.execute("SELECT name, balance FROM accounts WHERE id = ?", (key,)) as cursor:
            assert await cursor.fetchone() is not None


async def work(number: int, connect: Connect, result: Result, stop: asyncio.Event) -> None:
    """One task: the same random keys, whichever way it connects."""
    chance = random.Random(number)
    while not stop.is_set():
        began = time.perf_counter()
        try:
            async with connect() as conn:
                connected = time.perf_counter()
                await query(conn, chance)
        except (sqlite3.Error, TimeoutError) as error:
            result.failures[f"{type(error).__name__}: {error}"] += 1
        else:
            result.waits.append(connected - began)
            result.totals.append(time.perf_counter() - began)


async def measure(result: Result, connect: Connect, tasks: int, seconds: float, stop: asyncio.Event) -> Result:
    """Let the tasks run for so long, and show how it goes."""
    over = asyncio.Event()
    began = time.perf_counter()
    timers = [asyncio.create_task(coro) for coro in (_set_after(over, seconds), _set_with(over, stop))]
    with Progress(result, seconds) as progress:
        live = asyncio.create_task(progress.run(began))
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(tasks):
                    group.create_task(work(number, connect, result, over))
        finally:
            result.seconds = time.perf_counter() - began
            for task in (live, *timers):
                task.cancel()
            await asyncio.gather(live, *timers, return_exceptions=True)
    return result


async def _set_after(event: asyncio.Event, seconds: float) -> None:
    await asyncio.sleep(seconds)
    event.set()


async def _set_with(event: asyncio.Event, other: asyncio.Event) -> None:
    await other.wait()
    event.set()


async def demo(path: Path, tasks: int, size: int, seconds: float, stop: asyncio.Event) -> None:
    """Both ways in turn, then the report."""
    prepare(path)
    say(f"{tasks} tasks, {seconds / 2:g} s each way, on an SQLite file of {ROWS} rows\n")

    alone = Result("a connection for each query")

    @asynccontextmanager
    async def connect_alone() -> AsyncIterator[aiosqlite.Connection]:
        async with aiosqlite.connect(path) as conn:
            await conn.execute("PRAGMA foreign_keys = ON")
            alone.opened += 1
            yield conn

    await measure(alone, connect_alone, tasks, seconds / 2, stop)
    if stop.is_set():
        return

    pooled = Result(f"a pool of {size}")
    async with Pool(SqliteConnectionManager(path, foreign_keys=True), max_size=size, min_idle=1, name="demo") as pool:
        await measure(pooled, pool.get, tasks, seconds / 2, stop)
        statistics = pool.state().statistics
    if stop.is_set():
        return
    pooled.opened = statistics.connections_created
    say()
    report(alone, pooled)
    say()
    tell(statistics)


# --- what is shown ----------------------------------------------------------------------------------------------------


def say(text: str = "") -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


class Progress:
    """How it goes: one line that is rewritten, on a terminal; a few plain lines elsewhere."""

    def __init__(self, result: Result, seconds: float) -> None:
        self._result = result
        self._seconds = seconds
        self._live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            print(f"\r{' ' * self._width}\r", end="", flush=True)
        say(self._line(min(1.0, self._result.seconds / self._seconds)))

    async def run(self, began: float) -> None:
        """Show the state, again and again."""
        every = 0.2 if self._live else max(1.0, self._seconds / 3)
        while True:
            await asyncio.sleep(every)
            self._result.seconds = time.perf_counter() - began
            share = min(1.0, self._result.seconds / self._seconds)
            if share == 1.0:
                continue  # the last tasks are about to end, and then there is a last line
            if not self._live:
                say(self._line(share))
                continue
            line = self._line(share)[: shutil.get_terminal_size().columns - 1]
            print(f"\r{line:<{self._width}}", end="", flush=True)
            self._width = max(self._width, len(line))

    def _line(self, share: float) -> str:
        result = self._result
        failed = f", {result.failures.total()} failed" if result.failures else ""
        return (
            f"{result.name:<28} {share:4.0%}  {len(result.totals):>8,} queries  {result.rate:>8,.0f} a second{failed}"
        )


def report(*results: Result) -> None:
    """The two ways side by side."""
    rows: list[tuple[str, Callable[[Result], str]]] = [
        ("", lambda result: result.name),
        ("queries", lambda result: f"{len(result.totals):,}"),
        ("queries a second", lambda result: f"{result.rate:,.0f}"),
        ("failed", lambda result: f"{result.failures.total():,}"),
        ("connections opened", lambda result: f"{result.opened:,}"),
        ("waiting for a connection, median", lambda result: milliseconds(result.waits, 0.5)),
        ("waiting for a connection, 99 %", lambda result: milliseconds(result.waits, 0.99)),
        ("the whole query, median", lambda result: milliseconds(result.totals, 0.5)),
        ("the whole query, 99 %", lambda result: milliseconds(result.totals, 0.99)),
        ("the whole query, longest", lambda result: milliseconds(result.totals, 1)),
    ]
    table([(title, *(cell(result) for result in results)) for title, cell in rows])
    for result in results:
        for reason, count in result.failures.most_common(3):
            say(f"{result.name}: {count} times {reason}")
    if results[0].rate:
        say(f"\nThe pool answers {results[1].rate / results[0].rate:.1f} times as many queries.")


def tell(statistics: Statistics) -> None:
    """The pool's own counters."""
    rows = [("the pool's statistics", "")]
    for one in fields(statistics):
        value = getattr(statistics, one.name)
        if isinstance(value, float):
            shown = f"{value:,.2f} s"
        elif isinstance(value, int):
            shown = f"{value:,}"
        else:
            shown = ", ".join(f"{count} {reason}" for reason, count in value.items() if count) or "0"
        rows.append((one.name, shown))
    table(rows)


def table(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns as wide as they must be, a line below the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, (title, *cells) in enumerate(rows):
        line = [title.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        say("  ".join(line).rstrip())
        if number == 0:
            say("  ".join("-" * width for width in widths))


def milliseconds(seconds: Sequence[float], share: float) -> str:
    """The value that this share of all does not exceed."""
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    return f"{ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1000:,.2f} ms"


# --- the command line -------------------------------------------------------------------------------------------------


def at_least_one(text: str) -> int:
    """A count for argparse."""
    if not text.isdecimal() or int(text) < 1:
        msg = f"must be a whole number of at least 1, not {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def some_seconds(text: str) -> float:
    """A time for argparse."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    msg = f"must be a number of seconds greater than 0, not {text!r}"
    raise argparse.ArgumentTypeError(msg)


async def until_interrupted(tasks: int, size: int, seconds: float) -> bool:
    """Run the demo; True if Ctrl-C ended it, at the end of the queries under way."""
    stop = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows: there asyncio.run cancels everything, which works, too
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    with tempfile.TemporaryDirectory(prefix="pool-core-demo-") as folder:
        await demo(Path(folder, "demo.db"), tasks, size, seconds, stop)
    return stop.is_set()


def main() -> int:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--tasks", type=at_least_one, default=200, help="tasks at the same time (default: %(default)s)")
    parser.add_argument("--size", type=at_least_one, default=5, help="the pool's max_size (default: %(default)s)")
    parser.add_argument("--seconds", type=some_seconds, default=10.0, help="for both ways together (default: 10)")
    options = parser.parse_args()
    try:
        interrupted = asyncio.run(until_interrupted(options.tasks, options.size, options.seconds))
    except KeyboardInterrupt:
        interrupted = True
    except BrokenPipeError:  # nobody reads on; the interpreter's own flush at exit must not fail as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if interrupted:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
