"""The inspector as an ASGI application, in plain Python: what it answers, what it shows, and what it does not do."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import threading
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from pool_core import Pool
from pool_core._pool import _after_fork_in_child
from pool_core.inspector import inspector
from pool_core.testing import NEVER, Delay, ScriptedManager, run

from .helpers import hold, turns, virtual

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The log is another test's topic; nothing is to be seen of it here."""
    logger = logging.getLogger("pool_core")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


class Answer:
    """A response."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        start, *bodies = messages
        self.status: int = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(body["body"] for body in bodies)

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    app: Any,
    path: str = "/",
    method: str = "GET",
    *,
    root: str = "",
    body: bytes = b"",
    kind: str | None = "application/json",
) -> Answer:
    """Send one request, as a server does; the body comes in two parts."""
    parts = [body[: len(body) // 2], body[len(body) // 2 :]]
    messages = [{"type": "http.request", "body": part, "more_body": at == 0} for at, part in enumerate(parts)]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"Host", b"h"), *([(b"Content-Type", kind.encode())] if kind else [])]
    scope = {"type": "http", "method": method, "path": path, "root_path": root, "headers": headers}
    await app(scope, receive, send)
    return Answer(sent)


async def order(app: Any, path: str, **what: Any) -> Answer:
    return await ask(app, path, "POST", body=json.dumps(what).encode())


async def see(app: Any, pool: int = 0) -> dict[str, Any]:
    """What the page shows of one pool."""
    document = (await ask(app, "/state.json")).json()
    seen: dict[str, Any] = document["pools"][pool]
    return seen


def make(**options: Any) -> Pool[Any]:
    manager = options.pop("manager", None) or ScriptedManager()
    options.setdefault("name", "orders")
    return Pool(manager, **options)


# -- answers


@virtual
async def test_the_page_is_one_document_that_loads_nothing_from_elsewhere() -> None:
    """It must work where there is no network, and send nobody's address anywhere."""
    answer = await ask(inspector(make()))
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert not re.findall(r"(?:src|href|action)\s*=\s*[\"'](?!data:|state\.json)[^\"']", answer.text)
    assert set(re.findall(r"https?://[^\s\"'`]+", answer.text)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml",
    }  # fmt: skip

    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.seen.append(tag)
            assert not any(name.startswith("on") or name == "style" for name, _ in attrs), "the policy forbids it"

    tags = Tags()
    tags.feed(answer.text)
    assert (tags.seen.count("script"), tags.seen.count("style")) == (1, 1)


@virtual
async def test_the_policy_lets_only_the_pages_own_script_run() -> None:
    """A task's name or an error's text is no script, whatever is in it; and no other site may frame the page."""
    headers = (await ask(inspector(make()))).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[\w+/=]+';", policy)
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/", ""),
        ("", ""),
        ("/pools/", "/pools"),
        ("/pools", "/pools"),
        ("/", "/pools"),
        ("", "/a/b"),
        ("/a/b/", "/a/b"),
    ],
)
@virtual
async def test_any_mount_is_served(path: str, root: str) -> None:
    """Frameworks differ: some leave the prefix in the path, some take it off."""
    app = inspector(make())
    assert b"<!doctype html>" in (await ask(app, path, root=root)).body
    beside = path.rstrip("/") + "/state.json"
    assert (await ask(app, beside, root=root)).json()["pools"][0]["name"] == "orders"


@virtual
async def test_a_path_that_only_begins_like_the_mount_is_not_taken_for_it() -> None:
    """/poolstate.json is no file of /pools."""
    app = inspector(make())
    assert (await ask(app, "/poolstate.json", root="/pool")).status == 404


@virtual
async def test_wrong_paths_and_methods_are_refused_clearly() -> None:
    """And nothing of the pool is touched."""
    app = inspector(make(), allow=["evict"])
    assert (await ask(app, "/nothing")).status == 404
    for path, method, allowed in (
        ("/", "POST", "GET, HEAD"),
        ("/state.json", "DELETE", "GET, HEAD"),
        ("/evict", "GET", "POST"),
    ):
        answer = await ask(app, path, method)
        assert (answer.status, answer.headers["allow"]) == (405, allowed)
        assert answer.text == f"{method} is not allowed here\n"


@virtual
async def test_head_answers_without_a_body() -> None:
    """For a health check."""
    answer = await ask(inspector(make()), "/", "HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) > 1000


@virtual
async def test_websockets_are_closed_and_lifespans_answered() -> None:
    """A server may run the application by itself."""
    app = inspector(make())
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    incoming = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> Any:
        return {"type": next(incoming)}

    await app({"type": "websocket"}, receive, send)
    await app({"type": "lifespan"}, receive, send)
    assert sent == ["websocket.close", "lifespan.startup.complete", "lifespan.shutdown.complete"]


# -- what it is made of


@pytest.mark.parametrize("wrong", [None, Pool, "postgresql://u:canary@h/db", 42])
def test_what_is_no_pool_is_refused(wrong: Any) -> None:
    """One sentence, without what was given."""
    with pytest.raises(TypeError, match="pool: expected a Pool, not") as caught:
        inspector(make(), wrong)
    assert "canary" not in str(caught.value)


def test_no_pool_two_of_one_name_and_unknown_words_are_refused() -> None:
    """Before anything is mounted."""
    with pytest.raises(ValueError, match="at least one Pool"):
        inspector()
    with pytest.raises(ValueError, match="name='orders': two pools have this name"):
        inspector(make(), make())
    with pytest.raises(ValueError, match="allow='evikt': expected any of 'evict', 'resize'"):
        inspector(make(), allow=["evikt"])


def test_one_word_for_allow_is_taken() -> None:
    """A str is a collection of letters: no trap."""
    assert inspector(make(), allow="evict")._allow == {"evict"}


# -- what it shows


@virtual
async def test_connections_holders_and_the_queue_are_shown() -> None:
    """By state, with age, task and waits."""
    pool = make(max_size=2, min_idle=2)
    app = inspector(pool)
    async with pool:
        await asyncio.sleep(1)
        task = asyncio.create_task(hold(pool, 10), name="report")
        await asyncio.sleep(2)
        other = asyncio.create_task(hold(pool, 10), name="export")
        waiting = [asyncio.create_task(hold(pool, 0, 9), name=f"checkout {number}") for number in range(2)]
        await asyncio.sleep(3)
        seen = await see(app)
        assert seen["state"] == {
            "idle": 0, "in_use": 2, "opening": 0, "validating": 0, "resetting": 0, "closing": 0, "waiting": 2,
        }  # fmt: skip
        held = {each["task"]: each for each in seen["connections"]}
        assert set(held) == {"report", "export"}
        assert held["report"]["since"] == pytest.approx(5, abs=0.1)
        assert held["report"] | {"id": 0, "since": 0} == {
            "id": 0, "state": "in_use", "age": pytest.approx(6), "since": 0, "uses": 1, "task": "report", "lost": False,
            "stack": None, "leaves": None,
        }  # fmt: skip
        assert seen["waiters"] == [
            {"task": f"checkout {number}", "waited": pytest.approx(3), "left": pytest.approx(6), "for": "queue"}
            for number in range(2)
        ]
        assert seen["verdict"] == {
            "level": "busy", "text": "2 gets wait, the first for 3.0 s; 2 of 2 connections are in use",
        }  # fmt: skip
        await asyncio.gather(task, other, *waiting)
        seen = await see(app)
        assert {each["state"] for each in seen["connections"]} == {"idle"}
        assert seen["verdict"] == {"level": "well", "text": "No get waits; 0 of 2 connections are in use"}
        one = asyncio.gather(hold(pool, 1), hold(pool, 1), hold(pool))
        await asyncio.sleep(0.5)
        assert (await see(app))["verdict"]["text"].startswith("1 get waits for 0.5 s")
        assert (await see(app))["verdict"]["level"] == "well"
        await one


@virtual
async def test_every_other_state_is_shown_too() -> None:
    """Opening, validating, resetting, closing, and why."""
    manager = ScriptedManager(reset=NEVER, close=Delay(9), is_valid=NEVER)
    pool = make(manager=manager, max_size=5, alive_bypass=1, error_sink=lambda _: None)
    app = inspector(pool)
    async with pool:
        leases = [await pool.get() for _ in range(4)]
        manager.script(connect=NEVER)
        leases[0].release()
        leases[1].discard()
        waiter = asyncio.create_task(hold(pool))
        pool.evict(lambda conn: conn is leases[2].conn)
        await asyncio.sleep(1)
        seen = await see(app)
        assert seen["state"]["opening"] == 1
        assert {each["state"]: each["leaves"] for each in seen["connections"]} == {
            "resetting": None, "closing": "discarded", "in_use": None,
        }  # fmt: skip
        assert "evicted" in {each["leaves"] for each in seen["connections"]}
        assert seen["waiters"][0]["for"] == "connect"
        waiter.cancel()
        for lease in leases[2:]:
            lease.release()


@virtual
async def test_a_get_without_a_limit_or_a_task_is_shown() -> None:
    """JSON has no infinity."""
    pool = make(max_size=1, connection_timeout=None)
    app = inspector(pool)
    async with pool:
        async with pool.get():
            waiter: Any = pool.get().__aenter__()
            asyncio.get_running_loop().call_soon(waiter.send, None)
            await turns()
            (seen,) = (await see(app))["waiters"]
            assert (seen["left"], seen["task"]) == (None, None)
            waiter.close()


@virtual
async def test_an_outage_is_shown_with_its_error_until_it_is_over() -> None:
    """The first line of the page says it."""
    manager = ScriptedManager()
    pool = make(manager=manager)
    app = inspector(pool)
    async with pool:
        manager.script(connect=OSError("refused\nsecond line"))
        task = asyncio.create_task(hold(pool))
        await asyncio.sleep(0.01)
        seen = await see(app)
        attempts = seen["connecting_fails"]["attempts"]  # the back-off is random: there may have been a second one
        times = "1 time" if attempts == 1 else f"{attempts} times"
        assert seen["verdict"]["text"] == f"Connecting fails, {times} in a row: OSError: refused"
        await asyncio.sleep(5)
        seen = await see(app)
        attempts = seen["connecting_fails"]["attempts"]
        assert attempts > 3
        assert seen["verdict"] == {
            "level": "trouble", "text": f"Connecting fails, {attempts} times in a row: OSError: refused",
        }  # fmt: skip
        manager.script(connect=Delay(0))
        await task
        seen = await see(app)
        assert seen["connecting_fails"] is None
        assert [event["text"] for event in seen["events"][:2]] == [
            f"connecting works again, after {seen['statistics']['connects_failed']} failures",
            "connecting failed: OSError: refused",
        ]
        assert [event["level"] for event in seen["events"][:2]] == ["info", "warning"]


@virtual
async def test_errors_that_go_to_a_sink_are_shown_too() -> None:
    """Who looks at the page cannot see the sink."""
    pool = make(manager=ScriptedManager(close=OSError("c")), error_sink=lambda _: None)
    app = inspector(pool)
    async with pool:
        await hold(pool)
        pool.evict()
        await turns()
        assert (await see(app))["events"][0]["text"].endswith("failed: OSError: c")


@virtual
async def test_a_lost_connection_is_shown_with_the_stack_where_it_was_taken() -> None:
    """Its task has ended: nobody will return it."""
    pool = make(leak_threshold=3, reap_interval=1)
    app = inspector(pool)
    async with pool:
        lost: list[Any] = []

        async def forgetful() -> None:
            lost.append(await pool.get())

        await asyncio.create_task(forgetful(), name="export")
        seen = await see(app)
        assert (seen["connections"][0]["task"], seen["connections"][0]["lost"]) == ("export", True)
        assert "forgetful" in seen["connections"][0]["stack"]
        assert seen["verdict"] == {
            "level": "trouble", "text": "1 connection is held by a task that has ended: is a release missing?",
        }  # fmt: skip
        await asyncio.create_task(forgetful())
        assert (await see(app))["verdict"]["text"].startswith("2 connections are held by a task that has ended")
        await asyncio.sleep(5)
        event = (await see(app))["events"][0]
        assert "longer than leak_threshold=3" in event["text"]
        assert "forgetful" not in event["text"]
        assert (event["level"], event["times"]) == ("warning", 2)
        for lease in lost:
            lease.release()
        async with pool.get():
            await asyncio.sleep(4)
            assert (await see(app))["verdict"]["text"] == "1 connection is held for longer than leak_threshold (3 s)"


@virtual
async def test_five_minutes_are_kept_once_a_second_while_the_pool_is_open() -> None:
    """Also when nobody looks: who comes to an incident sees how it began."""
    pool = make(max_size=2)
    app = inspector(pool)
    async with pool:
        await asyncio.sleep(100.5)
        tasks = [asyncio.create_task(hold(pool, 10.2)) for _ in range(3)]
        await asyncio.sleep(5)
        history = (await see(app))["history"]
        assert {len(values) for values in history.values()} == {106}
        assert history["in_use"][-1] == 2
        assert history["in_use"][-6] == 0
        assert history["waiting"][-5:] == [1] * 5
        assert history["oldest_wait"][-1] == pytest.approx(4.5)
        assert history["open"][-1] == 2
        await asyncio.gather(*tasks)
        await asyncio.sleep(1000)
        assert {len(values) for values in (await see(app))["history"].values()} == {300}


@virtual
async def test_failures_are_counted_in_the_second_in_which_they_happen() -> None:
    """And those of before the pool was mounted nowhere."""
    pool = make(max_size=1)
    async with pool:
        async with pool.get():
            with pytest.raises(TimeoutError):
                await pool.get(0)
            app = inspector(pool)
            await asyncio.sleep(2.5)
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await pool.get(0)
            await asyncio.sleep(2)
        assert (await see(app))["history"]["failures"] == [0, 0, 0, 3, 0]


@virtual
async def test_a_pool_is_shown_in_every_part_of_its_life() -> None:
    """Not opened, open, closed, open again."""
    pool = make(manager=ScriptedManager(connect=Delay(2)), min_idle=1)
    app = inspector(pool)
    assert (await see(app))["verdict"] == {"level": "off", "text": "Not opened yet"}
    opening = asyncio.create_task(pool.open())
    await asyncio.sleep(1)
    assert (await see(app))["verdict"]["text"] == "Opening"
    await opening
    assert (await see(app))["verdict"]["level"] == "well"
    await pool.close()
    assert (await see(app))["verdict"]["text"] == "Closed"
    async with pool:
        assert (await see(app))["stage"] == "open"
        assert len((await see(app))["history"]["in_use"]) >= 3


@virtual
async def test_several_pools_are_shown_in_the_order_given() -> None:
    """Each by its name."""
    read, write = make(name="read"), make(name="write")
    document = (await ask(inspector(write, read), "/state.json")).json()
    assert [pool["name"] for pool in document["pools"]] == ["write", "read"]


@virtual
async def test_a_pool_of_a_parent_process_is_shown_as_such() -> None:
    """The child of a fork has the application, and not the connections."""
    pool = make()
    app = inspector(pool)
    async with pool:
        _after_fork_in_child()
        seen = await see(app)
        assert (seen["stage"], seen["verdict"]["level"]) == ("forked", "off")
        assert "belong to the parent process" in seen["verdict"]["text"]
        await asyncio.sleep(3)  # nothing is kept any more
        late = inspector(pool)
        assert (await see(late))["stage"] == "forked"
        pool._shell.life.forked, pool._shell.life.thread = False, threading.get_ident()
        assert len((await see(app))["history"]["in_use"]) == 1


@virtual
async def test_no_secret_is_shown() -> None:
    """Of manager and connection only the class of the manager is named."""

    class Secretive(ScriptedManager):
        url = "fake://user:canary@h"

        def __repr__(self) -> str:
            return self.url

    pool = make(manager=Secretive(connect=[OSError("down")]), leak_threshold=1, reap_interval=1)
    app = inspector(pool)
    async with pool:
        await hold(pool, 3)
        answer = await ask(app, "/state.json")
        assert answer.json()["pools"][0]["manager"] == "Secretive"
        assert "canary" not in answer.text


@virtual
async def test_only_so_many_connections_and_waiters_are_listed() -> None:
    """A page of ten thousand rows helps nobody."""
    pool = make(max_size=1200, min_idle=1200, max_connecting=1200)
    app = inspector(pool)
    async with pool:
        leases = [await pool.get() for _ in range(1200)]
        waiting = [asyncio.create_task(hold(pool)) for _ in range(60)]
        await turns()
        seen = await see(app)
        assert (len(seen["connections"]), seen["state"]["in_use"]) == (1000, 1200)
        assert (len(seen["waiters"]), seen["state"]["waiting"]) == (50, 60)
        for lease in leases:
            lease.release()
        await asyncio.gather(*waiting)


# -- what it costs


@virtual
async def test_the_warm_path_stays_while_a_pool_is_looked_at() -> None:
    """Borrowers pay nothing."""
    pool = make(min_idle=1, max_size=1)
    app = inspector(pool)
    async with pool:
        await see(app)
        async with pool.get():
            assert not pool._state.observed
            assert not pool._state.slow


@virtual
async def test_an_application_that_is_dropped_keeps_nothing_any_more() -> None:
    """Each test of a suite makes its application anew, for the one pool of a module."""
    pool = make()
    async with pool:
        for _ in range(3):
            app = inspector(pool)
            await asyncio.sleep(2)
            del app
        gc.collect()
        assert pool._shell.watchers == ()
        assert pool._shell.hooks.taps == ()
        await asyncio.sleep(2)


def test_a_pool_that_is_dropped_open_is_noticed_though_it_was_mounted() -> None:
    """What looks at a pool does not keep it."""

    async def main() -> None:
        pool = make()
        app = inspector(pool)
        await pool.open()
        with pytest.warns(ResourceWarning, match="was dropped while open"):
            del pool, app
            gc.collect()
        await asyncio.sleep(2)

    run(main)


@virtual
async def test_it_may_be_read_from_another_thread() -> None:
    """Some servers have a loop of their own."""
    pool = make(max_size=2)
    app = inspector(pool)
    async with pool:
        seen = await asyncio.to_thread(lambda: asyncio.run(see(app)))
        assert seen["stage"] == "open"


# -- what may be done


@virtual
async def test_nothing_may_be_done_unless_allowed() -> None:
    """The default is to look."""
    pool = make(min_idle=1)
    app = inspector(pool)
    async with pool:
        answer = await order(app, "/evict", pool="orders")
        assert (answer.status, answer.text) == (403, "evict is not allowed: give inspector(..., allow=('evict',))\n")
        assert (await order(app, "/resize", pool="orders", max_size=1)).status == 403
        assert pool.config.max_size == 10


@virtual
async def test_evict_retires_connections() -> None:
    """Softly, as pool.evict() does."""
    pool = make(min_idle=2)
    app = inspector(pool, allow=["evict"])
    async with pool:
        answer = await order(app, "/evict", pool="orders")
        assert (answer.status, answer.json()) == (200, {"done": "2 connections are retired"})
        await turns()
        assert pool.state().statistics.connections_closed["evicted"] == 2  # type: ignore[index]
        pool.resize(max_size=1, min_idle=1)
        await turns()
        assert (await order(app, "/evict", pool="orders")).json() == {"done": "1 connection is retired"}


@virtual
async def test_resize_changes_the_size() -> None:
    """One number or both; what is not allowed is refused with the reason."""
    pool = make()
    app = inspector(pool, allow=["resize", "evict"])
    async with pool:
        assert (await order(app, "/resize", pool="orders", max_size=20)).json() == {"done": "max_size=20, min_idle=0"}
        assert (await order(app, "/resize", pool="orders", max_size=5, min_idle=3)).status == 200
        assert (pool.config.max_size, pool.config.min_idle) == (5, 3)
        for wrong in ({"max_size": 0}, {"max_size": "9"}, {"min_idle": 6}, {}, {"max_size": 1.5}):
            answer = await order(app, "/resize", pool="orders", **wrong)
            assert answer.status == 400, wrong
        assert (pool.config.max_size, pool.config.min_idle) == (5, 3)


@virtual
async def test_another_sites_form_cannot_order_anything() -> None:
    """A form cannot send JSON, and a script of another site is not let to."""
    pool = make(min_idle=1)
    app = inspector(pool, allow=["evict"])
    async with pool:
        body = b'{"pool": "orders"}'
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None):
            answer = await ask(app, "/evict", "POST", body=body, kind=kind)
            assert answer.status == 415
        assert (await ask(app, "/evict", "POST", body=body, kind="Application/JSON; charset=utf-8")).status == 200


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b"{}", b'{"pool": "other"}', b'{"pool": []}', b"\xff", b'"' + b"x" * 20_000 + b'"']
)
@virtual
async def test_a_wrong_order_is_refused(body: bytes) -> None:
    """And the pools are named."""
    app = inspector(make(), allow=["evict"])
    answer = await ask(app, "/evict", "POST", body=body)
    assert (answer.status, answer.text) == (400, 'expected an object with "pool": one of orders\n')


@virtual
async def test_an_order_for_a_pool_that_is_not_open_is_refused() -> None:
    """With the pool's own words; from another loop too."""
    pool = make()
    app = inspector(pool, allow=["evict", "resize"])
    answer = await order(app, "/evict", pool="orders")
    assert (answer.status, answer.text) == (
        409, "pool 'orders' is not open: use 'async with pool:', or 'await pool.open()' first\n",
    )  # fmt: skip
    async with pool:
        for action, what in (("/evict", {}), ("/resize", {"max_size": 3})):
            answer = await asyncio.to_thread(lambda: asyncio.run(order(app, action, pool="orders", **what)))  # noqa: B023
            assert answer.status == 409
            assert "make one pool for each event loop" in answer.text
    assert pool.config.max_size == 10
