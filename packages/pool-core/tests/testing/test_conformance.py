"""The conformance suite: how to run it, how to skip a check, and that no check can be silenced."""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
import unittest
from collections.abc import Awaitable
from typing import Any, ClassVar

import pytest
from pool_core.testing import Lab, ManagerConformance, Probe


class Note:
    """A connection to nothing: an embedded database of one word, with a thread and a file as SQLite's drivers have."""

    def __init__(self) -> None:
        self.word = ""
        self.open = True
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.stop.wait, name="note", daemon=True)
        self.thread.start()
        self.file = os.open(os.devnull, os.O_RDONLY)


class Notes:
    """Its adapter."""

    async def connect(self) -> Note:
        return Note()

    async def is_valid(self, conn: Note, /) -> bool:
        await asyncio.sleep(0)
        return conn.open

    def has_broken(self, conn: Note, /) -> bool:
        return not conn.open

    async def close(self, conn: Note, /) -> None:
        self.terminate(conn)

    def terminate(self, conn: Note, /) -> None:
        if conn.open:
            conn.open = False
            conn.stop.set()
            os.close(conn.file)

    async def _wipe(self, conn: Note) -> None:
        await asyncio.sleep(0)
        conn.word = ""

    def reset(self, conn: Note, /) -> Awaitable[None] | None:
        return self._wipe(conn) if conn.word else None


class NotesThatLeakFiles(Notes):
    def terminate(self, conn: Note, /) -> None:
        conn.open = False
        conn.stop.set()


async def _write(conn: Note) -> None:
    conn.word = "left behind"


async def _read(conn: Note) -> object:
    return conn.word


class NotesConformance(ManagerConformance[Note]):
    """The hooks that make sense for it."""

    network = False
    probes = (Probe("word", dirty=_write, look=_read),)

    def manager(self, host: str, port: int) -> Any:
        assert (host, port) == ("", 0)
        return Notes()

    async def use(self, conn: Note) -> None:
        assert conn.open


def test_an_embedded_database_passes_and_what_does_not_fit_is_skipped_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is passed over in silence: every check has a line."""
    results = asyncio.run(NotesConformance().run_all())
    ran = {name for name, result in results.items() if result == "ok"}
    assert ran == {
        "protocol", "connect_and_use", "in_a_pool", "cancelled_connect", "cancelled_is_valid", "cancelled_reset",
        "cancelled_close", "has_broken_is_quick", "session_state", "terminate", "ends_alone", "concurrent_connects", "no_leftovers", "program_ends", "two_loops", "fork",
    }  # fmt: skip
    assert results["interrupted_request"] == "skipped: the hook slow_request is not given"
    assert results["secrets"] == "skipped: no secrets are given: name the passwords that manager() uses"
    assert results["network_drops"] == "skipped: network = False: there is no connection to disturb"
    printed = capsys.readouterr().out
    assert all(f"{name}: {result}" in printed for name, result in results.items())


def test_files_that_an_embedded_driver_leaves_open_are_found() -> None:
    """Without a proxy the operating system is asked."""

    class Leaky(NotesConformance):
        patience = 0.2

        def manager(self, host: str, port: int) -> Any:
            return NotesThatLeakFiles()

    before = {int(name) for name in os.listdir("/dev/fd")}
    try:
        with pytest.raises(AssertionError, match="files are left open: close them in close and terminate"):
            Leaky().test_no_leftovers()  # type: ignore[attr-defined]
    finally:
        for number in {int(name) for name in os.listdir("/dev/fd")} - before:
            try:
                os.close(number)
            except OSError:
                pass


def test_run_all_runs_everything_and_then_raises_every_failure() -> None:
    """One failure must not hide the next."""

    class Wrong(Notes):
        async def is_valid(self, conn: Note, /) -> None:  # type: ignore[override]
            """Forgets to return."""

        def reset(self, conn: Note, /) -> None:
            """Does not reset."""

    class WrongConformance(NotesConformance):
        def manager(self, host: str, port: int) -> Any:
            return Wrong()

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(WrongConformance().run_all())
    texts = [str(error) for error in caught.value.exceptions]
    assert any("is_valid of a new connection is None instead of True" in text for text in texts)
    assert any("session state (word) has_broken says False" in text for text in texts)
    assert str(caught.value).startswith(f"{len(texts)} of ")


def test_overriding_a_check_is_refused_when_the_class_is_made() -> None:
    """A check that is made to pass by overriding it looks like a passed one."""
    with pytest.raises(TypeError, match=r"Cheat\.check_fork overrides a check: .* skips = \{'fork': 'the reason'\}"):

        class Cheat(NotesConformance):
            async def check_fork(self, lab: Lab[Note]) -> None:
                """Of course."""

    with pytest.raises(TypeError, match=r"Cheat2\.test_fork overrides a check"):

        class Cheat2(NotesConformance):
            test_fork = None

    with pytest.raises(TypeError, match=r"Cheat3\.run_all overrides a method of the suite"):

        class Cheat3(NotesConformance):
            async def run_all(self) -> dict[str, str]:
                return {}


def test_a_misspelt_hook_or_skip_is_refused_when_the_class_is_made() -> None:
    """Otherwise its check would be skipped, and nobody would notice."""
    with pytest.raises(TypeError, match=r"Typo\.slow_requests looks like a misspelt hook: slow_request"):

        class Typo(NotesConformance):
            async def slow_requests(self, conn: Note) -> None:
                """Never called."""

    with pytest.raises(TypeError, match=r"Typo2\.skips\['forks'\]: no such check; there are protocol, connect_and_use"):

        class Typo2(NotesConformance):
            skips: ClassVar = {"forks": "?"}

    with pytest.raises(TypeError, match=r"Typo3\.skips\['fork'\]: say why"):

        class Typo3(NotesConformance):
            skips: ClassVar = {"fork": ""}


def test_a_skip_is_printed_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """A reader of the log sees what this adapter does not promise."""

    class Skipping(NotesConformance):
        skips: ClassVar = {"check_fork": "the library does not survive it"}

    with pytest.raises(unittest.SkipTest, match="the library does not survive it"):
        Skipping().test_fork()  # type: ignore[attr-defined]
    assert "Skipping: check fork skipped: the library does not survive it" in capsys.readouterr().out


def test_unittest_runs_it_too() -> None:
    """The suite works with any test runner."""

    class Case(NotesConformance, unittest.TestCase):
        pass

    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Case)
    with open(os.devnull, "w") as quiet:
        result = unittest.TextTestRunner(stream=quiet).run(suite)
    assert result.testsRun == 31
    assert result.wasSuccessful()
    assert len(result.skipped) == 15


def test_what_the_author_forgot_is_said() -> None:
    """The first run of a new author's class."""

    class Empty(ManagerConformance[Note]):
        pass

    with pytest.raises(TypeError, match=r"Empty\.port is not set: say where the server is, or network = False"):
        Empty().test_protocol()  # type: ignore[attr-defined]

    class NoManager(ManagerConformance[Note]):
        network = False

    with pytest.raises(AssertionError, match=r"NoManager must define manager\(self, host, port\)"):
        NoManager().test_protocol()  # type: ignore[attr-defined]


def test_a_probe_that_can_not_fail_is_refused() -> None:
    """A look that sees nothing would pass every adapter."""

    class Blind(NotesConformance):
        probes = (Probe("nothing", dirty=_write, look=lambda conn: asyncio.sleep(0)),)

    with pytest.raises(AssertionError, match="probe 'nothing' proves nothing: look sees None before and after dirty"):
        Blind().test_session_state()  # type: ignore[attr-defined]


async def _close_file(conn: Note) -> object:
    word, conn.open = conn.word, False
    conn.stop.set()
    os.close(conn.file)
    return word


async def _count(conn: Note) -> object:
    conn.word += "!"
    return len(conn.word)


@pytest.mark.parametrize(
    ("look", "finding"),
    [
        (_close_file, "look costs the connection: has_broken is True after a look, so nothing about dirty is proved"),
        (_count, "look sees 1 on a new connection, and after a look 2"),
    ],
)
def test_a_look_that_breaks_or_changes_the_connection_fails_as_a_probe(look: Any, finding: str) -> None:
    """Otherwise the check would pass for the traces of its own looks."""

    class Meddling(NotesConformance):
        probes = (Probe("word", dirty=_write, look=look),)

    with pytest.raises(AssertionError, match=f"probe 'word': {finding}"):
        Meddling().test_session_state()  # type: ignore[attr-defined]


def test_a_look_whose_traces_cannot_be_reset_fails_as_a_probe() -> None:
    """Each look costs the connection then, whatever the borrower did."""

    class Choosy(Notes):
        async def _wipe(self, conn: Note) -> None:
            raise ConnectionError("closing is cheaper")

    class Meddling(NotesConformance):
        probes = (Probe("word", dirty=_write, look=_write),)

        def manager(self, host: str, port: int) -> Any:
            return Choosy()

    with pytest.raises(AssertionError, match="look fails, or what it leaves behind cannot be reset: ConnectionError"):
        Meddling().test_session_state()  # type: ignore[attr-defined]


def test_a_check_has_a_time_limit() -> None:
    """An adapter that hangs must not hang the run of the tests."""

    class Slow(NotesConformance):
        time_limit = 0.1

        async def use(self, conn: Note) -> None:
            await asyncio.sleep(1)

    with pytest.raises(AssertionError, match=r"the check took longer than 0\.1 s"):
        Slow().test_connect_and_use()  # type: ignore[attr-defined]


def test_a_finding_comes_without_the_kits_traceback_and_a_hooks_own_error_with_all_of_it() -> None:
    """A traceback through the suite would hide the message; a traceback through the author's own code helps."""

    class Blind(NotesConformance):
        probes = (Probe("nothing", dirty=_write, look=lambda conn: asyncio.sleep(0)),)

    with pytest.raises(AssertionError, match="proves nothing") as finding:
        Blind().test_session_state()  # type: ignore[attr-defined]
    assert [entry.name for entry in finding.traceback][1:] == ["test"]

    class Wrong(NotesConformance):
        async def use(self, conn: Note) -> None:
            assert conn.word == "never"

    with pytest.raises(AssertionError, match="never") as own:
        Wrong().test_connect_and_use()  # type: ignore[attr-defined]
    assert own.value.__cause__ is not None
    assert traceback.extract_tb(own.value.__cause__.__traceback__)[-1].name == "use"
