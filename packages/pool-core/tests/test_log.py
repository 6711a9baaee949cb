"""What the log tells operators: which record, at which level, with which fields, and no secret."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import (
    ConnectError,
    Pool,
    PoolDeadlock,
    PoolOverloaded,
    PoolTimeout,
    QueueStrategy,
    SupportsJudge,
    Verdict,
)
from pool_core.testing import NEVER, OK, Delay, FakeConnection, ScriptedManager, SwallowCancel

from .helpers import hold, turns, virtual

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "canary-Pa55w0rd"
PLAIN = {*vars(logging.makeLogRecord({})), "message", "asctime"}


class Log(logging.Handler):
    """Keeps what the pool's loggers write, formatted as a JSON formatter would: every field of each record."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.lines.append(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s").format(record))
        self.lines.append(json.dumps(vars(record), default=repr))

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What ``extra=`` gave."""
        return {name: value for name, value in vars(record).items() if name not in PLAIN}

    def told(self, *levels: str) -> list[str]:
        """The messages of some levels, without the pool's name."""
        return [
            record.getMessage().removeprefix("pool 'app': ") for record in self.records if record.levelname in levels
        ]

    def find(self, words: str) -> dict[str, Any]:
        """The fields and the level of the one record with these words."""
        (record,) = (record for record in self.records if words in record.getMessage())
        return {"level": record.levelname, **self.fields(record)}


@pytest.fixture
def log() -> Iterator[Log]:
    logger, handler = logging.getLogger("pool_core"), Log()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


@virtual
async def test_the_life_of_a_pool_is_told_at_info(log: Log) -> None:
    """Open, resize, evict, close: who looks for the time of a deployment finds it."""
    async with Pool(ScriptedManager(connect=Delay(0.5)), name="app", min_idle=1) as pool:
        pool.resize(max_size=20, min_idle=2)
        pool.evict()
    assert log.told("INFO") == [
        "open after 0.5 s: 0 of 10 in use, 1 idle, 0 waiting",
        "resized: max_size 10 -> 20, min_idle 1 -> 2",
        "evicted: 1 open connections are retired",
        "closing: 0 of 20 in use, 0 idle, 2 opening, 1 closing, 0 waiting",
        "closed after 0 s",
    ]
    assert {record.name for record in log.records} == {"pool_core.app"}
    assert log.find("open after") == {"level": "INFO", "pool": "app", "seconds": 0.5}
    assert log.told("WARNING", "DEBUG") == []


@virtual
async def test_a_pool_that_connects_in_the_background_is_told_too(log: Log) -> None:
    """open(wait=False) does not wait for its connections."""
    pool = Pool(ScriptedManager(), name="app", min_idle=1)
    await pool.open(wait=False)
    await pool.close()
    assert log.told("INFO")[0] == "open; its connections follow"


@virtual
async def test_connections_that_go_before_their_time_are_told_at_info_with_the_reason(log: Log) -> None:
    """A server that closes connections shows so, one line for each connection."""
    manager = ScriptedManager(is_valid=[False])
    async with Pool(manager, name="app", min_idle=1, max_size=1, alive_bypass=5) as pool:
        async with pool.get() as conn:
            await asyncio.sleep(2)
            conn.broken = True
        await hold(pool)
        await asyncio.sleep(9)
        await hold(pool)
        lease = await pool.get()
        lease.discard()
    told = [log.fields(record) for record in log.records if hasattr(record, "reason")]
    assert [fields["reason"] for fields in told] == ["broken", "invalid", "discarded"]
    assert told[0] == {"pool": "app", "connection_id": told[0]["connection_id"], "reason": "broken", "seconds": 2.0}


@virtual
async def test_planned_changes_of_connections_are_told_at_debug_only(log: Log) -> None:
    """Connecting, lifetime, idle, max_uses: the daily work."""
    logging.getLogger("pool_core").setLevel(logging.DEBUG)
    manager = ScriptedManager(connect=Delay(0.25))
    async with Pool(manager, name="app", max_uses=1) as pool:
        await hold(pool)
        pool.add(FakeConnection(7))
        (await pool.get()).detach()
    assert log.find("opened in 0.25 s")["level"] == "DEBUG"
    assert log.find("was added")["level"] == "DEBUG"
    reasons = {vars(record)["reason"]: record.levelname for record in log.records if hasattr(record, "reason")}
    assert reasons == {"max_uses": "DEBUG", "detached": "DEBUG"}


@virtual
async def test_a_lost_lease_is_told_at_warning(log: Log) -> None:
    """A leak in the program: its connection is gone."""
    async with Pool(ScriptedManager(), name="app") as pool:
        lease = await pool.get()
        with pytest.warns(ResourceWarning):
            del lease
        await turns()
    assert log.find("leaked") | {"connection_id": 0} == {
        "level": "WARNING", "pool": "app", "connection_id": 0, "reason": "leaked", "seconds": 0.0,
    }  # fmt: skip


@virtual
async def test_a_lease_that_is_held_too_long_is_told_at_warning(log: Log) -> None:
    """Once, with the connection and the seconds."""
    async with Pool(ScriptedManager(), name="app", leak_threshold=5, reap_interval=10) as pool:
        await hold(pool, 30)
    found = log.find("longer than leak_threshold")
    assert (found["level"], found["seconds"] > 5, found["connection_id"] > 0) == ("WARNING", True, True)


@virtual
async def test_an_outage_is_told_once_and_its_end_too(log: Log) -> None:
    """Each further attempt only at DEBUG."""
    manager = ScriptedManager(connect=[OSError("down")] * 3)
    async with Pool(manager, name="app") as pool:
        await hold(pool)
    assert log.find("connecting failed") == {"level": "WARNING", "pool": "app", "phase": "connect"}
    assert log.find("connecting works again, after 3 failures") == {"level": "INFO", "pool": "app", "phase": "connect"}
    assert not any("attempt" in told for told in log.told("INFO", "WARNING", "DEBUG"))


@virtual
async def test_failed_validations_resets_and_closes_are_told_with_their_connection(log: Log) -> None:
    """The id leads to the connection's other records."""
    manager = ScriptedManager(is_valid=[OSError("v")], reset=[OK, OSError("r")], close=OSError("c"))
    async with Pool(manager, name="app", alive_bypass=0, max_size=1) as pool:
        await hold(pool)
        await asyncio.sleep(1)
        await hold(pool)
        await asyncio.sleep(1)
    for words, phase in {"the test of": "validate", "reset of": None, "OSError: c": None}.items():
        records = [record for record in log.records if words in record.getMessage()]
        assert {record.levelname for record in records} == {"WARNING"}, words
        assert all(log.fields(record)["connection_id"] > 0 for record in records)
        assert {log.fields(record).get("phase") for record in records} == {phase}


@virtual
async def test_a_deadlock_is_told_at_warning(log: Log) -> None:
    """A mistake in the program, which one of its tasks may swallow."""
    async with Pool(ScriptedManager(), name="app", max_size=1) as pool:
        async with pool.get():
            with pytest.raises(PoolDeadlock):
                await pool.get()
    assert log.find("PoolDeadlock")["phase"] == "queue"


@virtual
async def test_a_judge_that_retires_all_is_told_at_info(log: Log) -> None:
    """A failover that the adapter noticed."""

    class Judge(ScriptedManager, SupportsJudge[FakeConnection]):
        def judge(self, exc: Exception, conn: FakeConnection, /) -> Verdict:
            return Verdict.RETIRE_ALL

    async with Pool(Judge(), name="app") as pool:
        with pytest.raises(OSError):
            async with pool.get():
                raise OSError(CANARY)
    assert log.find("all connections are retired: judge answered RETIRE_ALL to OSError")["level"] == "INFO"


# -- each get


@virtual
async def test_each_get_and_return_is_told_at_debug(log: Log) -> None:
    """With the task, the seconds and the connection; a get that timed out with its phase."""
    logging.getLogger("pool_core.app").setLevel(logging.DEBUG)
    try:
        async with Pool(ScriptedManager(), name="app", min_idle=1, max_size=1) as pool:
            task = asyncio.create_task(hold(pool, 2), name="report")
            await turns()
            with pytest.raises(PoolTimeout):
                await pool.get(1)
            await task
    finally:
        logging.getLogger("pool_core.app").setLevel(logging.NOTSET)
    assert log.find("acquired by report, waited 0 s")["seconds"] == 0
    assert log.find("returned after 2 s")["seconds"] == pytest.approx(2)
    assert log.find("a get timed out after 1 s (phase queue)") == {
        "level": "DEBUG", "pool": "app", "phase": "queue", "seconds": pytest.approx(1),
    }  # fmt: skip


@virtual
async def test_a_get_outside_of_any_task_is_told_too(log: Log) -> None:
    """Some loops run callbacks that await by hand."""
    logging.getLogger("pool_core").setLevel(logging.DEBUG)
    async with Pool(ScriptedManager(), name="app", min_idle=1) as pool:
        lease: Any = pool.get()

        def drive() -> None:
            try:
                lease.__aenter__().send(None)
            except StopIteration:
                done.set_result(None)

        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(drive)
        await done
        assert log.find("acquired by no task")["level"] == "DEBUG"
        lease.release()


@virtual
async def test_without_debug_the_warm_path_stays(log: Log) -> None:
    """Nobody pays for records that nobody takes."""
    async with Pool(ScriptedManager(), name="app", min_idle=1, max_size=1) as pool:
        async with pool.get():
            assert not pool._state.slow
            assert not pool._state.observed
    assert log.told("DEBUG") == []


@virtual
async def test_the_level_may_change_while_the_pool_is_open(log: Log) -> None:
    """Who looks for a fault in production turns DEBUG on, and off again, without a restart."""
    logger = logging.getLogger("pool_core")
    async with Pool(ScriptedManager(), name="app", min_idle=1, max_size=1) as pool:
        await hold(pool, 1)
        logger.setLevel(logging.DEBUG)
        await hold(pool, 1)
        await hold(pool, 1)
        assert len([told for told in log.told("DEBUG") if "acquired" in told]) == 1
        logger.setLevel(logging.INFO)
        await hold(pool, 1)
        async with pool.get():
            assert not pool._state.observed


# -- whatever happens


class Secretive(ScriptedManager):
    """A manager whose every representation shows a password."""

    def __init__(self, **scripts: Any) -> None:
        super().__init__(**scripts)
        self.url = f"fake://user:{CANARY}@host"

    def __repr__(self) -> str:
        return self.url

    def _make(self, number: int) -> FakeConnection:
        conn = SecretConnection(number)
        self.connections.append(conn)
        return conn


class SecretConnection(FakeConnection):
    """Its connection shows it too."""

    def __repr__(self) -> str:
        return f"<connection with {CANARY}>"


class SecretCustomizer:
    """And its customizer."""

    async def on_connect(self, conn: object) -> None:
        """Do nothing."""

    async def on_close(self, conn: object) -> None:
        """Fail."""
        raise RuntimeError("on_close")

    def __repr__(self) -> str:
        return CANARY


@virtual
async def test_no_record_shows_a_secret_whatever_happens(log: Log) -> None:
    """Every kind of record, formatted with all its fields: no connection, manager or customizer is ever shown."""
    logging.getLogger("pool_core").setLevel(logging.DEBUG)
    manager = Secretive(
        connect=[OSError("down"), OSError("down"), OK, OK, OK, SwallowCancel(99, seconds=30), OK],
        is_valid=[False, OSError("v"), NEVER],
        reset=[OK, OSError("r"), OK, NEVER],
        close=[OSError("c"), NEVER],
        terminate=[OSError("t")],
    )
    options: dict[str, Any] = {"customizer": SecretCustomizer(), "queue_strategy": QueueStrategy.FIFO}
    with pytest.warns() as warned:
        pool = Pool(
            manager, name="app", min_idle=1, max_size=2, max_waiting=1, alive_bypass=0, leak_threshold=1,
            reap_interval=2, create_timeout=1, connection_timeout=4, validation_timeout=1, reset_timeout=1,
            close_timeout=1, max_lifetime=20, **options,
        )  # fmt: skip
        async with pool:
            for _ in range(8):
                try:
                    await asyncio.gather(hold(pool, 5), hold(pool, 5), hold(pool), hold(pool), return_exceptions=True)
                    async with pool.get():
                        async with pool.get():
                            await pool.get()
                except (PoolTimeout, PoolOverloaded, ConnectError, OSError):
                    pass
                await asyncio.sleep(1)
            lease = await pool.get()
            del lease
            await turns()
            pool.resize(max_size=1, min_idle=0)
            pool.evict()
            await asyncio.sleep(60)
    assert len({record.msg for record in log.records}) > 14, {record.msg for record in log.records}
    assert {record.levelname for record in log.records} == {"DEBUG", "INFO", "WARNING"}
    assert all(log.fields(record)["pool"] == "app" for record in log.records)
    shown = "\n".join([*log.lines, *(str(each.message) for each in warned)])
    assert CANARY not in shown


@virtual
async def test_fields_are_numbers_and_words_only(log: Log) -> None:
    """So that any JSON formatter takes them."""
    logging.getLogger("pool_core").setLevel(logging.DEBUG)
    async with Pool(ScriptedManager(connect=[OSError("down")]), name="app") as pool:
        await hold(pool)
    for record in log.records:
        for name, value in log.fields(record).items():
            assert name in {"pool", "connection_id", "reason", "phase", "seconds"}
            assert type(value) in {str, int, float}


@virtual
async def test_with_an_error_sink_errors_go_there_and_the_rest_to_the_log(log: Log) -> None:
    """Each is told once."""
    sunk: list[BaseException] = []
    async with Pool(ScriptedManager(connect=[OSError("down")]), name="app", error_sink=sunk.append) as pool:
        await hold(pool)
    assert [str(error) for error in sunk] == ["down"]
    assert log.told("WARNING") == []
    assert log.find("works again")["level"] == "INFO"


@virtual
async def test_a_pool_with_an_empty_name_logs_to_the_root_of_the_pools(log: Log) -> None:
    """There is no logger with an empty last name."""
    async with Pool(ScriptedManager(), name=""):
        pass
    assert {record.name for record in log.records} == {"pool_core"}


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt()], ids=repr)
def test_a_logger_of_the_programs_own_that_raises_breaks_nothing(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """logging.setLoggerClass may put anything in place."""

    class Bad(logging.Logger):
        def isEnabledFor(self, level: int) -> bool:
            raise error

    monkeypatch.setitem(logging.Logger.manager.loggerDict, "pool_core.bad", Bad("pool_core.bad"))
    caught = []

    @virtual
    async def run() -> None:
        pool = Pool(ScriptedManager(), name="bad")
        for act in (pool.open, lambda: hold(pool), pool.close):
            try:
                await act()
            except KeyboardInterrupt as interrupt:
                caught.append(interrupt)
        await pool.close()
        assert pool.state().statistics.hook_errors > 0

    try:
        run()
    except KeyboardInterrupt as interrupt:
        caught.append(interrupt)
    assert bool(caught) == isinstance(error, KeyboardInterrupt)
