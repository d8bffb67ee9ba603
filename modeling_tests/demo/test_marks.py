"""Drawings on the image of the page, in its own pixels."""

import pytest
import torch
from PIL import Image, ImageColor

from transformers_lion import Answer, LionImageFeatures
from transformers_lion.demo.answering import Question, Seen
from transformers_lion.demo.marks import box_as_text, draw_answer, draw_corners, to_box
from transformers_lion.grounding.drawing import PALETTE

RED = ImageColor.getrgb(PALETTE[0])


@pytest.fixture
def seen() -> Seen:
    """An image that is displayed at half its size."""
    features = LionImageFeatures(last_hidden_state=torch.zeros(1, 1, 1))
    return Seen(Image.new("RGB", (200, 100), "black"), (400, 200), features, None, 0.0)


def test_boxes_are_drawn_where_they_are_on_the_smaller_image(seen: Seen) -> None:
    found = Answer("", "", None, [("dog", (0, 3), [(100.0, 80.0, 300.0, 160.0)])], (400, 200))
    drawn = draw_answer(seen, Question("locate", "the dog", ""), found)
    assert [drawn.getpixel(point) for point in ((100, 80), (50, 60), (150, 60))] == [RED] * 3
    assert drawn.getpixel((100, 60)) == (0, 0, 0)
    assert seen.shown.getpixel((100, 80)) == (0, 0, 0)


def test_a_region_is_drawn_with_the_answer_about_it(seen: Seen) -> None:
    question = Question("region", "", "", (100.0, 80.0, 300.0, 160.0))
    drawn = draw_answer(seen, question, Answer("a dog", "", None, [], (400, 200)))
    assert drawn.getpixel((100, 80)) == RED


def test_one_corner_is_a_cross_and_two_are_a_region(seen: Seen) -> None:
    one = draw_corners(seen, [(50, 40)])
    assert (one.getpixel((50, 40)), one.getpixel((150, 60))) == (RED, (0, 0, 0))
    two = draw_corners(seen, [(150, 80), (50, 40)])
    assert (two.getpixel((150, 60)), two.getpixel((100, 60))) == (RED, (0, 0, 0))


def test_corners_become_a_box_in_the_uploaded_image(seen: Seen) -> None:
    assert box_as_text(to_box([(150, 80), (50, 40)], seen)) == "100, 80, 300, 160"
