"""The page in a real browser, used like a user would."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageColor

from demo.browser import Visitor, boxes_in, chromium
from transformers_lion.demo import answering
from transformers_lion.grounding.drawing import PALETTE

pytest.importorskip("gradio", reason="the extra [demo] is not installed")

RED = ImageColor.getrgb(PALETTE[0])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def visitor(browser: Any, address: str) -> Iterator[Visitor]:
    found = Visitor(browser, address)
    yield found
    assert found.errors == []
    found.page.context.close()


def is_red_near(screen: Image.Image, x: float, y: float, reach: int = 2) -> bool:
    """Whether a pixel has the color of the first box, even if the browser scales the image."""
    area = screen.crop((round(x) - reach, round(y) - reach, round(x) + reach + 1, round(y) + reach + 1))
    pixels = [area.getpixel((i, j)) for i in range(area.width) for j in range(area.height)]
    return any(sum(abs(a - b) for a, b in zip(pixel, RED, strict=True)) < 60 for pixel in pixels)  # type: ignore[arg-type]


def shows_box(visitor: Visitor, box: tuple[float, float, float, float]) -> bool:
    """Whether all four edges of a box are visible on the page at their positions."""
    (left, top, scale), screen = visitor.place(), visitor.screenshot()
    x1, y1, x2, y2 = box
    middle = ((x1 + x2) / 2, (y1 + y2) / 2)
    edges = [(x1, middle[1]), (x2, middle[1]), (middle[0], y1), (middle[0], y2)]
    return all(is_red_near(screen, left + x * scale, top + y * scale) for x, y in edges)


def test_the_page_loads_without_any_other_server(visitor: Visitor) -> None:
    visitor.take_example(0)
    visitor.ask("caption", 1)
    assert visitor.strangers == []


def test_an_image_is_sent_tagged_and_described(visitor: Visitor, sketch_file: Path) -> None:
    visitor.upload(sketch_file)
    visitor.wait_for("#status", "640 x 480")
    assert len(visitor.ticked) > 2
    first = visitor.ticked[0]
    visitor.page.locator("#tags label", has_text=first).first.click()
    visitor.page.fill("#new-tags :is(textarea, input)", "sky, blue sea")
    visitor.page.press("#new-tags :is(textarea, input)", "Enter")
    visitor.wait_for("#tags", "blue sea")
    assert {"sky", "blue sea"} <= set(visitor.ticked)
    assert first not in visitor.ticked
    assert len(visitor.ask("caption", 1).split()) > 3
    visitor.page.locator("#details button").first.click()
    visitor.wait_for("#raw", "prompt")
    raw = visitor.page.locator("#raw").inner_text()
    assert "blue sea" in raw
    assert f'"{first}"' not in raw


def test_a_box_is_drawn_at_its_place(visitor: Visitor) -> None:
    visitor.take_example(0)
    visitor.open_tab("Locate")
    (box,) = boxes_in(visitor.ask("locate", 1, "the blue triangle"))
    assert shows_box(visitor, box)
    x1, y1, x2, y2 = box
    assert not shows_box(visitor, (x1 + 12, y1 + 12, x2 - 12, y2 - 12))


def test_two_clicks_select_the_region_to_describe(visitor: Visitor) -> None:
    visitor.take_example(0)
    visitor.click_image(320, 80)
    visitor.click_image(590, 300)
    visitor.page.wait_for_function("document.querySelector('#region-text :is(textarea, input)').value !== ''")
    visitor.settle()
    (box,) = boxes_in(visitor.page.input_value("#region-text :is(textarea, input)"))
    assert all(abs(a - b) <= 2 for a, b in zip(box, (320, 80, 590, 300), strict=True))
    assert shows_box(visitor, box)
    assert visitor.ask("region", 1) != ""
    assert shows_box(visitor, box)


def test_a_file_that_is_not_an_image_is_refused_on_the_page(
    visitor: Visitor, no_image: Path, sketch_file: Path
) -> None:
    visitor.upload(no_image)
    visitor.wait_for("#status", "not an image")
    assert "Traceback" not in visitor.page.locator("body").inner_text()
    visitor.upload(sketch_file)  # the field accepts another file
    visitor.wait_for("#status", "640 x 480")


def test_a_question_without_an_image_is_refused_on_the_page(visitor: Visitor) -> None:
    visitor.page.click("#caption-button")
    visitor.page.get_by_text("Choose an image first.").wait_for()


def test_two_pages_at_once_do_not_mix(browser: Any, address: str, visitor: Visitor) -> None:
    other = Visitor(browser, address)
    visitor.take_example(0)
    other.take_example(0)
    other.open_tab("Locate")
    other.page.fill("#locate-text :is(textarea, input)", "the red circle")
    other.page.click("#locate-button")
    visitor.page.click("#caption-button")
    other.wait_for("#status", "1 question")
    visitor.wait_for("#status", "1 question")
    assert other.answer.startswith("the red circle: ")
    assert visitor.answer.startswith("a ")
    other.page.context.close()


def test_an_answer_is_written_word_by_word_and_can_be_stopped(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = answering.TextSoFar.put

    def slow(self: Any, value: Any) -> None:
        time.sleep(0.4)
        put(self, value)

    monkeypatch.setattr(answering.TextSoFar, "put", slow)
    visitor.take_example(0)
    visitor.page.click("#caption-button")
    visitor.page.wait_for_function("document.querySelector('#answer textarea').value.length > 2")
    visitor.page.click("#stop")
    visitor.wait_for("#time", "Stopped")
    monkeypatch.undo()
    visitor.page.wait_for_timeout(1000)  # Gradio takes no click for a moment after the cancellation
    assert "0 questions" in visitor.page.locator("#status").inner_text()
    assert len(visitor.ask("caption", 1).split()) > 3
