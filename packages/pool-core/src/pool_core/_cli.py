"""The command line: which adapters are installed, does a server answer, and how fast is a pool of its connections.

Exit codes: 0 all is well; 1 something failed; 2 wrong usage (an unknown option, a URL that no adapter takes); 130
interrupted by Ctrl-C; 141 nobody reads the output any more. No colours and no escape sequences, ever; the live line of
``bench`` is written to a terminal only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import re
import shutil
import statistics
import sys
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast
from urllib.parse import unquote

from . import _registry
from ._config import PoolOptions
from ._pool import Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from ._manager import ConnectionManager
    from ._statistics import Statistics

__all__ = ["main"]

T = TypeVar("T")

_PROG = "python -m pool_core"
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
        _complain("interrupted")
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
        _write_error(error.usage)
        given = [part for argument in arguments for part in (argument, argument.partition("=")[2])]
        _complain(_without(str(error), [part for part in given if not _PLAIN.fullmatch(part)]))
        return 2
    except SystemExit as done:  # --help
        return int(done.code or 0)
    if args.command == "adapters":
        return _adapters(as_json=args.json)
    url: str = sys.stdin.readline().rstrip("\r\n") if args.url == "-" else args.url
    secrets = _secrets(url)
    try:
        manager, found = _registry.manager_and_options(url)
        # close_timeout too: an open that fails half done says goodbye to what it had, which a hung server never answers.
        options: dict[str, Any] = {"connection_timeout": _CONNECTION_TIMEOUT, "close_timeout": _GRACE, **found}
        if args.timeout is not None:
            options["connection_timeout"] = args.timeout
        if args.command == "ping":
            options["min_idle"] = 1
        else:
            if args.size is not None:
                options["max_size"] = args.size
            # Filled before the clock starts: opening is not what is measured.
            options["min_idle"] = options.setdefault("max_size", 10)
        pool = Pool(manager, **cast("PoolOptions[Any]", options))
    except (ValueError, TypeError) as error:
        return _fail(args, 2, _without(str(error), secrets))
    except Exception as error:  # noqa: BLE001 - an adapter may raise anything
        return _fail(args, 1, _without(_said(error), secrets))
    scheme = _registry.scheme_of(url)
    try:
        if args.command == "ping":
            report: Ping | Bench = run(_ping(scheme, pool, manager, args.count))
        else:
            report = run(_bench(scheme, pool, manager, args.tasks, args.seconds))
    except Exception as error:  # noqa: BLE001 - and so may a driver
        return _fail(args, 1, f"{scheme}: {_without(_said(error), secrets)}")
    problem = report.problem and _without(report.problem, secrets)
    if args.json:
        _print_json({**report.document(), "error": problem})
    else:
        _print(report.text())
        if problem:
            _complain(f"{args.command}: {scheme}: {problem}")
    return 1 if problem else 0


def _fail(args: argparse.Namespace, code: int, message: str) -> int:
    if args.json:
        _print_json({"error": message})
    else:
        _complain(f"{args.command}: {message}")
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


def _parser() -> _Parser:
    parser = _Parser(prog=_PROG, description="Look at the adapters of pool-core and at the servers behind them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="adapters | ping | bench")
    adapters = commands.add_parser("adapters", help="list the installed adapters", allow_abbrev=False)
    ping = commands.add_parser(
        "ping", help="connect, and time round trips to the server", allow_abbrev=False, epilog=_EPILOG
    )
    bench = commands.add_parser(
        "bench",
        help="measure a pool under load",
        allow_abbrev=False,
        description="Many tasks get a connection, make one round trip (the adapter's is_valid) and release it.",
        epilog=_EPILOG,
    )
    for command in (ping, bench):
        command.add_argument("url", metavar="URL", help="the server; - reads it from the standard input")
    ping.add_argument("--count", type=_at_least_one, default=5, metavar="N", help="round trips (%(default)s)")
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
        command.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


_EPILOG = (
    "Options of the pool may stand in the URL, as in ...?pool_max_uses=100. A URL with a password in it is visible to "
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
            problem = _line(str(error))
        rows.append((claim, problem))
    if as_json:
        documents = [
            {"scheme": claim.scheme, "distribution": claim.distribution, "target": claim.target, "error": problem}
            for claim, problem in rows
        ]
        _print_json({"adapters": documents})
    elif not rows:
        extras = ", ".join(dict.fromkeys(_registry.EXTRAS.values()))
        _print(f'no adapter is installed; install one: pip install "pool-core[postgres]" (there are {extras})')
    else:
        table = [("SCHEME", "DISTRIBUTION", "TARGET", "")]
        table += [(claim.scheme, claim.distribution, claim.target, problem or "ok") for claim, problem in rows]
        _print(_table(table))
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
        lines = [f"{self.scheme}: connected in {_ms(self.connect)}"]
        lines += [f"round trip {number}: {_ms(took)}" for number, took in enumerate(self.round_trips, 1)]
        if len(self.round_trips) > 1:
            least, most, middle = min(self.round_trips), max(self.round_trips), statistics.median(self.round_trips)
            lines.append(f"min {_ms(least)}, median {_ms(middle)}, max {_ms(most)}")
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


async def _check(manager: ConnectionManager[Any], conn: object, limit: float | None) -> str | None:
    """Make one round trip; return what went wrong. A driver that does not obey its cancel is not waited for."""
    task = asyncio.ensure_future(manager.is_valid(conn))
    try:
        await asyncio.wait({task}, timeout=limit)
        if not task.done():
            return f"no answer within {limit:g} s"
        return _judge(task.result())
    except Exception as error:  # noqa: BLE001 - raising means invalid
        return _said(error)
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
            ("wait p50", _ms(self.wait_p50)),
            ("wait p99", _ms(self.wait_p99)),
            ("fairness", fairness),
        ]
        counted: list[tuple[str, str]] = []
        for name, value in _numbers(self.statistics).items():
            if isinstance(value, dict):
                value = ", ".join(f"{reason} {count}" for reason, count in value.items() if count) or "0"
            counted.append((name, f"{value:.3f} s" if isinstance(value, float) else str(value)))
        head = f"{self.scheme}: {self.tasks} tasks, max_size {self.max_size}, {self.seconds:.3g} s"
        return f"{head}\n\n{_table(rows)}\n\nstatistics of the pool:\n\n{_table(counted)}"


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
            fail(_said(error))

    def fail(problem: str) -> None:
        if not failed.done():
            failed.set_result(problem)

    async with _opened(pool):
        workers = {asyncio.create_task(work(number), name=f"bench {number}") for number in range(tasks)}
        live = _LiveLine()
        began = loop.time()
        try:
            while (left := began + seconds - loop.time()) > 0 and not failed.done():
                await asyncio.wait({failed}, timeout=min(left, _LIVE))
                live.show(f"{loop.time() - began:.1f} of {seconds:g} s: {sum(done)} operations, {_numbers_now(pool)}")
            took = loop.time() - began
            picture = pool.state()
            over = True
            live.clear()
            problem = failed.result() if failed.done() else None
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
    )


def _numbers(counted: Statistics) -> dict[str, Any]:
    numbers = {each.name: getattr(counted, each.name) for each in fields(counted)}
    closed = numbers["connections_closed"]
    return numbers | {"connections_closed": {reason.value: count for reason, count in closed.items()}}


def _numbers_now(pool: Pool[Any]) -> str:
    state = pool.state()
    return f"{state.in_use} in use, {state.idle} idle, {state.waiting} waiting"


class _LiveLine:
    """One line of the terminal that is written again and again, without escape sequences. Elsewhere: nothing.

    It goes to the standard error, so that the table can be piped while it is watched.
    """

    def __init__(self) -> None:
        self._on = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._width = 0

    def show(self, text: str) -> None:
        text = text[: shutil.get_terminal_size().columns - 1]
        self._write("\r" + text.ljust(self._width))
        self._width = len(text)

    def clear(self) -> None:
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _write(self, text: str) -> None:
        if not self._on:
            return
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:  # the terminal has gone
            self._on = False


# Output

_PLAIN = re.compile(r"-{0,2}[\w\-]*", re.ASCII)
"""What may be an option, a command or a number, but no URL."""


def _secrets(url: str) -> list[str]:
    """Whatever of a URL no message may show. Adapters scrub theirs; this is for those that forget, and their drivers."""
    secrets = [url]
    after = url.partition("://")[2]
    # A password may hold a bare / ? # or @, and a query an @: take every end that anybody could read as the user's.
    for at in re.finditer("@", after):
        user = after[: at.start()]
        for part in (user, re.split(r"[/?#]", user)[0]):
            secrets += [part, part.partition(":")[2]]
    for pair in re.split(r"[?&;#]", after)[1:]:
        key, _, value = pair.partition("=")
        if re.search("pass|pwd|secret|token|key", key, re.IGNORECASE):
            secrets.append(value)
    secrets += [unquote(secret) for secret in secrets]
    # What is as short as this guards nothing, and stands in many a word.
    return [secret for secret in secrets if len(secret) > 2]


def _without(text: str, secrets: list[str]) -> str:
    """Take the secrets out, however a driver spells them: as they are, percent-encoded, or escaped as repr does."""
    for secret in sorted(secrets, key=len, reverse=True):
        spelt = "".join(map(_spellings, secret))
        text = re.sub(rf"b?(['\"]){spelt}\1|{spelt}", "(not shown)", text)
    return _line(text)


def _spellings(char: str) -> str:
    """Return a pattern of every way in which a character may stand in a text."""
    raw = char.encode("utf-8", "surrogatepass")
    ways = [
        "".join(f"%{byte:02x}" for byte in raw),
        "".join(rf"\\x{byte:02x}" for byte in raw),
        *(rf"\\{kind}{ord(char):0{digits}x}" for kind, digits in (("x", 2), ("u", 4), ("U", 8))),
    ]
    escapes = "|".join(dict.fromkeys(ways))
    return rf"(?:\\?{re.escape(char)}|(?i:{escapes}){'|[+]' if char == ' ' else ''})"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {text}" if (text := str(error)) else type(error).__name__


def _line(text: str) -> str:
    """One line, and no control characters: a server's message must not steer the terminal."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.1f} us"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _print_json(document: dict[str, object]) -> None:
    _print(json.dumps(document, indent=2))


def _print(text: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def _complain(message: str) -> None:
    _write_error(f"pool_core: {message}\n")


def _write_error(text: str) -> None:
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
