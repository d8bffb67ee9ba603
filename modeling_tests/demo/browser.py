"""A demo in headless Chromium, and the steps of its users."""

import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60_000
"""Timeout in milliseconds, for a busy machine."""
SHOWN = """() => {
    const images = [...document.querySelectorAll('#image img')];
    return images.length > 0 && images.every(image => image.complete && image.naturalWidth > 0);
}"""
"""Whether the image is displayed with its size."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser. Tests are skipped if there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Visitor:
    """A user with their own page, and the activity of their browser.

    Attributes:
        strangers: addresses that were asked for and are not the demo's.
        errors: of the page's scripts.
    """

    def __init__(self, browser: Any, address: str, width: int = 1200, height: int = 900):
        self.page = browser.new_context(viewport={"width": width, "height": height}).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.strangers: list[str] = []
        self.errors: list[str] = []
        own = (address, "data:", "blob:")
        self.page.on(
            "request",
            lambda request: None if request.url.startswith(own) else self.strangers.append(request.url),
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_selector("#image input[type=file]", state="attached")

    def wait_for(self, selector: str, text: str) -> None:
        """Wait until an element contains a text."""
        self.page.wait_for_function(
            "([selector, text]) => document.querySelector(selector)?.innerText.includes(text)", arg=[selector, text]
        )

    def upload(self, file: Path) -> None:
        """Upload a file."""
        self.page.set_input_files("#image input[type=file]", file)

    def take_example(self, index: int) -> None:
        """Click an example, and wait until it is encoded."""
        self.page.locator("#examples .thumbnail-item").nth(index).click()
        self.wait_for("#status", "0 questions")

    def open_tab(self, name: str) -> None:
        """Open the tab of a task."""
        self.page.get_by_role("tab", name=name).click()

    def ask(self, task: str, count: int, words: str | None = None) -> str:
        """Ask, and wait for the `count`th answer about the image."""
        if words is not None:
            self.page.fill(f"#{task}-text :is(textarea, input)", words)
        self.page.click(f"#{task}-button")
        self.wait_for("#status", f"{count} question")
        self.settle()
        return self.answer

    def settle(self) -> None:
        """Wait until the image is displayed."""
        self.page.wait_for_timeout(400)
        self.page.wait_for_function(SHOWN)

    @property
    def answer(self) -> str:
        """The text in the answer field."""
        return self.page.input_value("#answer textarea")

    @property
    def ticked(self) -> list[str]:
        """The selected tags."""
        return self.page.locator("#tags label:has(input:checked)").all_inner_texts()

    def place(self) -> tuple[float, float, float]:
        """The position of the image's upper-left corner on the page, and the scale of its pixels."""
        self.page.wait_for_function(SHOWN)
        found = self.page.evaluate(
            """() => {
                const image = document.querySelector('#image img'), box = image.getBoundingClientRect();
                const scale = Math.min(box.width / image.naturalWidth, box.height / image.naturalHeight, 1);
                return [box.x + (box.width - scale * image.naturalWidth) / 2,
                        box.y + (box.height - scale * image.naturalHeight) / 2, scale];
            }"""
        )
        return found[0], found[1], found[2]

    def click_image(self, x: float, y: float) -> None:
        """Click a pixel of the image."""
        left, top, scale = self.place()
        self.page.mouse.click(left + x * scale, top + y * scale)
        self.page.wait_for_timeout(300)

    def screenshot(self, full_page: bool = False) -> Image.Image:
        """A screenshot of the visible part of the page, or of all of it."""
        return Image.open(io.BytesIO(self.page.screenshot(full_page=full_page))).convert("RGB")


def boxes_in(answer: str) -> list[tuple[float, float, float, float]]:
    """The boxes in an answer to a location question."""
    found = re.findall(r"(\d+), (\d+), (\d+), (\d+)", answer)
    return [(float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in found]
