"""The command line: which adapters are installed, does a server answer, and how fast is a pool of its connections.

Exit codes: 0 all is well; 1 something failed; 2 wrong usage (an unknown option, a URL that no adapter takes); 130
interrupted by Ctrl-C (``bench`` has printed what it has measured until then); 141 nobody reads the output any more. No colours and no escape sequences, ever; the live line of
``bench`` is written to a terminal only.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import platform
import statistics
import sys
import textwrap
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from . import _registry
from ._config import PoolOptions
from ._pool import Pool
from ._terminal import (
    PLAIN,
    LiveLine,
    columns,
    complain,
    duration,
    line_of,
    print_json,
    said,
    secrets_of,
    show,
    table,
    without,
    write_error,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from ._manager import ConnectionManager
    from ._statistics import Statistics

__all__ = ["main"]

T = TypeVar("T")

_CONNECTION_TIMEOUT = 10.0
"""Seconds, unless --timeout or the URL says otherwise: a person waits."""
_GRACE = 2.0
"""Seconds that work under way is given to end when its time is over."""
_LIVE = 0.25
"""Seconds between two states of the live line."""


def main(argv: Sequence[str] | None = None, *, run: Callable[[Coroutine[Any, Any, Any]], Any] = asyncio.run) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments; None: those of the process.
        run: what runs a coroutine (tests give one with a virtual clock).
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    # Drivers and the pool log what goes wrong; here it is said once, in the command's own line.
    hush = logging.NullHandler()
    logging.getLogger().addHandler(hush)
    try:
        code = _command(arguments, run)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:
        # Only our own output raises it here: a command says itself what a driver raised. The interpreter flushes
        # once more at its end, which must not fail again.
        if sys.stdout is not None:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    finally:
        logging.getLogger().removeHandler(hush)
    return code


def _command(arguments: list[str], run: Callable[[Coroutine[Any, Any, Any]], Any]) -> int:
    try:
        args = _parser().parse_args(arguments)
    except _UsageError as error:
        write_error(error.usage)
        given = [part for argument in arguments for part in (argument, argument.partition("=")[2])]
        complain(without(str(error), [part for part in given if not PLAIN.fullmatch(part)]))
        return 2
    except SystemExit as done:  # --help
        return int(done.code or 0)
    if args.command == "adapters":
        return _adapters(as_json=args.json)
    url: str = sys.stdin.readline().rstrip("\r\n") if args.url == "-" else args.url
    secrets = secrets_of(url)
    try:
        manager, found = _registry.manager_and_options(url)
        # close_timeout too: an open() that fails closes the connections it has opened; a hung server never answers.
        options: dict[str, Any] = {"connection_timeout": _CONNECTION_TIMEOUT, "close_timeout": _GRACE, **found}
        if args.timeout is not None:
            options["connection_timeout"] = args.timeout
        if args.command == "ping":
            options["min_idle"] = 1
            # A watch times its own round trip; the pool's validation would be another one.
            options.setdefault("test_on_check_out", not args.watch)
        else:
            if args.size is not None:
                options["max_size"] = args.size
            # Filled before the clock starts: opening is not what is measured.
            options["min_idle"] = options.setdefault("max_size", 10)
        pool = Pool(manager, **cast("PoolOptions[Any]", options))
    except (ValueError, TypeError) as error:
        return _fail(args, 2, without(str(error), secrets))
    except Exception as error:  # noqa: BLE001 - an adapter may raise anything
        return _fail(args, 1, without(said(error), secrets))
    scheme = _registry.scheme_of(url)
    try:
        if args.command == "ping" and args.watch:
            watch = _Watch(scheme, pool, manager, secrets, as_json=args.json)
            return cast("int", run(watch.run(args.count, args.interval)))
        if args.command == "ping":
            report: Ping | Bench = run(_ping(scheme, pool, manager, args.count or 5))
        else:
            report = run(_bench(scheme, pool, manager, args.tasks, args.seconds))
    except Exception as error:  # noqa: BLE001 - and so may a driver
        return _fail(args, 1, f"{scheme}: {without(said(error), secrets)}")
    problem = report.problem and without(report.problem, secrets)
    if args.json:
        print_json({**report.document(), "error": problem})
    else:
        show(report.text())
        if problem:
            complain(f"{args.command}: {scheme}: {problem}")
    if isinstance(report, Bench) and report.interrupted:
        return 130
    return 1 if problem else 0


def _fail(args: argparse.Namespace, code: int, message: str) -> int:
    if args.json:
        print_json({"error": message})
    else:
        complain(f"{args.command}: {message}")
    return code


# Arguments


class _UsageError(Exception):
    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


class _Parser(argparse.ArgumentParser):
    """argparse quotes what it does not understand, which may be a URL: let somebody else print it."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(message, self.format_usage())


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print it."""
        show(f"pool-core {version('pool-core')} (Python {platform.python_version()})")
        parser.exit()


class _Help(argparse.HelpFormatter):
    """Wraps paragraphs to the terminal, and leaves examples, which are indented, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = [part if part.startswith("  ") else textwrap.fill(part, width) for part in text.split("\n\n")]
        return "\n\n".join(parts)


def _parser() -> _Parser:
    program = "pool-core" if os.path.basename(sys.argv[0]).startswith("pool-core") else "python -m pool_core"  # noqa: PTH119
    parser = _Parser(
        prog=program,
        description="Look at the adapters of pool-core and at the servers behind them.",
        epilog=_EXAMPLES.format(
            "adapters", "ping postgresql://me@db/shop", "bench sqlite:// --seconds 2", program=program
        ),
        formatter_class=_Help,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version of pool-core and of Python")
    commands = parser.add_subparsers(dest="command", required=True, metavar="adapters | ping | bench")
    examples = {
        "adapters": ("adapters", "adapters --json", "ping sqlite://"),
        "ping": ("ping postgresql://me@db/shop", "ping redis://cache --watch", 'ping - <<< "$DATABASE_URL"'),
        "bench": ("bench sqlite:// --seconds 2", "bench redis://cache --size 5", "bench mysql://me@db/shop --json"),
    }

    def add(name: str, summary: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
        text = _EXAMPLES.format(*examples[name], program=program)
        return commands.add_parser(
            name, help=summary, description=description, allow_abbrev=False, epilog=text + epilog, formatter_class=_Help
        )

    adapters = add("adapters", "list the installed adapters", "List the installed adapters, by URL scheme.")
    ping = add(
        "ping",
        "connect, and time round trips to the server",
        "Connect, and time round trips to the server. The exit code is 0 only if each succeeded.",
        _EPILOG,
    )
    bench = add(
        "bench",
        "measure a pool under load",
        "Many tasks get a connection, make one round trip (the adapter's is_valid) and return it. Ctrl-C ends the "
        "measurement and prints what there is.",
        _EPILOG,
    )
    for command in (ping, bench):
        command.add_argument("url", metavar="URL", help="the server; - reads it from the standard input")
    ping.add_argument("--count", type=_at_least_one, metavar="N", help="round trips (5; with --watch: no limit)")
    ping.add_argument(
        "--watch", action="store_true", help="go on, one line each, until Ctrl-C; a lost server is tried again"
    )
    ping.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="S", help="seconds between two, with --watch (1)"
    )
    bench.add_argument("--tasks", type=_at_least_one, default=100, metavar="N", help="tasks at work (%(default)s)")
    bench.add_argument("--size", type=_at_least_one, metavar="N", help="max_size (10, or the URL's pool_max_size)")
    bench.add_argument("--seconds", type=_seconds, default=5.0, metavar="S", help="how long (%(default)g)")
    for command in (ping, bench):
        command.add_argument(
            "--timeout",
            type=_seconds,
            metavar="S",
            help=f"connection_timeout ({_CONNECTION_TIMEOUT:g}, or the URL's pool_connection_timeout)",
        )
    for command in (adapters, ping, bench):
        command.add_argument("--json", action="store_true", help="print one JSON document (with --watch: one a line)")
    return parser


_EXAMPLES = "examples:\n\n  {program} {}\n\n  {program} {}\n\n  {program} {}"
_EPILOG = (
    "\n\nOptions of the pool may stand in the URL, as in ...?pool_max_uses=100. A URL with a password in it is visible to "
    "others of this machine while the command runs: URL - reads it from the standard input."
)


def _at_least_one(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        msg = f"{text!r}: must be a whole number, 1 or more"
        raise argparse.ArgumentTypeError(msg)
    return number


def _seconds(text: str) -> float:
    with suppress(ValueError):
        number = float(text)
        if 0 < number < math.inf:
            return number
    msg = f"{text!r}: must be a finite number of seconds, greater than 0"
    raise argparse.ArgumentTypeError(msg)


# adapters


def _adapters(*, as_json: bool) -> int:
    rows = []
    for claim in _registry.claims():
        problem = None
        try:
            _registry.claim_of(claim.scheme).load()
        except Exception as error:  # noqa: BLE001 - whatever an adapter's import raises
            problem = line_of(str(error))
        rows.append((claim, problem))
    if as_json:
        documents = [
            {"scheme": claim.scheme, "distribution": claim.distribution, "target": claim.target, "error": problem}
            for claim, problem in rows
        ]
        print_json({"adapters": documents})
    elif not rows:
        extras = ", ".join(dict.fromkeys(_registry.EXTRAS.values()))
        show(f'no adapter is installed; install one: pip install "pool-core[postgres]" (there are {extras})')
    else:
        lines = [("SCHEME", "DISTRIBUTION", "TARGET", "")]
        lines += [(claim.scheme, claim.distribution, claim.target, problem or "ok") for claim, problem in rows]
        show(table(lines, columns()))
    return 1 if any(problem for _, problem in rows) else 0


# ping


@dataclass(frozen=True, slots=True)
class Ping:
    """What ping found; times in seconds."""

    scheme: str
    connect: float
    round_trips: list[float]
    problem: str | None

    def document(self) -> dict[str, object]:
        """The same for a program."""
        return {"scheme": self.scheme, "connect_seconds": self.connect, "round_trip_seconds": self.round_trips}

    def text(self) -> str:
        """The same for a person."""
        lines = [f"{self.scheme}: connected in {duration(self.connect)}"]
        lines += [f"round trip {number}: {duration(took)}" for number, took in enumerate(self.round_trips, 1)]
        if len(self.round_trips) > 1:
            lines.append(_spread(self.round_trips))
        return "\n".join(lines)


async def _ping(scheme: str, pool: Pool[Any], manager: ConnectionManager[Any], count: int) -> Ping:
    clock = asyncio.get_running_loop().time
    began = clock()
    took: list[float] = []
    problem = None
    async with _opened(pool):
        connected = clock() - began
        async with pool.get() as conn:
            for number in range(1, count + 1):
                began = clock()
                if problem := await _check(manager, conn, pool.config.validation_timeout):
                    problem = f"round trip {number} of {count}: {problem}"
                    break
                took.append(clock() - began)
    return Ping(scheme, connected, took, problem)


class _Watch:
    """Round trips one after the other, each a line, until they are counted or interrupted."""

    def __init__(
        self, scheme: str, pool: Pool[Any], manager: ConnectionManager[Any], secrets: list[str], *, as_json: bool
    ) -> None:
        self._scheme = scheme
        self._pool = pool
        self._manager = manager
        self._secrets = secrets
        self._as_json = as_json
        self._took: list[float] = []
        self._failed = 0

    async def run(self, count: int | None, interval: float) -> int:
        """Return the exit code: 0 if each succeeded, however it ended."""
        loop = asyncio.get_running_loop()
        await self._pool.open(wait=False)
        try:
            number = 0
            while count is None or number < count:
                number += 1
                began = loop.time()
                await self._once()
                if number != count:
                    await asyncio.sleep(max(0.0, began + interval - loop.time()))
        except asyncio.CancelledError:  # Ctrl-C: how a watch ends
            _take_interrupt()
        finally:
            await self._pool.close(_GRACE)
        if not self._as_json:
            show(self._summary())
        return 1 if self._failed else 0

    async def _once(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            lease = await self._pool.get()
            began = loop.time()
            problem = await _check(self._manager, lease.conn, self._pool.config.validation_timeout)
            took = loop.time() - began
            if problem:
                lease.discard()
            lease.release()
        except Exception as error:  # noqa: BLE001 - whatever a driver raises
            problem, took = said(error), 0.0
        if problem:
            self._failed += 1
            problem = without(problem, self._secrets)
        else:
            self._took.append(took)
        at = time.strftime("%H:%M:%S")
        if self._as_json:
            seconds = None if problem else took
            print_json({"at": time.time(), "scheme": self._scheme, "seconds": seconds, "error": problem}, lines=True)
        else:
            show(f"{at}  {problem or duration(took)}", flush=True)

    def _summary(self) -> str:
        count = len(self._took) + self._failed
        text = f"{self._scheme}: {count} round trips, {self._failed} failed"
        return f"{text}\n{_spread(self._took)}" if self._took else text


def _spread(took: list[float]) -> str:
    least, most, middle = min(took), max(took), statistics.median(took)
    return f"min {duration(least)}, median {duration(middle)}, max {duration(most)}"


def _take_interrupt() -> None:
    """Go on after a Ctrl-C, which asyncio turns into a cancel of the main task; a second one ends the program."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


async def _check(manager: ConnectionManager[Any], conn: object, limit: float | None) -> str | None:
    """Make one round trip; return what went wrong. A driver that does not obey its cancel is not waited for."""
    task = asyncio.ensure_future(manager.is_valid(conn))
    try:
        await asyncio.wait({task}, timeout=limit)
        if not task.done():
            return f"no answer within {limit:g} s"
        return _judge(task.result())
    except Exception as error:  # noqa: BLE001 - raising means invalid
        return said(error)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_GRACE)


def _judge(valid: object) -> str | None:
    """What is wrong with an answer of is_valid."""
    if valid is True:
        return None
    return f"the connection is not valid (is_valid returned {valid if valid is False else type(valid).__name__})"


@asynccontextmanager
async def _opened(pool: Pool[Any]) -> AsyncIterator[None]:
    """Open a pool; a person who waits is not kept by a close for longer than the grace."""
    await pool.open()
    try:
        yield
    finally:
        await pool.close(_GRACE)


# bench


class _Histogram:
    """Durations counted in buckets 1.1 % wide: any number of them in little memory."""

    _PER_OCTAVE = 64

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        self._buckets[math.floor(math.log2(max(seconds, 1e-9)) * self._PER_OCTAVE)] += 1

    def percentile(self, share: float) -> float | None:
        """The least duration that ``share`` of them do not exceed; None without any."""
        rank = math.ceil(share * self._buckets.total())
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return float(2 ** ((bucket + 0.5) / self._PER_OCTAVE))
        return None


@dataclass(frozen=True, slots=True)
class Bench:
    """What bench found; times in seconds."""

    scheme: str
    tasks: int
    max_size: int
    seconds: float
    operations: int
    wait_p50: float | None
    wait_p99: float | None
    fairness: float | None
    statistics: Statistics
    problem: str | None
    interrupted: bool = False

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds if self.seconds else 0.0

    def document(self) -> dict[str, object]:
        """The same for a program."""
        return {
            "scheme": self.scheme,
            "tasks": self.tasks,
            "max_size": self.max_size,
            "seconds": self.seconds,
            "operations": self.operations,
            "operations_per_second": self.rate,
            "wait_p50_seconds": self.wait_p50,
            "wait_p99_seconds": self.wait_p99,
            "fairness": self.fairness,
            "statistics": _numbers(self.statistics),
        }

    def text(self) -> str:
        """The same for a person."""
        fairness = "-" if self.fairness is None else f"{self.fairness:.3f} (Jain; 1: each task did as much)"
        rows = [
            ("operations", str(self.operations)),
            ("operations/s", f"{self.rate:.0f}"),
            ("wait p50", duration(self.wait_p50)),
            ("wait p99", duration(self.wait_p99)),
            ("fairness", fairness),
        ]
        counted: list[tuple[str, str]] = []
        for name, value in _numbers(self.statistics).items():
            if isinstance(value, dict):
                value = ", ".join(f"{reason} {count}" for reason, count in value.items() if count) or "0"
            counted.append((name, f"{value:.3f} s" if isinstance(value, float) else str(value)))
        head = f"{self.scheme}: {self.tasks} tasks, max_size {self.max_size}, {self.seconds:.3g} s"
        width = columns()
        return f"{head}\n\n{table(rows, width)}\n\nstatistics of the pool:\n\n{table(counted, width)}"


async def _bench(scheme: str, pool: Pool[Any], manager: ConnectionManager[Any], tasks: int, seconds: float) -> Bench:
    loop = asyncio.get_running_loop()
    waits = _Histogram()
    done = [0] * tasks
    failed: asyncio.Future[str] = loop.create_future()
    over = False

    async def work(number: int) -> None:
        try:
            while not over:
                began = loop.time()
                lease = await pool.get()
                waited = loop.time() - began
                try:
                    if over:
                        return
                    if problem := _judge(await manager.is_valid(lease.conn)):
                        lease.discard()
                        fail(problem)
                        return
                finally:
                    lease.release()
                if not over:
                    waits.add(waited)
                    done[number] += 1
                # A manager that need not wait for its answer would keep the other tasks and the clock from running.
                await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - the first failure ends the measurement and is reported
            fail(said(error))

    def fail(problem: str) -> None:
        if not failed.done():
            failed.set_result(problem)

    async with _opened(pool):
        workers = {asyncio.create_task(work(number), name=f"bench {number}") for number in range(tasks)}
        live = LiveLine()
        began = loop.time()
        interrupted = False
        try:
            try:
                while (left := began + seconds - loop.time()) > 0 and not failed.done():
                    await asyncio.wait({failed}, timeout=min(left, _LIVE))
                    passed = loop.time() - began
                    live.show(f"{passed:.1f} of {seconds:g} s: {sum(done)} operations, {_numbers_now(pool)}")
            except asyncio.CancelledError:  # Ctrl-C: what there is counts all the same
                _take_interrupt()
                interrupted = True
            took = loop.time() - began
            picture = pool.state()
            over = True
            live.clear()
            problem = failed.result() if failed.done() else None
            if interrupted:
                problem = f"interrupted after {took:.3g} of {seconds:g} s"
            _, stuck = await asyncio.wait(workers, timeout=_GRACE)
            if stuck and not problem:
                problem = f"{len(stuck)} of {tasks} tasks had no answer {_GRACE:g} s after the end"
        finally:
            over = True
            live.clear()
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers, timeout=_GRACE)
    squares = sum(count * count for count in done)
    return Bench(
        scheme=scheme,
        tasks=tasks,
        max_size=pool.config.max_size,
        seconds=took,
        operations=sum(done),
        wait_p50=waits.percentile(0.5),
        wait_p99=waits.percentile(0.99),
        fairness=sum(done) ** 2 / (tasks * squares) if squares else None,
        statistics=picture.statistics,
        problem=problem,
        interrupted=interrupted,
    )


def _numbers(counted: Statistics) -> dict[str, Any]:
    numbers = {each.name: getattr(counted, each.name) for each in fields(counted)}
    closed = numbers["connections_closed"]
    return numbers | {"connections_closed": {reason.value: count for reason, count in closed.items()}}


def _numbers_now(pool: Pool[Any]) -> str:
    state = pool.state()
    return f"{state.in_use} in use, {state.idle} idle, {state.waiting} waiting"
