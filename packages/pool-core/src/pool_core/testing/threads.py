"""The conformance suite for managers of ``pool_core.threads``: what an adapter must answer, asked with its real server.

Derive a class, give it ``manager()``, and let pytest or unittest collect it. Where the server is reached over TCP, give
``address()`` too: then the suite puts itself between driver and server, and freezes, cuts and refuses connections.
"""

from __future__ import annotations

import contextlib
import inspect
import select
import socket
import threading
import time
import unittest
from typing import TYPE_CHECKING, Any

from pool_core.threads import Pool, PoolTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["ThreadFaultProxy", "ThreadManagerConformance"]

_METHODS = ("connect", "is_valid", "has_broken", "close")
_OPTIONAL = ("reset", "terminate", "is_transient", "is_clean", "judge")


class ThreadFaultProxy:
    """A TCP proxy that can freeze, cut and refuse; it runs in a thread of its own.

    Attributes:
        port: where it listens, on 127.0.0.1.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._frozen = False
        self._refusing = False
        self._over = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)
        self._thread.start()

    def freeze(self) -> None:
        """Let nothing through, in either direction; new connections are accepted and frozen, too."""
        self._frozen = True

    def thaw(self) -> None:
        """Let everything through again."""
        self._frozen = False

    def refuse(self, *, on: bool = True) -> None:
        """End new connections at once."""
        self._refusing = on

    def cut(self) -> int:
        """End all connections. Returns how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
        return len(pairs)

    @property
    def open(self) -> int:
        """How many connections there are."""
        with self._lock:
            return len(self._pairs)

    def close(self) -> None:
        """End everything."""
        self._over = True
        self._thread.join()
        self._listener.close()
        self.cut()

    def _run(self) -> None:
        while not self._over:
            with self._lock:
                ends = {one: other for pair in self._pairs for one, other in (pair, pair[::-1])}
            watched = [self._listener, *([] if self._frozen else ends)]
            try:
                ready, _, _ = select.select(watched, [], [], 0.01)
            except (OSError, ValueError):  # one was cut meanwhile
                continue
            for one in ready:
                if one is self._listener:
                    self._accept()
                else:
                    self._pass(one, ends[one])

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self._refusing:
            client.close()
            return
        try:
            server = socket.create_connection(self._target, 5)
        except OSError:
            client.close()
            return
        with self._lock:
            self._pairs.append((client, server))

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        try:
            data = one.recv(65536)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        with self._lock:
            self._pairs = [pair for pair in self._pairs if one not in pair]
        one.close()
        other.close()


class ThreadManagerConformance(unittest.TestCase):
    """Derive it, and override ``manager``; where there is a network, ``address`` and ``via``.

    Class attributes:
        patience: seconds that a call may take which should be quick.
    """

    patience = 10.0

    def manager(self) -> Any:
        """Make a manager for the server."""
        raise unittest.SkipTest("derive a class from ThreadManagerConformance and give it manager()")

    def address(self) -> tuple[str, int] | None:
        """Return host and port of the server; None: there is no network."""
        return None

    def via(self, host: str, port: int) -> Any:
        """Make a manager that reaches the server at another address."""
        raise unittest.SkipTest("via(host, port) is not given")

    def dirty(self, conn: Any) -> None:
        """Leave session state behind."""
        raise unittest.SkipTest("dirty(conn) is not given")

    def look(self, conn: Any) -> object:
        """Return what can be seen of it: as of a new connection after a reset."""
        raise unittest.SkipTest("look(conn) is not given")

    def block(self, conn: Any) -> None:
        """Make a call that the server does not answer for half a minute."""
        raise unittest.SkipTest("block(conn) is not given")

    # -- helpers

    @contextlib.contextmanager
    def _connection(self) -> Iterator[tuple[Any, Any]]:
        manager = self.manager()
        conn = manager.connect()
        try:
            yield manager, conn
        finally:
            with contextlib.suppress(Exception):
                manager.close(conn)

    @contextlib.contextmanager
    def _proxied(self) -> Iterator[tuple[Any, ThreadFaultProxy]]:
        address = self.address()
        if address is None:
            raise unittest.SkipTest("there is no network")
        proxy = ThreadFaultProxy(*address)
        try:
            yield self.via("127.0.0.1", proxy.port), proxy
        finally:
            proxy.close()

    def _within(self, seconds: float, act: Callable[[], Any]) -> Any:
        """Run it in a thread of its own; fail if it takes longer."""
        outcome: list[Any] = []

        def run() -> None:
            try:
                outcome.append((None, act()))
            except BaseException as error:  # noqa: BLE001 - what it raises belongs to the test
                outcome.append((error, None))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            self.fail(f"it takes longer than {seconds} s")
        error, result = outcome[0]
        if error is not None:
            raise error
        return result

    # -- questions

    def test_methods_are_ordinary_functions(self) -> None:
        """None of them is async."""
        manager = self.manager()
        for name in (*_METHODS, *_OPTIONAL):
            method = getattr(manager, name, None)
            assert callable(method) or name in _OPTIONAL, f"{name} is missing"
            assert not inspect.iscoroutinefunction(method), f"{name} is a coroutine function"

    def test_a_new_connection_is_sound(self) -> None:
        """Valid, not broken, and clean where that can be asked."""
        with self._connection() as (manager, conn):
            assert manager.is_valid(conn) is True
            assert not manager.has_broken(conn)
            if hasattr(manager, "is_clean"):
                assert isinstance(manager.is_clean(conn), bool)

    def test_a_closed_connection_is_broken(self) -> None:
        """And closing it again, or terminating it, raises nothing."""
        manager = self.manager()
        conn = manager.connect()
        manager.close(conn)
        assert manager.has_broken(conn)
        if hasattr(manager, "terminate"):
            manager.terminate(conn)

    def test_terminate_is_quick_and_may_be_repeated(self) -> None:
        """In any state."""
        manager = self.manager()
        if not hasattr(manager, "terminate"):
            self.skipTest("the manager has no terminate")
        conn = manager.connect()
        self._within(2, lambda: manager.terminate(conn))
        self._within(2, lambda: manager.terminate(conn))
        assert manager.has_broken(conn)
        with contextlib.suppress(Exception):
            manager.close(conn)

    def test_terminate_ends_a_blocked_call_of_another_thread(self) -> None:
        """The only thing that can."""
        manager = self.manager()
        if not hasattr(manager, "terminate"):
            self.skipTest("the manager has no terminate")
        conn = manager.connect()
        failed: list[BaseException] = []

        def block() -> None:
            try:
                self.block(conn)
            except BaseException as error:  # noqa: BLE001 - whatever the driver raises
                failed.append(error)

        thread = threading.Thread(target=block, daemon=True)
        thread.start()
        time.sleep(0.3)
        if not thread.is_alive():
            raise failed[0] if failed else AssertionError("block(conn) did not block")
        self._within(2, lambda: manager.terminate(conn))
        thread.join(self.patience)
        assert not thread.is_alive(), "terminate did not end the call"
        assert failed, "the call that was ended must raise"

    def test_reset_leaves_nothing_behind(self) -> None:
        """As a new connection, or it is replaced."""
        with Pool(self.manager(), max_size=1) as pool:
            with pool.get() as conn:
                clean = self.look(conn)
                self.dirty(conn)
                assert self.look(conn) != clean, "dirty(conn) leaves nothing that look(conn) sees"
            with pool.get() as conn:
                assert self.look(conn) == clean

    def test_connections_move_between_threads(self) -> None:
        """Opened by a worker, used by one thread after the other, returned by a third."""
        with Pool(self.manager(), max_size=1) as pool:
            lease = pool.get()
            manager = pool._shell.calls.manager
            assert self._within(self.patience, lambda: manager.is_valid(lease.conn)) is True
            self._within(self.patience, lease.release)
            self._within(self.patience, lambda: pool.get(timeout=self.patience).release())

    def test_many_threads_share_a_pool(self) -> None:
        """Nothing is lost, nothing breaks, the statistics add up."""
        with Pool(self.manager(), max_size=3) as pool:
            manager = pool._shell.calls.manager

            def work() -> None:
                for _ in range(5):
                    with pool.get() as conn:
                        assert manager.is_valid(conn) is True

            errors: list[BaseException] = []

            def run() -> None:
                try:
                    work()
                except BaseException as error:  # noqa: BLE001 - it is raised below
                    errors.append(error)

            threads = [threading.Thread(target=run) for _ in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if errors:
                raise errors[0]
            statistics = pool.state().statistics
            assert statistics.gets_started == statistics.gets_direct + statistics.gets_waited
            assert statistics.hook_errors == 0

    def test_nothing_is_left_after_close(self) -> None:
        """No thread, no abandoned connection."""
        before = threading.active_count()
        with Pool(self.manager(), max_size=2) as pool, pool.get():
            pass
        deadline = time.monotonic() + self.patience
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= before, "threads are left"
        assert pool.state().statistics.connections_abandoned == 0

    # -- with faults

    def test_a_cut_connection_is_found_out_and_replaced(self) -> None:
        """The server or the network has ended it."""
        with self._proxied() as (manager, proxy), Pool(manager, max_size=1, alive_bypass=0) as pool:
            with pool.get() as conn:
                assert manager.is_valid(conn) is True
            proxy.cut()
            with pool.get(timeout=self.patience) as other:
                assert other is not conn
                assert manager.is_valid(other) is True

    def test_a_frozen_server_does_not_outlast_a_get(self) -> None:
        """The timeout holds, and when the server is back, so is the pool."""
        with (
            self._proxied() as (manager, proxy),
            Pool(manager, max_size=1, alive_bypass=0, validation_timeout=0.5, create_timeout=1) as pool,
        ):
            with pool.get():
                pass
            proxy.freeze()
            began = time.monotonic()
            with self.assertRaises(PoolTimeout):  # noqa: PT027 - this module needs no pytest
                pool.get(timeout=2)
            assert time.monotonic() - began < 4
            proxy.cut()
            proxy.thaw()
            with pool.get(timeout=self.patience) as conn:
                assert manager.is_valid(conn) is True

    def test_a_refused_connect_is_transient(self) -> None:
        """The server may come back."""
        with self._proxied() as (manager, proxy):
            proxy.refuse()
            with self.assertRaises(Exception) as caught:  # noqa: PT027
                self._within(self.patience, manager.connect)
            if hasattr(manager, "is_transient"):
                assert manager.is_transient(caught.exception)

    def test_close_of_the_pool_ends_with_a_frozen_server(self) -> None:
        """Within its time and a second."""
        with self._proxied() as (manager, proxy):
            pool = Pool(manager, max_size=2)
            pool.open()
            lease = pool.get()
            with pool.get():
                pass
            proxy.freeze()
            began = time.monotonic()
            pool.close(1)
            assert time.monotonic() - began < 3.5
            lease.release()
