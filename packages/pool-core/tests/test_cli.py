"""``python -m pool_core``: adapters, ping and bench, and how they end when something is wrong."""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pool_core._cli import _Histogram, main
from pool_core.testing import NEVER, Delay, FakeManager, Gate, ScriptedManager, SwallowCancel, run

from .fake_adapters import Adapters

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pool_core.testing import FakeConnection


class Terminal(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self) -> bool:
        """It is one."""
        return True


class Cli:
    """Runs commands on virtual time, against adapters with the scheme ``fake``."""

    def __init__(self, adapters: Adapters, capsys: pytest.CaptureFixture[str]) -> None:
        self.adapters = adapters
        self._capsys = capsys
        self.out = self.err = ""
        self.took = math.nan

    def manager(self, **scripts: Any) -> ScriptedManager:
        """Install the adapter; its manager's calls do what the scripts say."""
        manager = ScriptedManager(**scripts)
        self.adapters.provide("fake", lambda _url: manager)
        return manager

    def __call__(self, *argv: str) -> int:
        """Run a command; leftover tasks and unheard exceptions are errors."""

        async def timed(work: Any) -> Any:
            loop = asyncio.get_running_loop()
            began = loop.time()
            try:
                return await work
            finally:
                self.took = loop.time() - began

        code = main(argv, run=lambda work: run(timed(work)))
        self.out, self.err = self._capsys.readouterr()
        return code

    def document(self, *argv: str, code: int = 0) -> dict[str, Any]:
        """Run a command with ``--json``; return its document."""
        assert self(*argv, "--json") == code
        assert self.err == ""
        document: dict[str, Any] = json.loads(self.out)
        return document


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    with Adapters.at(tmp_path / "site", monkeypatch) as adapters:
        yield Cli(adapters, capsys)


# adapters


def test_adapters_lists_what_is_installed(cli: Cli) -> None:
    """The first question when a scheme is not found."""
    cli.adapters.hide_others()
    module = cli.adapters.install("fake", "faker")
    assert cli("adapters") == 0
    assert [line.split() for line in cli.out.splitlines()] == [
        ["SCHEME", "DISTRIBUTION", "TARGET"],
        ["fake", "pool-fake", "1.2", f"{module}:make", "ok"],
        ["faker", "pool-fake", "1.2", f"{module}:make", "ok"],
    ]
    assert cli.document("adapters") == {
        "adapters": [
            {"scheme": scheme, "distribution": "pool-fake 1.2", "target": f"{module}:make", "error": None}
            for scheme in ("fake", "faker")
        ]
    }


def test_adapters_names_those_that_can_not_be_used(cli: Cli) -> None:
    """A broken installation and a scheme claimed twice show before a program needs them."""
    cli.adapters.hide_others()
    cli.adapters.install("broken", dist="pool-broken", source="import no_such_driver")
    cli.adapters.install("twice", dist="pool-one")
    cli.adapters.install("twice", dist="pool-two")
    cli.adapters.install("well")
    assert cli("adapters") == 1
    broken, one, two, well = cli.out.splitlines()[1:]
    assert "No module named 'no_such_driver'" in broken
    for line in (one, two):
        assert re.search(r"claimed by pool-one 1\.2 .* and by pool-two 1\.2", line)
    assert well.endswith("ok")


def test_adapters_says_what_to_install_when_there_is_none(cli: Cli) -> None:
    """pool-core alone comes without any: that is no failure."""
    cli.adapters.hide_others()
    assert cli("adapters") == 0
    said = 'no adapter is installed; install one: pip install "pool-core[postgres]" (there are '
    assert cli.out.startswith(said)
    assert {"postgres", "redis", "sqlite"} <= set(cli.out.removeprefix(said).removesuffix(")\n").split(", "))
    assert cli.document("adapters") == {"adapters": []}


# ping


def test_ping_prints_how_long_connecting_and_each_round_trip_took(cli: Cli) -> None:
    """With these figures a user can choose the timeouts."""
    manager = cli.manager(connect=Delay(0.02), is_valid=[Delay(0.005), Delay(0.001), Delay(0.00005)])
    assert cli("ping", "fake://user:canary@h", "--count", "3") == 0
    assert cli.out.splitlines() == [
        "fake: connected in 20.00 ms",
        "round trip 1: 5.00 ms",
        "round trip 2: 1.00 ms",
        "round trip 3: 50.0 us",
        "min 50.0 us, median 1.00 ms, max 5.00 ms",
    ]
    assert cli.err == ""
    manager.check(open=0)


def test_ping_can_say_it_to_a_program(cli: Cli) -> None:
    """One document, times in seconds, the error always in it."""
    cli.manager(connect=Delay(0.02), is_valid=Delay(0.005))
    assert cli.document("ping", "fake://h", "--count=2") == {
        "scheme": "fake",
        "connect_seconds": pytest.approx(0.02),
        "round_trip_seconds": [pytest.approx(0.005)] * 2,
        "error": None,
    }


@pytest.mark.parametrize(
    ("is_valid", "said"),
    [
        (False, "the connection is not valid (is_valid returned False)"),
        ([True, None], "the connection is not valid (is_valid returned NoneType)"),
        (OSError("gone"), "OSError: gone"),
        (NEVER, "no answer within 5 s"),
        (SwallowCancel(seconds=6), "no answer within 5 s"),
    ],
)
def test_a_round_trip_that_fails_is_said_and_fails_the_command(cli: Cli, is_valid: object, said: str) -> None:
    """A server that accepts connections and does not answer is down, and no driver may keep ping from saying so."""
    manager = cli.manager(is_valid=is_valid)
    assert cli("ping", "fake://h") == 1
    number = 2 if isinstance(is_valid, list) else 1
    assert cli.err == f"pool_core: ping: fake: round trip {number} of 5: {said}\n"
    assert "round trip" not in cli.out or number == 2
    assert cli.took < 10
    manager.check(open=0)


def test_a_server_that_is_down_is_one_line_within_the_connection_timeout(cli: Cli) -> None:
    """Refused connects are tried again, since a server may be starting, but not for longer than was said."""
    cli.manager(connect=ConnectionRefusedError(111, "refused by 127.0.0.1:1"))
    assert cli("ping", "fake://user:canary@h", "--timeout", "3") == 1
    assert cli.err == "pool_core: ping: fake: ConnectionRefusedError: [Errno 111] refused by 127.0.0.1:1\n"
    assert cli.out == ""
    assert cli.took == pytest.approx(3)


def test_a_server_that_hangs_is_one_line_within_the_connection_timeout(cli: Cli) -> None:
    """Packets that a firewall drops give no error at all: the pool's own must do."""
    manager = cli.manager(connect=NEVER)
    assert cli("bench", "fake://h", "--timeout", "3") == 1
    assert re.fullmatch(r"pool_core: bench: fake: PoolTimeout: .*phase connect.*\n", cli.err)
    assert cli.took == pytest.approx(3)
    manager.check(open=0)


def test_a_server_that_hangs_while_the_pool_opens_costs_two_seconds_more_at_most(cli: Cli) -> None:
    """The pool closes the connections that it has opened, and a hung server does not answer."""
    manager = cli.manager(connect=[*[Delay(0.1)] * 2, *[NEVER] * 20], close=NEVER)
    assert cli("bench", "fake://h", "--timeout", "3", "--size", "4") == 1
    assert cli.err.startswith("pool_core: bench: fake: PoolTimeout: ")
    assert 3 <= cli.took <= 5.01
    manager.check(open=0)


@pytest.mark.parametrize(
    ("url", "arguments", "seconds"),
    [
        ("fake://h", [], 10),
        ("fake://h?pool_connection_timeout=4", [], 4),
        ("fake://h?pool_connection_timeout=4", ["--timeout=2.5"], 2.5),
    ],
)
def test_the_timeout_is_the_arguments_else_the_urls_else_ten_seconds(
    cli: Cli, url: str, arguments: list[str], seconds: float
) -> None:
    """A person who waits wants an answer sooner than a program; what they said counts."""
    cli.manager(connect=OSError("down"))
    assert cli("ping", url, *arguments) == 1
    assert cli.took == pytest.approx(seconds)


def test_an_error_that_waiting_will_not_heal_comes_at_once(cli: Cli) -> None:
    """A wrong password is not tried for ten seconds."""
    cli.manager(connect=PermissionError("wrong password"), is_transient=False)
    assert cli("ping", "fake://h") == 1
    assert cli.err == "pool_core: ping: fake: PermissionError: wrong password\n"
    assert cli.took == 0


def test_a_failure_is_a_document_too(cli: Cli) -> None:
    """Whoever asked for JSON reads JSON, whatever has happened."""
    cli.manager(connect=PermissionError("wrong password"), is_transient=False)
    assert cli.document("ping", "fake://h", code=1) == {"error": "fake: PermissionError: wrong password"}
    assert cli.document("ping", "nosuch://h", code=2)["error"].startswith("no installed adapter claims")


def test_the_url_can_come_from_the_standard_input(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments are visible to everybody on the machine while the command runs."""
    module = cli.adapters.install("fake")
    monkeypatch.setattr(sys, "stdin", io.StringIO("fake://user:canary@h?pool_guard=on\n"))
    assert cli("ping", "-") == 0
    assert cli.adapters.seen(module) == ["fake://user:canary@h"]


# ping --watch


def test_a_watch_prints_a_line_for_each_round_trip_and_a_summary(cli: Cli) -> None:
    """One after the other, each at its time; the connection is validated by nothing else."""
    manager = cli.manager(connect=Delay(0.02), is_valid=[Delay(0.005), Delay(0.001), Delay(0.003)])
    assert cli("ping", "fake://user:canary@h", "--watch", "--count=3", "--interval=2") == 0
    lines = cli.out.splitlines()
    assert [line[10:] for line in lines[:3]] == ["5.00 ms", "1.00 ms", "3.00 ms"]
    assert lines[3:] == ["fake: 3 round trips, 0 failed", "min 1.00 ms, median 3.00 ms, max 5.00 ms"]
    assert cli.took == pytest.approx(4.003, abs=0.01)
    assert len(manager.calls("is_valid")) == 3
    manager.check(open=0)


def test_a_watch_goes_on_while_the_server_is_away_and_tells_when_it_is_back(cli: Cli) -> None:
    """Also when it is away at first: a watch is begun in an outage."""
    down = ConnectionRefusedError(111, "refused, canary")
    manager = cli.manager(connect=[down] * 6, is_valid=[True, OSError("gone"), False, True])
    assert cli("ping", "fake://user:canary@h", "--watch", "--count=8", "--timeout=0.5", "--interval=1") == 1
    told = [line[10:] for line in cli.out.splitlines()]
    assert told[0].startswith("PoolTimeout: ")
    assert "refused, (not shown)" in told[0]
    later = [line for line in told[:8] if not line.startswith("PoolTimeout")]
    assert later[:4] == ["0.0 us", "OSError: gone", "the connection is not valid (is_valid returned False)", "0.0 us"]
    failed = 8 - sum(line.endswith(" us") for line in told[:8])
    assert f"fake: 8 round trips, {failed} failed\n" in cli.out
    assert "canary" not in cli.out
    manager.check(open=0)


def test_a_watch_for_a_program_is_one_document_a_line(cli: Cli) -> None:
    """So that each can be read as it comes."""
    cli.manager(is_valid=[Delay(0.005), OSError("gone")])
    assert cli("ping", "fake://h", "--watch", "--count=2", "--json") == 1
    first, second = map(json.loads, cli.out.splitlines())
    assert first == {"at": first["at"], "scheme": "fake", "seconds": pytest.approx(0.005), "error": None}
    assert (second["seconds"], second["error"]) == (None, "OSError: gone")


def test_a_watch_of_which_nothing_succeeded_has_no_figures(cli: Cli) -> None:
    """There is nothing to take the median of."""
    cli.manager(connect=PermissionError("wrong password"), is_transient=False)
    assert cli("ping", "fake://h", "--watch", "--count=1") == 1
    assert cli.out.splitlines()[-1] == "fake: 1 round trips, 1 failed"


# bench


def test_bench_measures_operations_waits_and_fairness(cli: Cli) -> None:
    """Ten tasks share two connections of 10 ms: 200 operations in a second, and each waits for four others."""
    manager = cli.manager(connect=Delay(0.5), is_valid=Delay(0.01))
    found = cli.document("bench", "fake://h", "--tasks=10", "--size=2", "--seconds=1")
    assert found["scheme"] == "fake"
    assert (found["tasks"], found["max_size"], found["error"]) == (10, 2, None)
    assert found["seconds"] == pytest.approx(1)
    assert found["operations"] == pytest.approx(200, abs=2)
    assert found["operations_per_second"] == pytest.approx(200, abs=2)
    assert found["wait_p50_seconds"] == pytest.approx(0.04, rel=0.012)
    assert found["wait_p99_seconds"] == pytest.approx(0.04, rel=0.012)
    assert found["fairness"] == pytest.approx(1, abs=0.001)
    counted = found["statistics"]
    assert counted["connections_created"] == 2
    assert counted["connections_closed"]["pool_closed"] == 0
    assert counted["gets_started"] >= found["operations"]
    assert cli.took < 1.6
    assert manager.peak["is_valid"] == 2
    manager.check(open=0)


def test_bench_prints_a_table(cli: Cli) -> None:
    """The same for a person; without a terminal no line is written over and over."""
    cli.manager(is_valid=Delay(0.01))
    assert cli("bench", "fake://user:canary@h?pool_max_size=4", "--tasks", "4", "--seconds", "0.5") == 0
    head, _, *rows = cli.out.splitlines()
    assert head == "fake: 4 tasks, max_size 4, 0.5 s"
    table = dict(re.split(r" {2,}", row) for row in rows if "  " in row)
    assert int(table["operations"]) == pytest.approx(200, abs=4)
    assert int(table["operations/s"]) == pytest.approx(400, abs=8)
    assert re.fullmatch(r"\d+\.\d us", table["wait p50"])
    assert re.fullmatch(r"\d+\.\d us", table["wait p99"])
    assert table["fairness"] == "1.000 (Jain; 1: each task did as much)"
    assert table["connections_created"] == "4"
    assert table["connections_closed"] == "0"
    assert cli.err == ""
    assert "\x1b" not in cli.out


def test_fairness_shows_a_task_that_starves(cli: Cli) -> None:
    """Jain's index: 1 when all did as much, 1/n when one did everything."""
    gate = Gate()
    calls = 0

    def slow_first(_conn: FakeConnection | None) -> object:
        nonlocal calls
        calls += 1
        return gate if calls == 1 else Delay(0.01)

    cli.manager(is_valid=slow_first)
    assert cli("bench", "fake://h", "--tasks=2", "--size=2", "--seconds=1", "--json") == 1
    found = json.loads(cli.out)
    assert found["fairness"] == pytest.approx(0.5)
    assert found["error"] == "1 of 2 tasks had no answer 2 s after the end"


def test_bench_without_any_operation_has_no_figures_and_no_crash(cli: Cli) -> None:
    """Shorter than one round trip: there is nothing to divide."""
    cli.manager(is_valid=Delay(1))
    found = cli.document("bench", "fake://h", "--tasks=3", "--seconds=0.5")
    assert [found[name] for name in ("operations", "wait_p50_seconds", "wait_p99_seconds", "fairness")] == [
        0,
        None,
        None,
        None,
    ]
    assert cli("bench", "fake://h", "--tasks=3", "--seconds=0.5") == 0
    assert "wait p50      -\n" in cli.out


def test_the_size_is_the_arguments_else_the_urls_else_ten(cli: Cli) -> None:
    """An option of the URL is not thrown away by a default of the command."""
    cli.manager(is_valid=Delay(0.01))
    for url, arguments, size in [
        ("fake://h", [], 10),
        ("fake://h?pool_max_size=3", [], 3),
        ("fake://h?pool_max_size=3", ["--size=4"], 4),
    ]:
        found = cli.document("bench", url, "--seconds=0.1", *arguments)
        assert (found["max_size"], found["statistics"]["connections_created"]) == (size, size)


@pytest.mark.parametrize(
    ("is_valid", "said"),
    [
        (OSError("gone"), "OSError: gone"),
        (False, "the connection is not valid (is_valid returned False)"),
    ],
)
def test_the_first_failure_ends_the_measurement(cli: Cli, is_valid: object, said: str) -> None:
    """Figures of a server that fails mean nothing; the ones so far are shown with the failure."""
    manager = cli.manager(is_valid=[*[Delay(0.01)] * 20, Delay(0.01, then=is_valid)])
    assert cli("bench", "fake://h", "--tasks=2", "--size=1", "--seconds=60") == 1
    assert cli.err == f"pool_core: bench: fake: {said}\n"
    assert "operations    20\n" in cli.out
    assert cli.took < 1
    manager.check(open=0)


def test_a_get_that_fails_ends_the_measurement(cli: Cli) -> None:
    """The pool's own error says more than any figure."""
    cli.manager(is_valid=Delay(1))
    assert cli("bench", "fake://h", "--tasks=3", "--size=1", "--seconds=60", "--timeout=0.5") == 1
    assert cli.err.startswith("pool_core: bench: fake: PoolTimeout: ")
    assert cli.took < 5


@pytest.mark.parametrize("hang", [NEVER, SwallowCancel(seconds=4.5)])
def test_a_server_that_hangs_does_not_prolong_bench_by_more_than_seconds(cli: Cli, hang: object) -> None:
    """--seconds is a promise: what has no answer then is cut off and said."""
    manager = cli.manager(is_valid=[*[Delay(0.01)] * 10, *[hang] * 10])
    assert cli("bench", "fake://h", "--tasks=3", "--size=1", "--seconds=1") == 1
    assert cli.err == "pool_core: bench: fake: 3 of 3 tasks had no answer 2 s after the end\n"
    assert cli.took < 8
    manager.check(open=0)


def test_a_manager_that_never_waits_starves_neither_tasks_nor_clock(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    """An embedded database may answer without a turn of the loop; then a task could run for ever."""
    cli.adapters.provide("fake", lambda _url: FakeManager())
    assert main(["bench", "fake://h", "--tasks=3", "--size=1", "--seconds=0.05", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["operations"] > 3
    assert found["fairness"] > 0.9


def test_the_histogram_is_right_to_one_percent() -> None:
    """It stands in for all the durations, which would not fit in memory."""
    histogram = _Histogram()
    assert histogram.percentile(0.5) is None
    for number in range(1, 1001):
        histogram.add(number / 1000)
    for share in (0.001, 0.5, 0.99, 1.0):
        assert histogram.percentile(share) == pytest.approx(share, rel=0.012)
    histogram.add(0.0)
    assert histogram.percentile(0.0001) == pytest.approx(0, abs=1e-8)


# The live line


def test_a_terminal_sees_a_live_line_that_is_wiped_at_the_end(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows that something happens; the table stands alone afterwards. No escape sequence is needed for it."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    cli.manager(is_valid=Delay(0.01))
    assert cli("bench", "fake://h", "--tasks=4", "--size=2", "--seconds=1") == 0
    shown = terminal.getvalue()
    assert "\r0.5 of 1 s: " in shown
    assert "operations, 2 in use, 0 idle, 2 waiting" in shown
    assert "\x1b" not in shown
    assert "\n" not in shown
    *_, last, end = shown.split("\r")
    assert last.strip() == end == ""
    assert max(map(len, shown.split("\r"))) < 60


@pytest.mark.parametrize(("terminal", "term"), [(False, "xterm"), (True, "dumb")])
def test_without_a_terminal_there_is_no_live_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, terminal: bool, term: str
) -> None:
    """A log would keep every state of it."""
    monkeypatch.setattr(sys, "stderr", stream := Terminal() if terminal else io.StringIO())
    monkeypatch.setenv("TERM", term)
    cli.manager(is_valid=Delay(0.01))
    assert cli("bench", "fake://h", "--seconds=1") == 0
    assert stream.getvalue() == ""


def test_a_terminal_that_goes_away_does_not_end_the_measurement(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table may go to a file."""

    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setenv("TERM", "xterm")
    cli.manager(is_valid=Delay(0.01))
    assert cli("bench", "fake://h", "--seconds=1") == 0
    assert "operations/s" in cli.out


# Narrow terminals, the version, help


@pytest.mark.parametrize("width", [24, 44, 60])
def test_nothing_is_wider_than_the_terminal(cli: Cli, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """A phone, or a terminal beside an editor: lines that break by themselves are no table."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")  # argparse of Python 3.14 colours its help, which has no width
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    cli.adapters.hide_others()
    module = cli.adapters.install("postgresql", dist="pool-postgresql-of-ours")
    cli.adapters.install("broken", dist="pool-broken", source="import no_such_driver")
    assert cli("adapters") == 1
    words = max(map(len, cli.out.split()))
    assert max(map(len, cli.out.splitlines())) <= max(width, words + 2)
    assert "SCHEME" not in cli.out
    assert f"\npostgresql\n  pool-postgresql-of-ours 1.2\n  {module}:make\n  ok\n" in cli.out or width < 30
    cli.manager(is_valid=Delay(0.01))
    assert cli("bench", "fake://h", "--tasks=4", "--seconds=0.5") == 0
    rows = cli.out.splitlines()[2:]
    assert max(map(len, rows)) <= max(width, len("connections_abandoned") + 2)
    assert "fairness" in cli.out
    assert cli("bench", "--help") == 0
    assert max(map(len, cli.out.splitlines())) <= max(width, 66)  # examples are left as they are


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_wide_terminal_and_what_is_piped_have_tables(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    """What is piped is never folded: a program may read it."""
    monkeypatch.setenv("COLUMNS", "120" if is_terminal else "20")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    cli.adapters.hide_others()
    cli.adapters.install("postgresql", dist="pool-postgresql-of-ours")
    assert cli("adapters") == 0
    assert len(cli.out.splitlines()) == 2


def test_the_version_is_told(cli: Cli) -> None:
    """The first line of a report of a fault."""
    assert cli("--version") == 0
    assert re.fullmatch(r"pool-core \d+\.\d+\.\d+\S* \(Python 3\.\d+\.\d+\S*\)\n", cli.out)


@pytest.mark.parametrize("command", [[], ["adapters"], ["ping"], ["bench"]])
def test_help_shows_examples(cli: Cli, command: list[str]) -> None:
    """What people copy; each of them is understood."""
    assert cli(*command, "--help") == 0
    lines = re.findall(r"^  (python -m pool_core .*)$", cli.out, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        words = line.partition(" <<<")[0].split()[3:]
        from pool_core._cli import _parser

        _parser().parse_args(words)


def test_the_console_script_calls_itself_by_its_name(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Usage and examples can be copied."""
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pool-core", "--help"])
    assert cli("ping", "--help") == 0
    assert cli.out.startswith("usage: pool-core ping ")
    assert "  pool-core ping redis://cache --watch\n" in cli.out


# Wrong usage, and what is never shown


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["pong"],
        ["ping"],
        ["fake://user:canary@h"],
        ["ping", "fake://user:canary@h", "fake://user:canary@h"],
        ["ping", "3", "user:can'ary canary@h"],
        ["bench", "--tasks", "fake://user:canary@h"],
        ["bench", "--tasks=fake://user:canary@h"],
        ["bench", "--json=fake://user:canary@h", "fake://h"],
        ["bench", "fake://h", "--nosuch=host=h password=canary"],
        ["adapters", "fake://user:canary@h"],
        ["ping", "fake://h", "--count", "0"],
        ["ping", "fake://h", "--count", "1.5"],
        ["ping", "fake://h", "--timeout", "-1"],
        ["ping", "fake://h", "--timeout", "nan"],
        ["bench", "fake://h", "--seconds", "inf"],
        ["bench", "fake://h", "--seconds", "0"],
        ["bench", "fake://h", "--size", "0"],
        ["bench", "fake://h", "--sec", "1"],
    ],
)
def test_wrong_usage_is_two_and_shows_no_url(cli: Cli, argv: list[str]) -> None:
    """argparse quotes what it does not understand, and a slip of the hand must not print a password."""
    cli.manager()
    assert cli(*argv) == 2
    assert cli.out == ""
    usage, said = cli.err.rsplit("\n", 2)[:2]
    assert usage.startswith("usage: python -m pool_core")
    assert said.startswith("pool_core: ")
    assert "canary" not in cli.err


@pytest.mark.parametrize("option", ["--count", "--tasks", "--size", "--seconds", "--timeout"])
def test_a_bad_number_is_named_with_what_is_allowed(cli: Cli, option: str) -> None:
    """One sentence, as everywhere in the pool."""
    assert cli("ping" if option == "--count" else "bench", "fake://h", option, "x") == 2
    assert re.search(rf"argument {option}: 'x': must be a (whole number, 1 or more|finite number of seconds)", cli.err)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nosuch://user:canary@h", "no installed adapter claims the scheme 'nosuch'"),
        ("user:canary@h", "the URL must begin with a scheme"),
        ("fake://user:canary@h?pool_nosuch=1", "unknown option 'pool_nosuch'"),
        ("fake://user:canary@h?pool_max_size=x", "pool_max_size='x': must be a whole number"),
        ("fake://user:canary@h?pool_max_size=0", "must not be greater than max_size|max_size=0: must be at least 1"),
        ("picky://user:canary@h", r"bad URL \(not shown\)"),
    ],
)
@pytest.mark.parametrize("command", ["ping", "bench"])
def test_a_url_that_can_not_be_used_is_one_line_and_two(cli: Cli, command: str, url: str, said: str) -> None:
    """The mistake is in the arguments; no server was asked."""

    cli.manager()
    cli.adapters.install("picky", dist="pool-picky", source="def make(url): raise ValueError(f'bad URL {url!r}')")
    assert cli(command, url) == 2
    assert re.fullmatch(rf"pool_core: {command}: .*({said}).*\n", cli.err)
    assert "canary" not in cli.out + cli.err
    assert "user" not in cli.err


def test_an_adapter_that_can_not_be_imported_is_a_failure(cli: Cli) -> None:
    """Nothing is wrong with the arguments."""
    cli.adapters.install("fake", source="import no_such_driver")
    assert cli("ping", "fake://user:canary@h") == 1
    assert re.fullmatch(r"pool_core: ping: ImportError: pool-fake 1\.2 .*no_such_driver.*\n", cli.err)


@pytest.mark.parametrize(
    "url",
    [
        "fake://user:canary@h/d",
        "fake://user:can%61ry@h/d",
        "fake://user:canary?#/@h/d?x=@",
        "fake://h1,h2/d?user=u&password=canary&x=1",
        "fake://h/d?authToken=canary#f",
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_a_driver_that_quotes_the_password_is_not_repeated(cli: Cli, url: str, as_json: bool) -> None:
    """Adapters scrub their errors; whoever forgets it must not be found out by a screenshot."""
    texts = f"{url!r} {url} canary user:canary canary?#/"
    cli.manager(connect=[OSError(texts)], is_valid=OSError(texts), is_transient=False)
    for _ in range(2):  # the connect fails, then the round trip
        assert cli("ping", url, *["--json"] * as_json) == 1
        assert "OSError" in cli.out + cli.err
        assert "canary" not in cli.out + cli.err
    assert cli("bench", url, *["--json"] * as_json) == 1
    assert "canary" not in cli.out + cli.err


@pytest.mark.parametrize(
    "spelt",
    [
        "ca/na ry\u00e9",
        "ca%2fna%20ry%c3%a9",
        "ca%2Fna+ry%C3%A9",
        "ca%2Fna%20ry%C3%a9",
        repr("ca/na ry\u00e9".encode()),
        ascii("ca/na ry\u00e9"),
        '"ca/na ry\\u00e9"',
    ],
)
def test_a_password_is_not_shown_however_a_driver_spells_it(cli: Cli, spelt: str) -> None:
    """Percent-encoded in the other case, as bytes, as repr or JSON writes it."""
    cli.manager(connect=OSError(f"cannot log in with {spelt}!"), is_transient=False)
    assert cli("ping", "fake://user:ca%2Fna%20ry%C3%A9@h/d") == 1
    assert "(not shown)" in cli.err
    assert "ry" not in cli.err.replace("pool_core", "").replace("library", "")


def test_a_servers_message_is_one_line_without_control_characters(cli: Cli) -> None:
    """A server must not be able to move the cursor, and logs are read by lines."""
    cli.manager(connect=OSError("no\n\n  \x1b[31mroom\x07\r here"), is_transient=False)
    assert cli("ping", "fake://h") == 1
    assert cli.err == "pool_core: ping: fake: OSError: no [31mroom here\n"


def test_what_the_pool_logs_does_not_mix_with_the_output(cli: Cli) -> None:
    """Python prints warnings of loggers without a handler; the command says the same thing once."""
    cli.manager(connect=OSError("down"))
    done = _python(
        cli, "import sys; from pool_core._cli import main; sys.exit(main())", "ping", "down://h", source=DOWN
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pool_core: ping: down: OSError: down\n"


# The process


DOWN = """
from pool_core.testing import ScriptedManager

def make(url):
    return ScriptedManager(connect=OSError("down"), is_transient=False)
"""

SLOW = """
import sys
from pool_core.testing import NEVER, Delay, ScriptedManager

def first(conn):
    print("at work", file=sys.stderr, flush=True)
    return Delay(0.01)

def make(url):
    return ScriptedManager(is_valid=first)
"""


def _environment(cli: Cli) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(cli.adapters.directory)}


def _python(cli: Cli, code: str, *argv: str, source: str) -> subprocess.CompletedProcess[str]:
    cli.adapters.install("down", dist="pool-down", source=source)
    return subprocess.run(
        [sys.executable, "-c", code, *argv],
        env=_environment(cli),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_module_can_be_run(cli: Cli) -> None:
    """``python -m pool_core`` is how the documentation calls it."""
    command = [sys.executable, "-m", "pool_core", "bench", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("usage: python -m pool_core bench")
    assert "\x1b" not in done.stdout


def _interrupted(cli: Cli, *argv: str, source: str = SLOW, after: str = "stderr") -> tuple[int, str, str]:
    """Run a command, press Ctrl-C after its first line; return its exit code, output and standard error."""
    cli.adapters.install("fake", source=source)
    command = [sys.executable, "-m", "pool_core", *argv]
    with subprocess.Popen(
        command, env=_environment(cli), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        line = getattr(process, after).readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    return process.returncode, (line if after == "stdout" else "") + out, err.replace("at work\n", "")


def test_ctrl_c_in_bench_prints_what_there_is(cli: Cli) -> None:
    """Nobody throws minutes of figures away; 130 as a shell expects it; the connections are closed on the way."""
    code, out, err = _interrupted(cli, "bench", "fake://h", "--seconds=50", "--tasks=1")
    assert code == 130
    assert re.match(r"fake: 1 tasks, max_size 10, [\d.]+ s\n\noperations ", out)
    assert "statistics of the pool:" in out
    assert re.fullmatch(r"pool_core: bench: fake: interrupted after [\d.]+ of 50 s\n", err)


def test_ctrl_c_in_bench_leaves_a_whole_document(cli: Cli) -> None:
    """For a program too."""
    code, out, err = _interrupted(cli, "bench", "fake://h", "--seconds=50", "--tasks=1", "--json")
    document = json.loads(out)
    assert (code, err) == (130, "")
    assert document["error"].startswith("interrupted after")
    assert document["statistics"]["connections_created"] >= 1


def test_ctrl_c_while_nothing_is_measured_is_one_line_and_130(cli: Cli) -> None:
    """There is nothing to print yet."""
    hangs = SLOW.replace("Delay(0.01)", "NEVER")
    assert _interrupted(cli, "ping", "fake://h", source=hangs) == (130, "", "pool_core: interrupted\n")


def test_ctrl_c_ends_a_watch_with_its_summary(cli: Cli) -> None:
    """It is how a watch ends: the exit code says whether each round trip succeeded."""
    code, out, err = _interrupted(cli, "ping", "fake://h", "--watch", "--interval=20", after="stdout")
    assert (code, err) == (0, "")
    line, summary, spread = out.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d  [\d.]+ (ms|us)", line)
    assert summary == "fake: 1 round trips, 0 failed"
    assert spread.startswith("min ")


@pytest.mark.parametrize("argv", [["adapters"], ["adapters", "--json"], ["bench", "--help"]])
def test_a_reader_that_has_gone_is_no_traceback(cli: Cli, argv: list[str]) -> None:
    """As in ``python -m pool_core adapters | head -1``."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pool_core", *argv], stdout=writing, stderr=subprocess.PIPE, timeout=30, check=False
        )
    finally:
        os.close(writing)
    # argparse ignores it while it prints its help, where Python does not buffer.
    assert done.returncode == 141 or (done.returncode == 0 and "--help" in argv)
    assert done.stderr == b""


def test_a_closed_standard_output_is_no_traceback(cli: Cli) -> None:
    """As in ``python -m pool_core adapters >&-``, under a supervisor."""
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m pool_core adapters >&-"], capture_output=True, timeout=30, check=False
    )
    assert done.returncode in (0, 1)
    assert done.stderr == b""
