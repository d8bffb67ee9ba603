import math

import pytest
from PIL import Image, ImageColor

from transformers_lion.grounding import drawing
from transformers_lion.grounding.drawing import PALETTE, draw_boxes, font_size

COLORS = [ImageColor.getrgb(color) for color in PALETTE]
PHRASES = ["a dog", "a phrase of so many words that it goes on and on and does not end",
           "\u0441\u043e\u0431\u0430\u043a\u0430", "\u4e00\u53ea\u72d7", "\U0001f415", "a\nb\x00c"]  # fmt: skip


def entity(phrase: str, *boxes: tuple) -> tuple:
    return phrase, (0, len(phrase)), list(boxes)


def colored(image: Image.Image, color: tuple) -> int:
    return sum(count for count, value in image.getcolors(image.width * image.height) if value == color)


@pytest.mark.parametrize("size", [(1, 1), (7, 64), (64, 64), (640, 480), (4000, 3000), (3000, 40)])
@pytest.mark.parametrize("phrase", PHRASES)
def test_any_phrase_is_written_on_images_of_any_size(size: tuple[int, int], phrase: str) -> None:
    width, height = size
    entities = [entity(phrase, (0, 0, width, height)), entity(phrase, (width, height, width, height))]
    drawn = draw_boxes(Image.new("RGB", size), entities)
    assert drawn.size == size
    assert drawn.getpixel((0, height // 2)) in COLORS or min(size) < 64


@pytest.mark.parametrize("box", [(0, 0, 100, 80), (-50, -50, 500, 500), (100, 80, 0, 0), (99, 79, 99, 79)])
def test_a_box_at_the_edge_or_beyond_is_seen_at_the_edge(box: tuple) -> None:
    drawn = draw_boxes(Image.new("RGB", (100, 80)), [entity("", box)])
    assert drawn.getpixel((99, 79)) == COLORS[0]


@pytest.mark.parametrize("background", ["white", "black", PALETTE[0]])
def test_a_box_is_seen_on_any_background(background: str) -> None:
    image = Image.new("RGB", (100, 80), background)
    drawn = draw_boxes(image, [entity("", (20, 20, 60, 60))])
    line = [drawn.getpixel((x, 40)) for x in (19, 20, 21)]
    assert line == [(255, 255, 255), COLORS[0], (255, 255, 255)]


def test_text_and_lines_scale_with_the_image() -> None:
    assert font_size((64, 64)) == 10
    assert font_size((4000, 4000)) == pytest.approx(4000 / 35, abs=1)
    large = draw_boxes(Image.new("RGB", (4000, 4000)), [entity("", (1000, 1000, 3000, 3000))])
    assert all(large.getpixel((1000 + x, 2000)) == COLORS[0] for x in range(20))


def test_labels_of_identical_boxes_do_not_overlap() -> None:
    box = (100.0, 100.0, 300.0, 300.0)
    taken: list = []
    for _ in range(6):
        x, y = drawing.best_place(box, (60, 20), (400, 400), taken)
        taken.append((x, y, x + 60, y + 20))
    assert not any(drawing.shared_area(a, b) for index, a in enumerate(taken) for b in taken[:index])


def test_a_long_label_is_shortened_to_the_width_it_may_have() -> None:
    font = drawing.load_font(None, 12)
    assert font is not None
    label = drawing.shortened("a phrase of many words", font, 60)
    assert label.endswith("...")
    assert font.getlength(label) <= 60
    assert drawing.shortened("a dog", font, 60) == "a dog"


def test_a_label_that_no_font_can_draw_becomes_the_number_of_the_entity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "FALLBACK_FONTS", ())
    image, box = Image.new("RGB", (200, 200)), (50, 50, 150, 150)
    numbered = draw_boxes(image, [entity("\u4e00\u53ea\u72d7", box)])
    assert numbered.tobytes() == draw_boxes(image, [entity("1", box)]).tobytes()


def test_a_system_font_is_used_if_it_has_the_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    class Font:
        def __init__(self, known: str):
            self.known = known

        def getmask(self, letter: str) -> "Mask":
            return Mask(letter.encode() if letter in self.known else b"box")

    class Mask(bytes):
        size = (3, 3)

    fonts = {None: Font("abc"), "one": None, "two": Font("abc\u00e9"), "three": Font("abc\u00e9\u72d7")}
    monkeypatch.setattr(drawing, "FALLBACK_FONTS", ("one", "two", "three"))
    monkeypatch.setattr(drawing, "load_font", lambda name, size: fonts[name])
    assert drawing.font_for("a cab", None, 9) is fonts[None]
    assert drawing.font_for("\u00e9", None, 9) is fonts["two"]
    assert drawing.font_for("\u00e9\u72d7", None, 9) is fonts["three"]
    assert drawing.font_for("\u0431", None, 9) is None


def test_a_missing_font_is_an_error() -> None:
    with pytest.raises(OSError, match="cannot open"):
        draw_boxes(Image.new("RGB", (9, 9)), [entity("a", (0, 0, 5, 5))], font="no such font.ttf")


def test_a_box_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="is not finite"):
        draw_boxes(Image.new("RGB", (9, 9)), [entity("a", (0, 0, math.nan, 5))])


def test_each_entity_has_its_color() -> None:
    drawn = draw_boxes(Image.new("RGB", (300, 200)), [entity("", (10 + 30 * i, 20, 30 + 30 * i, 60)) for i in range(9)])
    assert all(colored(drawn, color) for color in COLORS)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_images_of_any_mode_become_rgb(mode: str) -> None:
    assert draw_boxes(Image.new(mode, (50, 50)), [entity("a", (5, 5, 40, 40))]).mode == "RGB"


@pytest.mark.parametrize("boxes", [[(0.1, 0.2, 0.5, 0.75)], [(0, 0, 1, 1), (0.5, 0.5, 1.0, 1.0)]])
def test_fractions_instead_of_pixels_are_an_error(boxes: list[tuple]) -> None:
    with pytest.raises(ValueError, match=r"box \[.*\] of 'a dog' looks like fractions, but must be in pixels"):
        draw_boxes(Image.new("RGB", (100, 80)), [entity("a dog", *boxes)])


def test_a_box_smaller_than_a_pixel_among_others_is_drawn() -> None:
    drawn = draw_boxes(Image.new("RGB", (100, 80)), [entity("", (0, 0, 0.5, 0.5), (20, 20, 60, 60))])
    assert drawn.getpixel((20, 40)) == COLORS[0]


def test_boxes_of_any_size_in_an_answer_are_drawn() -> None:
    """The boxes of an answer are known to be pixels, and a model may write an empty one."""
    assert drawing.draw_entities(Image.new("RGB", (100, 80)), [entity("", (0, 0, 0.1, 0.1))]).size == (100, 80)
