"""A Chromium without a window, for tests that open a page."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, async_playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """The path of a Chromium; without one the test is skipped."""
    named = os.environ.get("TIDEGATE_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(
            f"no Chromium is installed ({', '.join(NAMES)}): apt-get install "
            "chromium-headless-shell, or name one in TIDEGATE_CHROMIUM"
        )
    return found


@contextlib.asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    path = chromium()
    # Chromium does not run as root in its sandbox; the pages are ours.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=options)
        try:
            yield browser
        finally:
            await browser.close()
