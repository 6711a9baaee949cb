"""The checks of what comes back from a borrower, and of the end."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import select
import signal
import threading
import time
import traceback
import unittest
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures.thread import _threads_queues
from typing import TypeVar

from pool_core import ConnectionManager, SupportsReset, SupportsTerminate
from pool_core.testing._lab import (
    Lab,
    NotGivenError,
    close_awaitable,
    eventually,
    fail,
    names_of,
    new_threads,
    see,
    short,
)
from pool_core.testing._questions import Questions

__all__ = ["ReturningChecks"]

C = TypeVar("C")


class ReturningChecks(Questions[C]):
    """Is what the next borrower gets sound and clean, and does everything end?"""

    async def check_has_broken_is_quick(self, lab: Lab[C]) -> None:
        """has_broken answers at once and says nothing to the server, be it frozen."""
        manager = lab.manager()
        conn = await lab.connect(manager)
        await self._use(lab, conn, "a new connection")
        if self.network:
            lab.proxy.freeze()
        answer: object = manager.has_broken(conn)
        if inspect.isawaitable(answer):
            close_awaitable(answer)
            fail("has_broken returned an awaitable: make it a plain def; a pool asks it on every release")
        if not isinstance(answer, bool):
            fail(f"has_broken returned {answer!r}: return True or False")
        each = min(_time(lambda: manager.has_broken(conn)) for _ in range(20))  # the least: the machine may be busy
        if each > 0.001:
            fail(
                f"has_broken took {each * 1000:.1f} ms: it must look at what the driver knows, without I/O (is_valid asks)"
            )
        if self.network:
            lab.proxy.heal()
            for _ in range(5):  # a driver's own monitor may speak meanwhile, but not each time
                await asyncio.sleep(0.02)
                before = lab.proxy.forwarded
                manager.has_broken(conn)
                await asyncio.sleep(0.02)
                if lab.proxy.forwarded == before:
                    return
            fail("has_broken sent something to the server: it must do no I/O; is_valid is for that")

    async def check_server_kill(self, lab: Lab[C]) -> None:
        """has_broken is true soon after the server has dropped the connection."""

        async def kill(conn: C) -> None:
            await lab.within(self.server_kill(conn), "the hook server_kill did not return in time")

        await self._server_drops(lab, "the server has dropped the connection", kill)

    async def check_network_drops(self, lab: Lab[C]) -> None:
        """has_broken is true soon after a reset or an end of file, and after an answer that was cut in the middle."""

        async def reset(_conn: C) -> None:
            lab.proxy.reset()

        async def fin(_conn: C) -> None:
            lab.proxy.fin()

        async def cut(conn: C) -> None:
            lab.proxy.cut(1)
            task = asyncio.ensure_future(self.use(conn))
            await asyncio.wait({task}, timeout=lab.patience)
            if not task.done():
                task.cancel()
                fail("use() did not return in time though its answer was cut off and the connection has ended")
            if not task.cancelled() and task.exception() is None:
                fail("use() raised nothing though its answer was cut off: the hook must check the answer")
            lab.proxy.heal()

        await self._server_drops(lab, "the connection was reset", reset)
        await self._server_drops(lab, "the server has ended the connection (end of file)", fin)
        await self._server_drops(lab, "the connection was cut in the middle of an answer", cut)

    async def check_interrupted_request(self, lab: Lab[C]) -> None:
        """After an interrupted request the connection is broken, or clean after a reset."""
        for moment in (0.0, 0.02, 0.2):
            manager = lab.manager()
            conn = await lab.connect(manager)
            clean = await self._look(lab, conn)
            task = asyncio.ensure_future(self.slow_request(conn))
            await self._under_way(task, moment)
            task.cancel()
            await asyncio.wait({task}, timeout=lab.patience)
            if await lab.give_up(task, manager, conn, "slow_request"):
                continue
            await self._fit_for_the_next(lab, manager, conn, clean, f"a request cancelled after {moment:g} s")

    async def check_unread_data(self, lab: Lab[C]) -> None:
        """After a borrower left an answer unread the connection is broken, or clean after a reset."""
        manager = lab.manager()
        conn = await lab.connect(manager)
        clean = await self._look(lab, conn)
        await lab.within(self.leave_unread(conn), "the hook leave_unread did not return in time")
        await self._fit_for_the_next(lab, manager, conn, clean, "an answer that was left unread")

    async def check_late_error(self, lab: Lab[C]) -> None:
        """An error that arrives after the connection was returned does not reach the next borrower."""
        manager = lab.manager()
        conn = await lab.connect(manager)
        clean = await self._look(lab, conn)
        await self._use(lab, conn, "a new connection")
        _, before = lab.proxy.forwarded
        await lab.within(self.late_error(conn), "the hook late_error did not return at once")
        await eventually(
            lambda: lab.proxy.forwarded[1] > before or self._broken(manager, conn),
            lab.moment,
            lambda: "the hook late_error proves nothing: the server has sent no error",
        )
        await lab.drop(manager, conn)
        for arrives in ("before the next checkout", "during the next borrower's request"):
            manager = lab.manager()
            conn = await lab.connect(manager)
            await self._use(lab, conn, "a new connection")
            lab.proxy.freeze("to_client")
            await lab.within(self.late_error(conn), "the hook late_error did not return at once")
            late = arrives.startswith("during")
            heal = asyncio.get_running_loop().call_later(0.2 if late else 0.0, lab.proxy.heal)
            try:
                await self._fit_for_the_next(
                    lab, manager, conn, clean, f"an error that arrived {arrives}", pause=0.0 if late else 0.1
                )
            finally:
                heal.cancel()
                lab.proxy.heal()
            await lab.drop(manager, conn)

    async def check_open_transaction(self, lab: Lab[C]) -> None:
        """After a borrower left a transaction open the connection is broken, or clean after a reset."""
        manager = lab.manager()
        conn = await lab.connect(manager)
        clean = await self._look(lab, conn)
        await lab.within(self.begin(conn), "the hook begin did not return in time")
        try:
            began = await lab.within(self.in_transaction(conn), "the hook in_transaction did not return in time")
        except NotGivenError:
            fail("begin() is given and in_transaction() is not: without it nobody sees whether the transaction is gone")
        if not began:
            fail("in_transaction() says False right after begin(): one of the two hooks is wrong")
        if await self._fit_for_the_next(
            lab, manager, conn, clean, "a transaction that was left open"
        ) and await lab.within(self.in_transaction(conn), "the hook in_transaction did not return in time"):
            fail(
                "the transaction of the last borrower is still open for the next one: roll back in reset, or let"
                " has_broken say True while one is open"
            )

    async def check_session_state(self, lab: Lab[C]) -> None:
        """Every declared kind of session state is reset, or the connection is closed."""
        if not self.probes:
            raise unittest.SkipTest("no probes are given: declare the session state that a borrower can leave behind")
        manager = lab.manager()
        for probe in self.probes:
            await self._only_looks(lab, manager, probe)
            conn = await lab.connect(manager)
            clean = await self._look(lab, conn)
            await lab.within(probe.dirty(conn), f"probe {probe.name!r}: dirty did not return in time")
            if not manager.has_broken(conn):
                seen = await lab.within(probe.look(conn), f"probe {probe.name!r}: look did not return in time")
                if seen == clean[probe.name]:
                    fail(f"probe {probe.name!r} proves nothing: look sees {seen!r} before and after dirty")
            await self._fit_for_the_next(lab, manager, conn, clean, f"session state ({probe.name})")
            await lab.drop(manager, conn)

    async def check_terminate(self, lab: Lab[C]) -> None:
        """terminate drops the socket at once, though the server is frozen, and wakes up who waits for an answer."""
        manager = lab.manager()
        if not isinstance(manager, SupportsTerminate):
            raise unittest.SkipTest(
                "the manager has no terminate: a pool abandons connections that it cannot close in time"
            )
        threads = set(threading.enumerate())
        conn = await lab.connect(manager)
        await self._use(lab, conn, "a new connection")
        if self.network:
            lab.proxy.freeze()
        began = time.perf_counter()
        answer = lab.terminate(manager, conn)
        took = time.perf_counter() - began
        if inspect.isawaitable(answer):
            close_awaitable(answer)
            fail("terminate returned an awaitable: make it a plain def that drops the socket at once; nobody awaits it")
        if took > 0.25:
            fail(f"terminate took {took:.2f} s: it must not wait for anything (transport.abort(), not close())")
        await lab.released("terminate left the socket open: abort the transport, send nothing to the server")
        lab.terminate(manager, conn)  # of a connection that is gone already
        if not self.network:
            await eventually(
                lambda: not new_threads(threads),
                lab.moment,
                lambda: f"terminate left threads: {names_of(new_threads(threads))}",
            )
        if manager.has_broken(conn) is not True:
            fail("has_broken is not True after terminate: a terminated connection must not be used again")
        if self.network:
            lab.proxy.heal()
            await self._terminate_while_used(lab, manager)

    async def check_close_is_bounded(self, lab: Lab[C]) -> None:
        """Behind a frozen server is_valid, reset and close end when a pool gives them up."""
        manager = lab.manager()
        verbs: list[tuple[str, Callable[[C], Awaitable[object] | None]]] = [("is_valid", manager.is_valid)]
        if isinstance(manager, SupportsReset):
            verbs.append(("reset", manager.reset))
        verbs.append(("close", lambda conn: None))  # closing ends every round
        for verb, call in verbs:
            conn = await lab.connect(manager)
            await self._use(lab, conn, "a new connection")
            lab.proxy.freeze()
            gone = False
            awaitable = call(conn)
            if awaitable is not None:
                task = asyncio.ensure_future(awaitable)
                await asyncio.wait({task}, timeout=0.3)
                if verb == "is_valid" and task.done() and see(task) is None and task.result() is True:
                    fail("is_valid said True though the server is frozen: it must make a round trip")
                gone = await lab.give_up(task, manager, conn, verb)
            if not gone:
                await lab.drop(manager, conn, patience=0.3)
            await lab.released(
                f"the server is frozen, {verb} was given up, and the socket is still open: add a terminate(conn) that"
                " drops it without waiting"
            )
            lab.proxy.heal()

    async def check_no_leftovers(self, lab: Lab[C]) -> None:
        """Connections that are closed or terminated leave no task, thread or socket behind."""
        tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
        manager = lab.manager()
        for round_ in range(6):
            conn = await lab.connect(manager)
            await self._use(lab, conn, "a new connection")
            if round_ % 2 and lab.terminate(manager, conn):
                lab.forget(conn)
            else:
                await lab.drop(manager, conn)
        await lab.released("close and terminate left sockets")
        await self.dispose(manager)
        await eventually(
            lambda: not asyncio.all_tasks() - tasks,
            lab.moment,
            lambda: (
                f"tasks are left after close: {names_of(asyncio.all_tasks() - tasks)}: end them in close and terminate"
            ),
        )
        await eventually(
            lambda: not new_threads(threads),
            lab.moment,
            lambda: f"threads are left after close: {names_of(new_threads(threads))}: end them in close and terminate",
        )

    async def check_program_ends(self, lab: Lab[C]) -> None:
        """A connection that is still open does not keep the program from ending."""
        threads = set(threading.enumerate())
        manager = lab.manager()
        conn = await lab.connect(manager)
        await self._use(lab, conn, "a new connection")
        # Python waits for each thread that is no daemon; those of executors it ends by itself.
        waited_for = {thread for thread in new_threads(threads) if not thread.daemon and thread not in _threads_queues}
        if waited_for:
            fail(
                f"a program with an open connection never ends: Python waits for {names_of(waited_for)}. "
                "Make its threads daemons, and end them by atexit if they must not be stopped half-way"
            )

    async def check_secrets(self, lab: Lab[C]) -> None:
        """No password shows in repr, str, vars, errors and logs."""
        if not self.secrets:
            raise unittest.SkipTest("no secrets are given: name the passwords that manager() uses")
        texts: list[tuple[str, str]] = []
        with _captured_logs() as logs:
            manager = lab.manager()
            texts.extend(_portraits("the manager", manager))
            conn = await lab.connect(manager)
            await self._use(lab, conn, "a new connection")
            texts.extend(_portraits("the manager after connect", manager))
            await lab.drop(manager, conn)
            managers: dict[str, ConnectionManager[C]] = {"the server is down": manager}
            with contextlib.suppress(NotGivenError):
                bad = self.bad_credentials(*lab.address)
                managers |= bad if isinstance(bad, Mapping) else {"the credentials are bad": bad}
            for name, failing in managers.items():
                if failing is not manager:
                    lab.watch(failing)
                    texts.extend(_portraits(f"the manager whose credentials are bad ({name})", failing))
                elif self.network:
                    lab.proxy.refuse()
                else:
                    continue
                error = await self._connect_fails(lab, failing, name)
                texts.append((f"the error when {name}", "".join(traceback.format_exception(error)) + repr(error)))
                if self.network:
                    lab.proxy.heal()
        texts.append(("the logs", "\n".join(logs)))
        for where, text in texts:
            for secret in self.secrets:
                if secret in text:
                    shown = text.replace(secret, "<THE SECRET>")
                    at = shown.index("<THE SECRET>")
                    fail(
                        f"a secret shows in {where}: ...{shown[max(0, at - 80) : at + 80]}...: keep it in a closure or a"
                        " class with a repr of its own, and raise scrubbed errors 'from None'"
                    )

    async def check_two_loops(self, lab: Lab[C]) -> None:
        """One manager serves one event loop after another: a module-level pool under per-test loops."""
        manager = lab.watch(await asyncio.to_thread(self.manager, *lab.address))

        def twice() -> None:
            for number in ("first", "second"):
                try:
                    asyncio.run(self._round_trip(lab, manager))
                except Exception as error:
                    raise AssertionError(
                        f"connect, use and close failed in the {number} event loop: {short(error)}: make locks, futures"
                        " and clients in connect(), not in __init__"
                    ) from error

        await asyncio.to_thread(twice)

    async def check_fork(self, lab: Lab[C]) -> None:
        """A forked child can connect with the same manager, and does not disturb its parent's connection."""
        if not hasattr(os, "fork"):
            raise unittest.SkipTest("this system has no fork")
        manager = lab.manager()
        conn = await lab.connect(manager)
        await self._use(lab, conn, "a new connection")
        answer = await asyncio.to_thread(_fork, lambda: asyncio.run(self._round_trip(lab, manager)), 3 * lab.patience)
        if answer != "ok":
            fail(
                f"in a forked child connect, use and close failed: {answer}: keep no sockets or threads in the manager"
            )
        if manager.has_broken(conn):
            fail("the parent's connection is broken after a forked child used the same manager: share no socket")
        await self._use(lab, conn, "the parent's connection after a fork")
        await lab.drop(manager, conn)


def _time(function: Callable[[], object], times: int = 5) -> float:
    began = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - began) / times


def _portraits(what: str, thing: object) -> Iterator[tuple[str, str]]:
    yield f"repr of {what}", repr(thing)
    yield f"str of {what}", f"{thing}"
    if hasattr(thing, "__dict__"):
        yield f"repr(vars()) of {what}", repr(vars(thing))
    slots = [name for cls in type(thing).__mro__ for name in getattr(cls, "__slots__", ())]
    yield f"the slots of {what}", repr([getattr(thing, name, None) for name in slots])


@contextlib.contextmanager
def _captured_logs() -> Iterator[list[str]]:
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    root, handler = logging.getLogger(), Handler()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


def _fork(body: Callable[[], None], seconds: float) -> str:
    """Run it in a forked child; "ok", or what went wrong. Called in a thread without a loop."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of threads: the child uses none of them
        child = os.fork()
    if child == 0:  # pragma: no cover (its coverage is not collected)
        answer = "ok"
        try:
            body()
        except BaseException as error:  # noqa: BLE001 (nothing may get out of the child)
            answer = short(error)
        finally:
            os.write(writer, answer.encode())
            os._exit(0)
    os.close(writer)
    try:
        ready, _, _ = select.select([reader], [], [], seconds)
        if not ready:
            os.kill(child, signal.SIGKILL)
            return f"nothing happened for {seconds:g} s"
        return os.read(reader, 10_000).decode() or "the child died"
    finally:
        os.close(reader)
        os.waitpid(child, 0)
