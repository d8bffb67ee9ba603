"""Recreate the images of `docs/demo.md`: `python modeling_tests/demo/screenshots.py [FOLDER]`.

It takes what the demo's tests take: Gradio, Playwright and Chromium. To be run when the page or the example checkpoint
has changed.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from demo.browser import Visitor, chromium
from transformers_lion import Lion
from transformers_lion.demo.server import EXAMPLE, ServerSettings, start

COLORS = 256
"""Number of colors of a stored image, to keep it small."""


def main() -> None:
    """Start a demo, use it and store screenshots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs/images"))
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as sent:
        page = start(Lion.from_pretrained(), Path(sent), ServerSettings(name=EXAMPLE))
        with chromium() as browser:
            take_all(browser, page.local_url, folder)
        page.close(verbose=False)


def take_all(browser: Any, address: str, folder: Path) -> None:
    """All images."""
    visitor = Visitor(browser, address, width=1100, height=760)
    visitor.take_example(0)
    visitor.ask("caption", 1)
    visitor.open_tab("Ask")
    visitor.ask("ask", 2, "How many objects are there?")
    visitor.open_tab("Locate")
    visitor.ask("locate", 3, "the blue triangle")
    store(visitor, folder / "demo-locate.png", full_page=True)
    visitor.take_example(1)
    visitor.click_image(20, 20)
    visitor.click_image(230, 180)
    visitor.page.wait_for_timeout(500)
    visitor.ask("region", 1)
    visitor.page.locator("#details button").first.click()
    visitor.page.wait_for_timeout(500)
    store(visitor, folder / "demo-region.png", full_page=True)


def store(visitor: Visitor, file: Path, full_page: bool = False) -> None:
    """Write a screenshot of a page."""
    visitor.page.mouse.move(1, 1)
    visitor.settle()
    screen = visitor.screenshot(full_page)
    screen.quantize(COLORS, dither=0).save(file, optimize=True)
    print(f"{file}: {screen.width} x {screen.height}, {file.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
