"""Takes the picture of a model's page that the documentation shows.

``python docs/screenshot.py`` needs Pillow, Playwright and a Chromium (``TIDEGATE_CHROMIUM`` names
one that is not called ``chromium``).
"""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tidegate import serve

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "examples" / "hooks"
PICTURE = ROOT / "docs" / "images" / "model-page.png"
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
COLOURS = 32


def taken(address: str, chromium: str) -> bytes:
    """Return a picture of the page after the model was asked."""
    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page(viewport={"width": 720, "height": 920})
        page.goto(address)
        page.get_by_label("File").set_input_files(MODELS / "digits" / "five.png")
        page.get_by_role("button", name="Ask the model").click()
        page.locator("#shown table").wait_for()
        found = page.screenshot()
        browser.close()
        return found


def main() -> None:
    """Write the picture, with few colours."""
    chromium = os.environ.get("TIDEGATE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)))
    with serve(MODELS, port=8000) as server:
        picture = Image.open(io.BytesIO(taken(f"{server.url}/models/digits", chromium)))
        picture.convert("RGB").quantize(COLOURS).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
