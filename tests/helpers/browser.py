"""Chromium for tests of the page, and what it complains of. Import it after `importorskip` of playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, Playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""

DESKTOP, TOUCH, PHONE = (1920, 1080), (1280, 800), (360, 740)


def launch(playwright: Playwright) -> Browser:
    """Return a browser; without a sandbox, as tests may run as root."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


class Watch:
    """What a page did that it may not: errors, and requests to others.

    Args:
        page: The page.
        url: Where it may ask.

    Attributes:
        complaints: Errors and warnings of its console, and exceptions.
        foreign: Requests to other origins.
        missing: Paths that were answered with 404.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.missing: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._request(request.url, f"{url}/"))
        page.on("response", lambda answer: self.missing.append(answer.url) if answer.status == 404 else None)

    def _request(self, url: str, own: str) -> None:
        if not url.startswith(own):
            self.foreign.append(url)

    def _console(self, message: Any) -> None:
        # A 404 of an image that is not kept any more is an answer; those of others are in `missing`.
        if message.type in ("error", "warning") and "404 (Not Found)" not in message.text:
            self.complaints.append(f"{message.text} {message.location.get('url', '')}")

    def check(self) -> None:
        """Assert that there was nothing."""
        missing = [url for url in self.missing if "/live.jpg" not in url and ".png" not in url]
        found = self.complaints + self.foreign + missing
        assert not found, found


@contextmanager
def opened(browser: Browser, url: str, size: tuple[int, int] = TOUCH, **options: Any) -> Iterator[tuple[Page, Watch]]:
    """Open a page in a context of its own, and watch it."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    try:
        page = context.new_page()
        page.set_default_timeout(40_000)
        watch = Watch(page, url.partition("/#")[0])
        page.goto(url)
        yield page, watch
    finally:
        context.close()
