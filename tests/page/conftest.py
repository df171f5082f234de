"""A Chromium of the system for the tests of the web page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from browsing import Visit, Watched, echo, speaking
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from serving_fakes import Root

# Where Debian and others have it; HEARTH_CHROMIUM names another.
_NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for a file's tests; each visit has a profile of its own.

    Playwright's event loop runs as long: tests with loops of their own are in other files.
    """
    found = os.environ.get("HEARTH_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("Chromium is absent: apt-get install chromium (or HEARTH_CHROMIUM)")
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def root() -> Iterator[Root]:
    """A root whose model repeats the last text of the person, in capitals."""
    with speaking(echo) as running:
        yield running


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens pages; a page's complaints fail the test.

    A page closes before its root stops, or its next look at the cluster would be a complaint.
    One that `outlives` the root closes at the end of the test.
    """
    watched: list[Watched] = []
    contexts: list[BrowserContext] = []

    def make(
        root: Root,
        path: str = "/",
        expected: tuple[str, ...] = (),
        outlives: bool = False,
        **options: Any,
    ) -> Page:
        context = browser.new_context(**options)
        if not outlives:
            root.before_stop.append(context.close)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        watch = Watched(page, root.url)
        watch.expected += expected
        watched.append(watch)
        page.goto(f"{root.url}{path}")
        page.wait_for_selector("header")
        return page

    yield make
    for context in contexts:
        context.close()
    for watch in watched:
        watch.check()
