import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformers_lion.grounding import extract_entities, parse_boxes

unit = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)
boxes = st.tuples(unit, unit, unit, unit).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)


@pytest.mark.parametrize(
    ("text", "clean", "phrases", "found"),
    [
        ("Answer: [0.440,0.060,0.650,0.367]", "Answer:", [""], [[(0.44, 0.06, 0.65, 0.367)]]),
        ("a dog [0,0,1,1;0.5,0.5,1,1].", "a dog.", ["a dog"], [[(0, 0, 1, 1), (0.5, 0.5, 1, 1)]]),
        ("a cat[.1, .2 ,.3, .4] sits", "a cat sits", ["a cat"], [[(0.1, 0.2, 0.3, 0.4)]]),
        ("[0.3,0.4,0.1,0.2]", "", [""], [[(0.1, 0.2, 0.3, 0.4)]]),  # corners in the wrong order
        ("[0,0,1.2,1]", "", [""], [[(0, 0, 1, 1)]]),
        ("See it. A dog [0,0,1,1] and [0,0,1,1]", "See it. A dog and", ["A dog", "and"], [[(0, 0, 1, 1)]] * 2),
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
    ["[0.1,0.2,0.3]", "[0.1,0.2,0.3,0.4,0.5]", "[1,2,3,4]", "[nan,0,1,1]", "[0.4.4,0,1,1]", "[-0.1,0,1,1]", "[0,0,1,1",
     "0,0,1,1]", "[]", "[,,,]", "[;]", "[0,0,1,1;]", "[0,0,1,1;0]", "[1e-1,0,1,1]", "[__import__('os'),0,1,1]", "[[[["],
)  # fmt: skip
def test_what_is_no_box_stays_in_the_text(text: str) -> None:
    assert extract_entities(text) == (text, [])


def test_pixels_come_from_the_width_and_the_height() -> None:
    _, entities = extract_entities("[0.5,0.25,1,0.75]", image_size=(200, 100))
    assert entities[0][2] == [(100.0, 25.0, 200.0, 75.0)]


@given(
    st.lists(st.tuples(st.text("abc .,", max_size=8), boxes), max_size=5), st.text("abc .[];,0123456789", max_size=20)
)
def test_what_is_written_is_read_again(parts: list, tail: str) -> None:
    text = "".join(f"{phrase}[{','.join(f'{value:.3f}' for value in box)}]" for phrase, box in parts)
    clean, entities = extract_entities(text)
    assert [entity_boxes[0] for _, _, entity_boxes in entities] == [box for _, box in parts]
    for phrase, (start, end), _ in entities:
        assert clean[start:end] == phrase


@given(st.text(max_size=200) | st.text("[]0.19,; a", max_size=200))
def test_any_text_is_read_without_an_exception(text: str) -> None:
    clean, entities = extract_entities(text)
    for phrase, (start, end), entity_boxes in entities:
        assert clean[start:end] == phrase
        assert all(0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1 for x1, y1, x2, y2 in entity_boxes)


@pytest.mark.parametrize("unit_text", ["[", "[0.1,", "[0,0,1,1]", "a [0,0,1,1] ", "a, ", "]", "[0,0,1,1;"])
def test_the_time_grows_with_the_length_and_not_with_its_square(unit_text: str) -> None:
    def seconds(repeats: int) -> float:
        start = time.process_time()
        extract_entities(unit_text * repeats)
        return time.process_time() - start

    # A quadratic reader would need 400 times as long for 20 times the text; the bound leaves room for noise.
    assert min(seconds(100_000) for _ in range(2)) < 100 * max(min(seconds(5_000) for _ in range(3)), 2e-3)


def test_a_bracket_is_all_boxes_or_none() -> None:
    assert parse_boxes("0,0,1,1;0,0,1") is None
    assert parse_boxes("0,0,1,1;0,0,1,1") == [(0, 0, 1, 1)] * 2
