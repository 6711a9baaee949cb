"""The inspector's page in a real browser: what a person sees and does. It makes the pictures of the documentation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from browser.stage import Stage

if TYPE_CHECKING:
    from .conftest import Browser

pytestmark = pytest.mark.timeout(240)


def contrast(browser: Browser, selector: str) -> float:
    """The contrast of a text with what is behind it, as WCAG counts it."""
    ink, paper = browser.run(
        """
        const node = document.querySelector(arguments[0]);
        const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
        let behind = node;
        while (behind && (rgb(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
        return [rgb(getComputedStyle(node).color), rgb(getComputedStyle(behind ?? document.documentElement).backgroundColor)];
        """,
        selector,
    )

    def light(rgb: list[float]) -> float:
        parts = [part / 255 for part in rgb[:3]]
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(ink), light(paper)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_a_pool_under_load_is_seen_at_a_glance(browser: Browser) -> None:
    """Places, holders, the queue and five minutes of history; light, dark and on a phone."""
    with Stage().running() as stage:
        stage.do(lambda: stage.load(22, hold=0.9, rest=1.2))
        stage.do(lambda: stage.rest(310))
        browser.open(stage.url)
        assert browser.text("h2") == "orders"
        browser.until(lambda: browser.texts(".rows.held tbody tr"), "nobody holds a connection")
        browser.until(lambda: len(browser.texts(".place.in_use")) >= 8, "the places are not in use")
        browser.until(
            lambda: re.search(r"gets? waits?,? .*(first )?for [\d.]+ s; \d+ of 10", browser.text(".verdict")),
            "no queue",
        )
        browser.until(lambda: re.search(r"GET /orders|checkout|report", browser.text(".rows.held")), "no task is named")
        drawn = browser.run(
            "return [...document.querySelectorAll('svg path')].map((each) => each.getAttribute('d').length)"
        )
        assert sum(length > 1000 for length in drawn) >= 6, drawn
        browser.picture("inspector-load")
        browser.picture("inspector-load-dark", dark=True)
        browser.picture("inspector-phone", width=390)
        assert browser.overflow() <= 0
        assert browser.complaints() == []


def test_an_outage_is_seen_on_the_page_and_so_is_its_end(browser: Browser) -> None:
    """The first line says what fails, in the driver's words."""
    with Stage().running() as stage:
        stage.do(lambda: stage.load(14, hold=0.8, rest=1.5))
        stage.do(lambda: stage.rest(240))
        browser.open(stage.url)
        browser.until(lambda: browser.texts(".verdict.well"), "the pool is not well at first")
        stage.manager.up = False
        browser.until(lambda: "Connecting fails" in browser.text(".verdict.trouble"), "no outage is seen")
        assert "ConnectionRefusedError: [Errno 111] Connect call failed" in browser.text(".verdict")
        browser.until(
            lambda: "connecting" in browser.text("table.rows:not(.held)"), "the queue does not say for what it waits"
        )
        stage.do(lambda: stage.rest(22))
        browser.until(lambda: browser.run("return document.title") == "(!) orders", "the title does not say it")
        browser.picture("inspector-outage")
        stage.manager.up = True
        browser.until(lambda: not browser.texts(".verdict.trouble"), "the end of the outage is not seen", 30)
        browser.until(lambda: "connecting works again" in browser.text(".events"), "the recovery is not told")
        assert browser.complaints() == []


def test_a_leak_is_seen_on_the_page_with_the_place_in_the_code(browser: Browser) -> None:
    """The connection is red, its task has ended, and the stack says where it was taken."""
    with Stage(leak_threshold=30, reap_interval=5, max_size=8).running() as stage:
        stage.do(lambda: stage.load(5, hold=0.6, rest=1.2))
        stage.do(lambda: stage.rest(200))
        browser.open(stage.url)
        assert not browser.texts(".place.lost")
        stage.do(lambda: stage.leak("GET /report"))
        browser.until(lambda: browser.texts(".place.lost"), "no lost connection is seen")
        assert "held by a task that has ended" in browser.text(".verdict.trouble")
        row = browser.text(".rows.held tbody tr")
        assert "GET /report" in row
        assert "has ended: is a release missing?" in row
        stage.do(lambda: stage.rest(60))
        browser.run("document.querySelector('.rows.held details').open = true")
        browser.until(lambda: "forgetful" in browser.text(".rows.held pre"), "the stack is not shown")
        browser.run(
            "document.querySelector('.rows.held details').open = false; document.querySelector('.place.lost').click()"
        )
        browser.until(lambda: "by GET /report, that task has ended" in browser.text(".about"), "the place says nothing")
        browser.picture("inspector-leak")
        assert browser.complaints() == []

        async def release() -> None:
            stage.leaked.release()

        stage.do(release)
        browser.until(lambda: not browser.texts(".place.lost"), "the returned connection is still shown as lost")


def test_the_keyboard_reaches_every_connection(browser: Browser) -> None:
    """One stop of the tab key for all of them, arrows between them; a choice stays while the page refreshes itself."""
    from selenium.webdriver.common.keys import Keys

    with Stage(min_idle=4, max_size=6).running() as stage:
        browser.open(stage.url)
        browser.until(lambda: len(browser.texts("button.place")) == 4, "four connections are open")
        browser.press(Keys.TAB)

        def focused() -> str:
            return str(browser.run("return document.activeElement.getAttribute('aria-label') ?? ''"))

        first = focused()
        assert first.startswith("Connection ")
        browser.press(Keys.ARROW_RIGHT)
        assert focused().startswith("Connection ")
        assert focused().split(":")[0] != first.split(":")[0]
        browser.press(Keys.ENTER)
        chosen = focused().split(":")[0]
        browser.until(lambda: browser.text(".about").startswith(chosen), "the choice is not told")
        stage.do(lambda: stage.rest(60))
        assert focused().split(":")[0] == chosen, "a refresh took the focus away"
        assert browser.texts(".place[aria-pressed=true]")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_has_enough_contrast(browser: Browser, dark: bool) -> None:
    """4.5 to 1, as WCAG AA asks."""
    with Stage(max_size=4, min_idle=4).running() as stage:
        stage.do(lambda: stage.load(3, hold=30, rest=1))
        browser.open(stage.url, dark=dark)
        browser.until(lambda: browser.texts(".place.in_use") and browser.texts(".place.idle"), "no places")
        for selector in ("h2", ".kind", ".verdict span", ".place.in_use strong", ".place.idle strong", "figcaption",
                         ".rows td", ".rows th", ".events time", "summary", ".span span", ".legend li"):  # fmt: skip
            assert contrast(browser, selector) >= 4.5, selector
        stage.manager.up = False
        browser.until(lambda: browser.texts(".verdict.trouble"), "no outage is seen", 30)
        assert contrast(browser, ".verdict.trouble span") >= 4.5


def test_what_is_allowed_can_be_done_and_is_asked_about_first(browser: Browser) -> None:
    """Evict takes a second press; resize shows the numbers in force."""
    with Stage(min_idle=3, allow=("evict", "resize")).running() as stage:
        browser.open(stage.url, width=390)
        assert browser.texts(".acts button") == ["Resize", "Evict"]
        evict = "const all = [...document.querySelectorAll('.acts button')]; all[all.length - 1].click()"
        browser.run(evict)
        browser.until(lambda: "Retire all?" in browser.texts(".acts button"), "the person is not asked")
        assert stage.pool.state().statistics.connections_closed["evicted"] == 0  # type: ignore[index]
        browser.run(evict)
        browser.until(lambda: browser.text(".acts output") == "3 connections are retired", "nothing is told")
        browser.run("document.querySelector('.acts button').click()")
        assert browser.run("return [...document.querySelectorAll('.acts input')].map((each) => each.value)") == [
            "10",
            "3",
        ]
        browser.run(
            "document.querySelector('.acts input').value = 12; document.querySelector('.acts form button').click()"
        )
        browser.until(lambda: stage.pool.config.max_size == 12, "the size is not changed")
        browser.until(lambda: browser.text(".acts output") == "max_size=12, min_idle=3", "nothing is told")
        browser.run("document.querySelector('.acts button').click()")
        browser.run(
            "document.querySelector('.acts input').value = 1; document.querySelector('.acts form button').click()"
        )
        browser.until(
            lambda: "min_idle" in browser.text(".acts output") and "must" in browser.text(".acts output"), "no reason"
        )
        assert browser.overflow() <= 0


def test_without_allow_there_are_no_buttons_and_names_are_no_markup(browser: Browser) -> None:
    """A name from outside is shown as it is."""
    name = "<img src=x onerror=alert(1)>"
    with Stage(name=name, prefix="/a/b/pools").running() as stage:

        async def wicked() -> None:
            stage._tasks.add(asyncio_task(stage, "<script>document.title = 'taken'</script>"))

        stage.do(wicked)
        browser.open(f"{stage.url}/")
        assert browser.text("h2") == name
        assert browser.texts(".acts button") == []
        browser.until(lambda: "<script>" in browser.text(".rows.held"), "the task is not shown")
        assert browser.run("return document.querySelectorAll('main img, main script').length") == 0
        assert browser.run("return document.title") == name
        assert browser.complaints() == []
        refused = browser.run(
            "return fetch(arguments[0], {method: 'POST', headers: {'content-type': 'application/json'}, body: '{}'})"
            ".then((answer) => answer.status)",
            f"{stage.url}/evict",
        )
        assert refused == 403


def asyncio_task(stage: Stage, name: str) -> Any:
    """A task of this name that holds a connection."""
    import asyncio

    async def hold() -> None:
        async with stage.pool.get():
            await asyncio.sleep(10_000)

    return asyncio.create_task(hold(), name=name)


def test_when_the_server_stops_the_page_says_so(browser: Browser) -> None:
    """Old numbers must not look like those of now."""
    with Stage().running() as stage:
        browser.open(stage.url)
    browser.until(lambda: "No answer since" in browser.text(".lost-server"), "nothing is said", 20)
    assert browser.run("return document.body.classList.contains('stale')")


def test_a_large_pool_fits_on_a_phone(browser: Browser) -> None:
    """Small places instead of large ones, and nothing sticks out."""
    with Stage(max_size=300, min_idle=120, max_connecting=50).running() as stage:
        browser.open(stage.url, width=360)
        browser.until(
            lambda: browser.run("return document.querySelectorAll('.places.small li').length") == 300, "no places"
        )
        assert browser.overflow() <= 0
