import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformers_lion.grounding import (
    box_from_xywh,
    box_iou,
    box_to_xywh,
    format_boxes,
    normalize_box,
    round_box,
    scale_box,
)

from .boxes import boxes

sides = st.integers(1, 5000)


def test_numbers_are_written_with_three_decimals_as_in_training() -> None:
    assert format_boxes([(0.44, 0.06, 0.65, 0.3666)]) == "[0.440,0.060,0.650,0.367]"
    assert format_boxes([(0, 0, 1, 1), (0.5, 0.5, 1, 1)], decimals=1) == "[0.0,0.0,1.0,1.0;0.5,0.5,1.0,1.0]"
    assert round_box((0.0004, 0.0006, 0.12345, 1.0)) == (0.0, 0.001, 0.123, 1.0)


@given(st.tuples(*[st.floats(0, 1)] * 4))
def test_a_box_is_rounded_as_it_is_written(box: tuple[float, float, float, float]) -> None:
    assert format_boxes([round_box(box)]) == format_boxes([box])


@given(boxes, sides, sides)
def test_pixels_and_fractions_are_inverse(box: tuple, width: int, height: int) -> None:
    pixels = scale_box(box, (width, height))
    assert pixels[0] == box[0] * width
    assert pixels[3] == box[3] * height
    assert normalize_box(pixels, (width, height)) == pytest.approx(box)


@given(boxes)
def test_coco_boxes_and_corners_are_inverse(box: tuple) -> None:
    assert box_from_xywh(box_to_xywh(box)) == pytest.approx(box)


def test_coco_boxes_have_width_and_height() -> None:
    assert box_to_xywh((10, 20, 60, 100)) == (10, 20, 50, 80)


def test_an_image_without_a_width_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size is 0 x 5"):
        normalize_box((0, 0, 1, 1), (0, 5))


def test_iou_is_the_shared_fraction_of_the_area() -> None:
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 1, 1), (1, 1, 2, 2)) == 0
    assert box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0
