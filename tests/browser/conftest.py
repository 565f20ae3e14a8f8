"""A browser on the page of a server, whose engine stops before every picture it decodes until the
test lets it go on."""

import contextlib
import json
import os
import threading
from pathlib import Path

import pytest
from conftest import ROOT
from doubles.live_server import served

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


class Gate:
    """What an engine's decoder waits for: open, unless it is held."""

    def __init__(self, engine):
        self._decode, self._held = engine.decode, False
        self._passes = threading.Semaphore(0)
        engine.decode = self

    def __call__(self, *arguments, **options):
        if self._held:
            assert self._passes.acquire(timeout=60)
        return self._decode(*arguments, **options)

    def let(self, decodings=1):
        self._passes.release(decodings)

    @contextlib.contextmanager
    def hold(self):
        self._held = True
        try:
            yield self
        finally:
            self._held = False
            self._passes.release(1000)
            self._passes = threading.Semaphore(0)


@pytest.fixture(scope="session")
def browser_folder(request):
    """Where tests/browser/install.py put a browser; without --browser the tests may do without."""
    given = request.config.getoption("--browser")
    folder = given or ROOT / "build" / "browser"
    if not (folder / "launch.json").is_file():
        if given:
            pytest.fail(f"{folder} has no browser: make build/browser")
        pytest.skip("no browser is installed here: make build/browser")
    return folder.resolve()


@pytest.fixture(scope="session")
def launch(request, browser_folder):
    """Starts a browser; a Chromium of one process serves one test, as closing a page may end it."""
    if request.config.getoption("--browser"):
        import playwright.sync_api as api
    else:
        api = pytest.importorskip("playwright.sync_api")
    how = json.loads((browser_folder / "launch.json").read_text())
    env = dict(os.environ)
    if how["libraries"]:
        env["LD_LIBRARY_PATH"] = str(browser_folder / how["libraries"])
    with api.sync_playwright() as playwright:
        yield lambda: playwright.chromium.launch(
            executable_path=browser_folder / how["executable"], args=how["arguments"], env=env
        )


@pytest.fixture(scope="session")
def server(launch, digits_engine):
    """The address, the routes, and the gate of a server of the digits."""
    with served(digits_engine) as (address, service):
        yield address, service, Gate(service.engine)


@pytest.fixture
def opened(launch, server):
    """Opens the page: at a size, in a colour scheme; it must ask no other host for anything, and
    end without an error."""
    with contextlib.ExitStack() as left:
        pages = []

        def at(viewport=DESKTOP, address=server[0], **options):
            browser = launch()
            left.callback(browser.close)
            page = browser.new_context(viewport=viewport, **options).new_page()
            page.set_default_timeout(30_000)
            page.asked, page.failed = [], []
            page.on("request", lambda request: page.asked.append(request.url))
            page.on("pageerror", lambda error: page.failed.append(str(error)))
            page.goto(address)
            pages.append((page, address))
            return page

        yield at
        for page, address in pages:
            own = (address + "/", "blob:", "data:")
            assert [url for url in page.asked if not url.startswith(own)] == []
            assert page.failed == []


@pytest.fixture(scope="session")
def axe(browser_folder):
    return (Path(browser_folder) / "axe.min.js").read_text()
