import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformers_lion.grounding import (
    BOX_FORMATS,
    GroundedText,
    extract_boxes,
    extract_entities,
    parse_boxes,
    read_grounded_text,
)

from .boxes import boxes

SIZE = (640, 480)


@pytest.mark.parametrize(
    ("text", "clean", "phrases", "found"),
    [
        ("Answer: [0.440,0.060,0.650,0.367]", "Answer:", [""], [[(0.44, 0.06, 0.65, 0.367)]]),
        ("a dog [0,0,1,1;0.5,0.5,1,1].", "a dog.", ["a dog"], [[(0, 0, 1, 1), (0.5, 0.5, 1, 1)]]),
        ("a dog [0,0,1,1] [0.5,0.5,1,1].", "a dog.", ["a dog"] * 2, [[(0, 0, 1, 1)], [(0.5, 0.5, 1, 1)]]),
        ("a cat[.1, .2 ,.3, .4] sits", "a cat sits", ["a cat"], [[(0.1, 0.2, 0.3, 0.4)]]),
        ("See it. A dog [0,0,1,1] and [0,0,1,1]", "See it. A dog and", ["A dog", "and"], [[(0, 0, 1, 1)]] * 2),
        ("犬。猫 [0,0,1,1]", "犬。猫", ["猫"], [[(0, 0, 1, 1)]]),
        ("[[0,0,1,1]]", "[]", ["["], [[(0, 0, 1, 1)]]),
        ("no box", "no box", [], []),
        ("", "", [], []),
    ],
)
def test_boxes_are_read_with_their_phrases(text: str, clean: str, phrases: list[str], found: list) -> None:
    cleaned, entities = extract_entities(text)
    assert cleaned == clean
    assert [phrase for phrase, _, _ in entities] == phrases
    assert [entity_boxes for _, _, entity_boxes in entities] == found


@pytest.mark.parametrize(
    "text",
    ["[0.1,0.2,0.3]", "[0.1,0.2,0.3,0.4,0.5]", "[1,2,3,4]", "[0,1,2,3]", "[12]", "[1, 2]", "[2019, 2020, 2021, 2022]",
     "[0,0,640,480]", "[0.0,0.0,640.0,480.0]", "[1.5,2.5,3.5,4.5]", "[-0.4,0.1,-0.2,0.3]", "[nan,0,1,1]", "[inf,0,1,1]",
     "[0.4.4,0,1,1]", "[0.1 0.2 0.3 0.4]", "[--0.1,0,1,1]", "[+0.1,0,1,1]", "[0.1,0.2,0.3,0.4%]", "[0,1,0x1,1]",
     "[\u0660.\u0661,0,1,1]", "0,0,1,1]", "[]", "[,,,]", "[;]", "[0,0,1,1;]", "[0,0,1,1;0]", "[1e-1,0,1,1]",
     "[__import__('os'),0,1,1]", "[[[[", "(0.1,0.2,0.3,0.4)", "[0." + "1" * 100_000 + ",0,1,1]"],
)  # fmt: skip
def test_text_that_is_not_a_box_is_kept(text: str) -> None:
    assert read_grounded_text(text) == GroundedText(text)


@pytest.mark.parametrize(
    ("text", "box", "repaired", "clipped"),
    [
        ("[0.1,0.2,0.3,0.4]", (0.1, 0.2, 0.3, 0.4), False, False),
        ("[0.3,0.4,0.1,0.2]", (0.1, 0.2, 0.3, 0.4), True, False),
        ("[0.3,0.2,0.1,0.4]", (0.1, 0.2, 0.3, 0.4), True, False),
        ("[-0.1,0,1,1]", (0, 0, 1, 1), False, True),
        ("[0,0,1.2,1]", (0, 0, 1, 1), False, True),
        ("[0.5,0.5,1.7,3.0]", (0.5, 0.5, 1, 1), False, True),
        ("[1.2,0.4,-.1,0.2]", (0, 0.2, 1, 0.4), True, True),
        ("[-0,-0.0,1,1]", (0, 0, 1, 1), False, False),
        ("[0.5,0.5,0.5,0.5]", (0.5, 0.5, 0.5, 0.5), False, False),
    ],
)
def test_repaired_boxes_are_flagged(text: str, box: tuple, repaired: bool, clipped: bool) -> None:
    (found,) = read_grounded_text(text).boxes
    assert (found.box, found.repaired, found.clipped) == (box, repaired, clipped)


@pytest.mark.parametrize(
    ("text", "clean", "num_boxes", "cut_off"),
    [
        ("a dog [0.1,0.2,0.3,0.4", "a dog [0.1,0.2,0.3,0.4", 0, "0.1,0.2,0.3,0.4"),
        ("a dog [0.1,0.2,", "a dog [0.1,0.2,", 0, "0.1,0.2,"),
        ("a dog [0.", "a dog [0.", 0, "0."),
        ("a dog [0,0,1", "a dog [0,0,1", 0, "0,0,1"),
        ("a dog [0,0,1,1;0.5,0", "a dog", 1, "0.5,0"),
        ("a dog [0,0,1,1;0,0,1,1;0.", "a dog", 2, "0."),
        ("a [0,0,1,1] dog [0.1,", "a dog [0.1,", 1, "0.1,"),
        ("a dog [0,0,1,1]", "a dog", 1, None),
        ("see [12, 13", "see [12, 13", 0, None),
        ("see [the", "see [the", 0, None),
        ("see [0.1,0.2] there", "see [0.1,0.2] there", 0, None),
    ],
)
def test_a_cut_off_box_is_reported_but_not_completed(
    text: str, clean: str, num_boxes: int, cut_off: str | None
) -> None:
    found = read_grounded_text(text)
    assert (found.text, len(found.boxes), found.cut_off) == (clean, num_boxes, cut_off)


def test_a_box_has_the_span_of_its_numbers() -> None:
    text = "a dog [0,0,1,1; 0.5,0.5,1,1] runs [0.1,0.2,0.3,0.4]"
    written = [text[slice(*found.written)].strip() for found in read_grounded_text(text).boxes]
    assert written == ["0,0,1,1", "0.5,0.5,1,1", "0.1,0.2,0.3,0.4"]


def test_pixels_are_computed_from_width_and_height() -> None:
    _, entities = extract_entities("[0.5,0.25,1,0.75]", image_size=(200, 100))
    assert entities[0][2] == [(100.0, 25.0, 200.0, 75.0)]


def test_a_bracket_is_all_boxes_or_none() -> None:
    assert parse_boxes("0,0,1,1;0,0,1") is None
    assert parse_boxes("0,0,1,1;0,0,1,1") == [(0, 0, 1, 1)] * 2


@given(
    st.lists(st.tuples(st.text("abc .,", max_size=8), boxes), max_size=5), st.text("abc .[];,0123456789", max_size=20)
)
def test_written_boxes_are_read_back(parts: list, tail: str) -> None:
    text = "".join(f"{phrase}[{','.join(f'{value:.3f}' for value in box)}]" for phrase, box in parts)
    clean, entities = extract_entities(text)
    assert [entity_boxes[0] for _, _, entity_boxes in entities] == [box for _, box in parts]
    for phrase, (start, end), _ in entities:
        assert clean[start:end] == phrase
    assert extract_boxes(text + tail)[: len(parts)] == [box for _, box in parts]


PIECES = ["[", "]", "(", ")", "{", "}", ";", ",", ".", "0", "1", "0.5", "-", "1000", "<", ">", " ", "\n", "a dog", "犬",
          "[0,0,1,1]", "[0.1,0.2,", "[a](0,0,1,1)", "<phrase>", "</phrase>", "<object>", "</object>", "<grounding>",
          "<patch_index_0044>", "<patch_index_9999>", "</delimiter_of_multi_objects/>", "<ref>", "</ref>", "<box>",
          "</box>", "(1,2),(3,4)", "<|box_start|>", "<|box_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
          '{"bbox_2d": [1, 2, 3, 4]', ', "label": "a"}', '"', "\\", "nan", "Infinity", "1e999", "0.4.4", "\x00",
          "\ud800", "9" * 5000, "[" * 5000]  # fmt: skip


def check_is_defined(text: str, form: str) -> None:
    """Check that any text is read to consistent regions."""
    found = read_grounded_text(text, form, image_size=SIZE)
    end = 0
    for region in found.regions:
        start, stop = region.span
        assert found.text[start:stop] == region.phrase
        assert region.boxes
        assert stop >= end
        end = stop
        for box in region.boxes:
            x1, y1, x2, y2 = box.box
            assert 0 <= x1 <= x2 <= 1
            assert 0 <= y1 <= y2 <= 1
            assert 0 <= box.written[0] < box.written[1] <= len(text)
    if not found.regions and not form.startswith(("kosmos", "qwen")):
        assert found.text == text.rstrip()
    if found.cut_off is not None:
        assert text.endswith(found.cut_off)


@pytest.mark.parametrize("form", BOX_FORMATS)
@given(text=st.text(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_text_is_read_without_an_exception(form: str, text: str) -> None:
    check_is_defined(text, form)


@pytest.mark.parametrize("form", BOX_FORMATS)
def test_random_pieces_of_all_forms_are_read_without_an_exception(form: str) -> None:
    generator = random.Random(form)
    for _ in range(1000):
        check_is_defined("".join(generator.choices(PIECES[:-2], k=generator.randint(0, 60))), form)


UNITS = ["[", "]", "[0.1,", "[0,0,1,1]", "a [0,0,1,1] ", "a, ", "[0,0,1,1;", "0.1,", "[a](", "[a](0,0,1,1)", "](",
         "[](a", "<phrase>", "<phrase>a</phrase>", "<phrase>a</phrase> ", "<object>", "<object><patch_index_0001>",
         "<patch_index_0001><patch_index_0001></delimiter_of_multi_objects/>", "<ref>", "<ref>a</ref>", "<box>",
         "<box>1", "<box>(1,2),(3,4)</box>", "<box></box> ", "</box> <box>", "<|box_start|>", "<|object_ref_start|>a",
         "{", '{"',
         '{"bbox_2d": [1,2,3,4]}', '{\\"', "}", "((", " ", "\n"]  # fmt: skip


@pytest.mark.parametrize("form", [form for form in BOX_FORMATS if form not in ("shikra", "qwen2.5")])
@pytest.mark.parametrize("start", ["", "[", "<object>", "<box>", "<ref>", "<phrase>"])
def test_reading_takes_linear_time(form: str, start: str) -> None:
    def seconds(unit: str, length: int) -> float:
        text = start + unit * (length // len(unit))
        begin = time.process_time()
        read_grounded_text(text, form)
        return time.process_time() - begin

    for unit in UNITS:
        # 16 times the text: a quadratic reader would need 256 times as long; the bound leaves room for noise.
        short = max(min(seconds(unit, 4_000) for _ in range(3)), 1e-4)
        assert any(seconds(unit, 64_000) < 80 * short for _ in range(4)), unit
