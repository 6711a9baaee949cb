"""A headless Chromium for the tests of pages, and where their pictures go."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Pictures change with each run, so they are made only when asked for."""
    parser.addoption("--pictures", action="store_true", help="make the pictures of the documentation anew")


class Browser:
    """What a person does with a page."""

    def __init__(self, driver: Any, pictures: Path) -> None:
        self.driver = driver
        self._pictures = pictures

    def open(self, url: str, *, width: int = 1040, dark: bool = False) -> None:
        """Open a page in a window of this width."""
        self.look(width=width, dark=dark)
        self.driver.get(url)
        self.until(lambda: self.texts("h2"), "the page shows no pool")

    def look(self, *, width: int = 1040, dark: bool = False, height: int = 900) -> None:
        """Set the window and what the person's system prefers."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1.5, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def run(self, script: str, *args: object) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script, *args)

    def texts(self, selector: str) -> list[str]:
        """What these elements show; hidden ones show nothing."""
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].filter((each) => each.checkVisibility())"
            ".map((each) => each.innerText)",
            selector,
        )
        return found

    def text(self, selector: str) -> str:
        """The same of the first one."""
        return next(iter(self.texts(selector)), "")

    def until(self, condition: Callable[[], Any], message: str, seconds: float = 15.0) -> Any:
        """Wait until something shows."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"{message}; the page shows:\n{self.text('body')}"
            time.sleep(0.1)
        return found

    def press(self, *keys: str) -> None:
        """Press keys."""
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def picture(self, name: str, *, width: int = 1040, dark: bool = False) -> bytes:
        """Take a picture of all of the page."""
        self.look(width=width, dark=dark)
        time.sleep(0.4)
        height = self.run("return document.querySelector('main').getBoundingClientRect().bottom + 4")
        self.look(width=width, dark=dark, height=int(height))
        time.sleep(0.2)
        png: bytes = self.driver.get_screenshot_as_png()
        self._pictures.mkdir(parents=True, exist_ok=True)
        (self._pictures / f"{name}.png").write_bytes(png)
        return png

    def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        wider: int = self.run("return document.documentElement.scrollWidth - innerWidth")
        return wider

    def complaints(self) -> list[str]:
        """What the browser's console says."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    program, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and chromedriver):
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for option in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--force-color-profile=srgb", "--lang=en"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Any, request: pytest.FixtureRequest, tmp_path: Path) -> Browser:
    chromium.get("about:blank")
    chromium.get_log("browser")
    return Browser(chromium, PICTURES if request.config.getoption("--pictures") else tmp_path)
