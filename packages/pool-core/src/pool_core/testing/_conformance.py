"""The questions that every adapter must be able to answer, asked of a manager and its real server."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import functools
import sys
import threading
import traceback
import unittest
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from pool_core.testing._connecting_checks import ConnectingChecks
from pool_core.testing._lab import Lab, NotGivenError, eventually, names_of, new_threads, open_files
from pool_core.testing._proxy import FaultProxy
from pool_core.testing._returning_checks import ReturningChecks

__all__ = ["ManagerConformance"]

C = TypeVar("C")

_HERE: Final = Path(__file__).parent


class ManagerConformance(ConnectingChecks[C], ReturningChecks[C]):
    """Derive from this class, give it the hooks, and every question is asked of your adapter.

    With pytest a class named ``Test...`` is enough; with unittest derive from ``unittest.TestCase`` as well; otherwise
    ``await MyConformance().run_all()``::

        class TestFoo(ManagerConformance[foo.Connection]):
            host, port = "127.0.0.1", 4711

            def manager(self, host, port):
                return FooConnectionManager(host=host, port=port, password="canary")

            async def use(self, conn):
                assert await conn.ask("echo 1") == "1"

    ``host`` and ``port`` say where the real server is; a fixture may set them on the instance. The suite puts a
    :class:`FaultProxy` before it and passes the proxy's address to :meth:`manager`. Each check has a server that works,
    runs in its own loop, and afterwards no connection, task, thread or socket may be left.

    Hooks close what they open themselves. A check whose hook is not given is skipped, and says so. What does not
    fit your server goes into ``skips``, with the reason; checks cannot be overridden.

    Attributes:
        host: the server's address.
        port: the server's TCP port.
        network: False for an embedded database, which has no server and no sockets; the checks that need a network are
            skipped then, and ``manager`` gets ``("", 0)``.
        skips: reasons by check, for example ``{"fork": "the driver's library does not survive a fork"}``; printed.
        probes: the session state that a borrower can leave behind, see :class:`Probe`.
        secrets: passwords and the like that the managers of this class have been given; they must not show anywhere.
        patience: seconds that a call to a healthy server may take at most; ``slow_request`` must take longer.
        time_limit: seconds of real time for one check.
    """

    async def run_all(self) -> dict[str, str]:
        """Run every check in the running loop, and print a line for each.

        Returns:
            ``"ok"`` or ``"skipped: reason"``, by check.

        Raises:
            ExceptionGroup: of all failures, when every check has run.
        """
        results: dict[str, str] = {}
        errors: list[Exception] = []
        for name in _CHECKS:
            try:
                await self._run(name)
                results[name] = "ok"
            except unittest.SkipTest as skip:
                results[name] = f"skipped: {skip}"
            except Exception as error:  # noqa: BLE001 (raised below, all together)
                results[name] = f"FAILED: {error}"
                errors.append(error)
            print(f"{name}: {results[name]}")
        if errors:
            raise ExceptionGroup(f"{len(errors)} of {len(_CHECKS)} checks of {type(self).__name__} failed", errors)
        return results

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse what would silence a check."""
        super().__init_subclass__(**kwargs)
        for name in vars(cls):
            check = _check_name(name)
            if name.startswith(("check_", "test_")) and check in _CHECKS:
                raise TypeError(
                    f"{cls.__name__}.{name} overrides a check: a check that does not fit goes into"
                    f" skips = {{{check!r}: 'the reason'}}"
                )
            if name in ("run_all", "_run", "_lab"):
                raise TypeError(f"{cls.__name__}.{name} overrides a method of the suite: rename it")
            close = difflib.get_close_matches(name, _HOOKS, n=1, cutoff=0.85)
            if close and name not in _PUBLIC and not name.startswith("_") and close[0] not in vars(cls):
                raise TypeError(f"{cls.__name__}.{name} looks like a misspelt hook: {close[0]}")
        for name, reason in cls.skips.items():
            if _check_name(name) not in _CHECKS:
                raise TypeError(f"{cls.__name__}.skips[{name!r}]: no such check; there are {', '.join(_CHECKS)}")
            if not reason:
                raise TypeError(f"{cls.__name__}.skips[{name!r}]: say why")

    async def _run(self, name: str) -> None:
        """One check, with its proxy, its time limit and its look for leftovers."""
        for skipped, reason in self.skips.items():
            if _check_name(skipped) == name:
                print(f"{type(self).__name__}: check {name} skipped: {reason}")
                raise unittest.SkipTest(reason)
        if self.network and not self.port:
            raise TypeError(f"{type(self).__name__}.port is not set: say where the server is, or network = False")
        files_now = functools.partial(open_files, sockets_only=self.network, server_port=self.port)
        tasks, threads, files = asyncio.all_tasks(), set(threading.enumerate()), files_now()
        async with self._lab() as lab:
            try:
                async with asyncio.timeout(self.time_limit):
                    await getattr(self, f"check_{name}")(lab)
            except NotGivenError as error:
                reason = f"the hook {error} is not given"
                print(f"{type(self).__name__}: check {name} skipped: {reason}")
                raise unittest.SkipTest(reason) from None
            except TimeoutError as error:
                raise AssertionError(f"the check took longer than {self.time_limit:g} s") from error
        await eventually(
            lambda: not asyncio.all_tasks() - tasks,
            lab.moment,
            lambda: f"tasks are left: {names_of(asyncio.all_tasks() - tasks)}",
        )
        await eventually(
            lambda: not new_threads(threads), lab.moment, lambda: f"threads are left: {names_of(new_threads(threads))}"
        )
        what = "sockets" if self.network else "files"
        await eventually(
            lambda: not files_now() - files,
            lab.moment,
            lambda: f"{len(files_now() - files)} {what} are left open: close them in close and terminate",
        )

    @contextlib.asynccontextmanager
    async def _lab(self) -> AsyncIterator[Lab[C]]:
        proxy = FaultProxy(self.host, self.port) if self.network else None
        lab = Lab(self, proxy)
        try:
            try:
                yield lab
            finally:
                if proxy is not None:
                    proxy.heal()
                await lab.end()
                if proxy is not None and sys.exception() is None:
                    await lab.released("after the check")
        finally:
            if proxy is not None:
                proxy.close()


_CHECKS: Final = tuple(
    name.removeprefix("check_")
    for part in (ConnectingChecks, ReturningChecks)
    for name in vars(part)
    if name.startswith("check_")
)
_HOOKS: Final = (
    "manager", "use", "slow_request", "leave_unread", "late_error", "begin", "in_transaction", "server_kill", "bad_credentials",
    "dispose", "host", "port", "network", "skips", "probes", "secrets", "patience",
    "time_limit",
)  # fmt: skip
_PUBLIC: Final = frozenset(dir(ManagerConformance))


def _make_test(name: str) -> Callable[[ManagerConformance[Any]], None]:
    def test(self: ManagerConformance[Any]) -> None:
        try:
            asyncio.run(self._run(name))
        except AssertionError as error:
            *_, (place, _) = traceback.walk_tb(error.__traceback__)
            if Path(place.f_code.co_filename).parent != _HERE:
                raise
            # The message is enough: a traceback through the suite would not help the author of the adapter.
            raise error.with_traceback(None) from error.__cause__

    test.__name__ = f"test_{name}"
    test.__qualname__ = f"ManagerConformance.test_{name}"
    test.__doc__ = getattr(ManagerConformance, f"check_{name}").__doc__
    return test


for _name in _CHECKS:
    setattr(ManagerConformance, f"test_{_name}", _make_test(_name))


def _check_name(name: str) -> str:
    return name.removeprefix("check_").removeprefix("test_")
