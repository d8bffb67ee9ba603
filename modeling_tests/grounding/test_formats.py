import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.kosmos2.processing_kosmos2 import clean_text_and_extract_entities_with_bboxes

from transformers_lion.grounding import (
    BOX_FORMATS,
    GroundedText,
    convert_grounded_text,
    read_grounded_text,
    write_grounded_text,
)

from .boxes import boxes, cells, grid_box, grounded, grounded_texts, phrases

TEXT = "a dog and a cat"
ENTITIES = [
    ("a dog", (0, 5), [(0.1, 0.2, 0.5, 0.75)]),
    ("a cat", (10, 15), [(0.0, 0.0, 0.3, 0.3), (0.5, 0.5, 1.0, 1.0)]),
]
WRITTEN = {
    "markdown": "[a dog](0.100,0.200,0.500,0.750) and [a cat](0.000,0.000,0.300,0.300;0.500,0.500,1.000,1.000)",
    "kosmos2": "<grounding><phrase>a dog</phrase><object><patch_index_0195><patch_index_0751></object> and"
    "<phrase> a cat</phrase><object><patch_index_0000><patch_index_0297></delimiter_of_multi_objects/>"
    "<patch_index_0528><patch_index_1023></object>",
    "qwen": "<ref>a dog</ref><box>(100,200),(500,750)</box> and <ref>a cat</ref><box>(0,0),(300,300)</box>"
    "<box>(500,500),(1000,1000)</box>",
    "qwen2": "<|object_ref_start|>a dog<|object_ref_end|><|box_start|>(100,200),(500,750)<|box_end|> and "
    "<|object_ref_start|>a cat<|object_ref_end|><|box_start|>(0,0),(300,300)<|box_end|>"
    "<|box_start|>(500,500),(1000,1000)<|box_end|>",
    "lion": "a dog [0.100,0.200,0.500,0.750] and a cat [0.000,0.000,0.300,0.300;0.500,0.500,1.000,1.000]",
    "thousandths": "a dog [100,200,500,750] and a cat [0,0,300,300;500,500,1000,1000]",
    "qwen3": '[{"bbox_2d": [100, 200, 500, 750], "label": "a dog"}, {"bbox_2d": [0, 0, 300, 300], "label": "a cat"}, '
    '{"bbox_2d": [500, 500, 1000, 1000], "label": "a cat"}]',
    "qwen2.5": '[{"bbox_2d": [64, 96, 320, 360], "label": "a dog"}, {"bbox_2d": [0, 0, 192, 144], "label": "a cat"}, '
    '{"bbox_2d": [320, 240, 640, 480], "label": "a cat"}]',
}
SIZE = (640, 480)
MARKED = ("markdown", "qwen", "qwen2")


@pytest.mark.parametrize("form", WRITTEN)
def test_each_format_is_written_as_its_model_writes_it(form: str) -> None:
    assert write_grounded_text(GroundedText.from_entities(TEXT, ENTITIES), form, SIZE) == WRITTEN[form]


@pytest.mark.parametrize("form", MARKED)
@given(texts=grounded_texts(boxes))
def test_text_with_marked_phrases_is_read_back_unchanged(form: str, texts: GroundedText) -> None:
    assert read_grounded_text(write_grounded_text(texts, form), form) == texts


@given(texts=grounded_texts(cells.map(grid_box)))
def test_boxes_on_the_grid_are_read_back_unchanged(texts: GroundedText) -> None:
    assert read_grounded_text(write_grounded_text(texts, "kosmos2"), "kosmos2") == texts


@pytest.mark.parametrize("form", ["lion", "shikra", "thousandths"])
@given(texts=grounded_texts(boxes, between=st.sampled_from([", ", ". Then, ", "; ", "\n"])))
def test_boxes_in_brackets_are_read_back_unchanged(form: str, texts: GroundedText) -> None:
    assert read_grounded_text(write_grounded_text(texts, form), form) == texts


@pytest.mark.parametrize("form", ["qwen2.5", "qwen3"])
@given(parts=st.lists(st.tuples(phrases | st.text(max_size=9).map(str.strip), boxes), max_size=4))
def test_json_is_read_back_unchanged(form: str, parts: list) -> None:
    texts = grounded([(", " if index else "", phrase, [box]) for index, (phrase, box) in enumerate(parts)], "")
    written = write_grounded_text(texts, form, (1000, 1000))
    assert [entry["label"] for entry in json.loads(written)] == [phrase for phrase, _ in parts]
    assert read_grounded_text(written, form, (1000, 1000)).entities() == texts.entities()


@given(st.tuples(*[st.floats(0, 1)] * 4))
def test_the_grid_keeps_any_box_to_within_a_cell(box: tuple) -> None:
    texts = GroundedText.from_entities("a", [("a", (0, 1), [box])])
    (found,) = read_grounded_text(write_grounded_text(texts, "kosmos2"), "kosmos2").boxes
    assert found.box == pytest.approx(texts.boxes[0].box, abs=1 / 32)


@given(texts=grounded_texts(cells.map(grid_box), between=st.text("ab. ,", max_size=6)))
def test_kosmos_2_text_is_read_as_transformers_reads_it(texts: GroundedText) -> None:
    written = write_grounded_text(texts, "kosmos2")
    assert read_grounded_text(written, "kosmos2").text == clean_text_and_extract_entities_with_bboxes(written)[0]
    theirs = clean_text_and_extract_entities_with_bboxes(written)[1]
    assert read_grounded_text(written, "kosmos2").entities() == theirs


@pytest.mark.parametrize("source", BOX_FORMATS)
@pytest.mark.parametrize("target", BOX_FORMATS)
def test_each_format_converts_to_each_other(source: str, target: str) -> None:
    grid = [("a dog", (0, 5), [(0.25, 0.5, 0.75, 1.0)]), ("a cat", (7, 12), [(0.0, 0.25, 0.5, 0.5)])]
    texts = GroundedText.from_entities("a dog, a cat", grid)
    written = write_grounded_text(texts, source, SIZE)
    converted = read_grounded_text(convert_grounded_text(written, source, target, SIZE), target, SIZE)
    assert converted.text == texts.text
    for (phrase, span, (box,)), (own_phrase, own_span, (own_box,)) in zip(converted.entities(), grid, strict=True):
        assert (phrase, span) == (own_phrase, own_span)
        assert box == pytest.approx(own_box, abs=1 / 32 if "kosmos2" in (source, target) else 1e-9)


@pytest.mark.parametrize(
    ("form", "text", "box", "repaired", "clipped"),
    [
        ("markdown", "[a](0.3,0.4,0.1,1.2)", (0.1, 0.4, 0.3, 1.0), True, True),
        ("kosmos2", "<object><patch_index_0863><patch_index_0044></object>",
         (0.390625, 0.046875, 0.984375, 0.828125), True, False),
        ("kosmos2", "<object><patch_index_0031><patch_index_0992></object>",
         (0.015625, 0.015625, 0.984375, 0.984375), True, False),
        ("qwen", "<box>(500, 100), (100, 1200)</box>", (0.1, 0.1, 0.5, 1.0), True, True),
        ("thousandths", "[-5,0,999,1000]", (0.0, 0.0, 0.999, 1.0), False, True),
        ("qwen3", '{"label": "a", "bbox_2d": [1, 2, 1003, 4.5]}', (0.001, 0.002, 1.0, 0.0045), False, True),
        ("qwen2.5", '```json\n[{"bbox_2d": [64, 48, 320, 240]}]\n```', (0.1, 0.1, 0.5, 0.5), False, False),
    ],
)  # fmt: skip
def test_repaired_boxes_are_flagged_in_each_format(
    form: str, text: str, box: tuple, repaired: bool, clipped: bool
) -> None:
    (found,) = read_grounded_text(text, form, SIZE).boxes
    assert found.box == pytest.approx(box)
    assert (found.repaired, found.clipped) == (repaired, clipped)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("markdown", "[1](https://example.org)"), ("markdown", "[a](0.1,0.2,0.3)"), ("markdown", "[a](1,2,3,4)"),
        ("markdown", "[0.1,0.2,0.3,0.4]"), ("kosmos2", "<object><patch_index_0044></object>"),
        ("kosmos2", "<object><patch_index_1024><patch_index_1025></object>"), ("kosmos2", "a < b > c"),
        ("qwen", "<box>(1,2),(nan,4)</box>"), ("qwen", "<box>1,2,3,4</box>"), ("qwen2", "<box>(1,2),(3,4)</box>"),
        ("thousandths", "[0.4.4,1,2,3]"), ("thousandths", "[1,2,3]"),
    ],
)  # fmt: skip
def test_text_that_is_not_a_box_is_kept(form: str, text: str) -> None:
    assert read_grounded_text(text, form) == GroundedText(text)


@pytest.mark.parametrize(
    "text",
    ['[{"bbox_2d": [1, 2, 3]}]', '{"bbox_2d": [1, 2, 3, NaN]}', '{"bbox_2d": [true, 2, 3, 4]}', '{"bbox_2d": "1"}',
     '{"bbox_2d": [1, 2, 3, 1e999]}', '{"bbox_2d": [1,2,3,4], "label": 5}', "[1, 2, 3, 4]", "{}", "null",
     '{"bbox_2d": ' + "[" * 100_000 + "}", '{"bbox_2d": [1, 2, 3, ' + "9" * 5000 + "]}"],
)  # fmt: skip
def test_json_without_a_box_yields_no_box(text: str) -> None:
    assert read_grounded_text(text, "qwen3") == GroundedText("")


@pytest.mark.parametrize(
    ("form", "text", "num_boxes", "cut_off"),
    [
        ("markdown", "[a dog](0.1,0.2", 0, "0.1,0.2"),
        ("kosmos2", "<phrase>a dog</phrase><object><patch_index_0044><patch_ind", 0, "<patch_index_0044><patch_ind"),
        ("kosmos2", "<object><patch_index_0044><patch_index_0863></delimiter_of_multi_objects/><patch_index_0044>", 1,
         "<patch_index_0044>"),
        ("qwen", "<ref>a dog</ref><box>(1,2),(3", 0, "(1,2),(3"),
        ("qwen", "<ref>a dog</ref><box>(1,2),(3,4)</box><box>(1", 1, "(1"),
        ("qwen3", '[{"bbox_2d": [1,2,3,4], "label": "a"}, {"bbox_2d": [1, 2', 1, '{"bbox_2d": [1, 2'),
    ],
)  # fmt: skip
def test_a_cut_off_box_is_reported_in_each_format(form: str, text: str, num_boxes: int, cut_off: str) -> None:
    found = read_grounded_text(text, form)
    assert (len(found.boxes), found.cut_off) == (num_boxes, cut_off)


@pytest.mark.parametrize(
    ("form", "text"),
    [("lion", "see [0,0,1,1] a dog"), ("markdown", "[1](0,0,1,1) a dog"), ("markdown", "[1] a dog"),
     ("kosmos2", "see </phrase> a dog"),
     ("qwen", "see <ref> a dog"), ("qwen", "a dog<box>1</box> a dog")],
)  # fmt: skip
def test_text_that_would_be_read_as_a_marker_is_refused(form: str, text: str) -> None:
    start = 0 if text.startswith(("a dog", "[1] ")) else len(text) - 5
    end = start + 5 if text.startswith("a dog") else len(text)
    texts = GroundedText.from_entities(text, [(text[start:end], (start, end), [(0, 0, 1, 1)])])
    with pytest.raises(ValueError, match=f"would be read as a box or marker of the format '{form}'"):
        write_grounded_text(texts, form)


def test_phrases_must_match_their_spans() -> None:
    with pytest.raises(ValueError, match=r"The text at \(0, 5\) is 'a dog', not 'a cat'"):
        write_grounded_text(GroundedText.from_entities(TEXT, [("a cat", (0, 5), [])]))
    with pytest.raises(ValueError, match=r"span \(0, 5\), but must start at 15 or later"):
        write_grounded_text(GroundedText.from_entities(TEXT, ENTITIES[::-1]))


def test_an_unknown_format_and_a_missing_image_size_are_errors() -> None:
    with pytest.raises(ValueError, match="Unknown box format 'yolo'; use one of lion, shikra"):
        read_grounded_text("", "yolo")
    with pytest.raises(ValueError, match=r"'qwen2\.5' are in pixels: pass image_size"):
        convert_grounded_text("", "lion", "qwen2.5")


def test_pixels_are_not_clipped_as_if_they_were_fractions() -> None:
    with pytest.raises(ValueError, match=r"box \[0, 20, 100, 75\] of 'a dog' looks like pixels, but must be fractions"):
        GroundedText.from_entities("a dog", [("a dog", (0, 5), [(0, 20, 100, 75)])])
    (found,) = GroundedText.from_entities("a dog", [("a dog", (0, 5), [(-0.1, 0, 1.2, 1)])]).boxes
    assert (found.box, found.clipped) == ((0, 0, 1, 1), True)
