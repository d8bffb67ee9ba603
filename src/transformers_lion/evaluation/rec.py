"""Referring expression comprehension: how often the predicted box for a phrase is right.

Source: LION (arXiv:2311.11860), section 4.1: a box is right if its IoU with the labeled box is at least 0.5. Supported
data formats are REFER (refs and instances), COCO, MDETR, Shikra, and generic records.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from ..grounding import Box, box_iou, extract_boxes
from ..images import measure, open_file
from .data_files import (
    Row,
    describe,
    leave_out_training,
    list_rows,
    read_document,
    read_image,
    require_unique,
)
from .parquet_files import is_in_parquet, open_in_parquet
from .predictions import score_measures
from .task import Example, Prediction, Scores

logger = logging.getLogger(__name__)

PROMPT = "How can I locate {} in the image? Please provide the coordinates."

IOU_THRESHOLD = 0.5

FORMATS = ("xyxy", "xywh")
UNITS = ("pixels", "fractions", "thousandths")
ROOM = 0.01
"""Fraction of the image by which a labeled box may extend beyond its edge. Such boxes are clipped."""

PHRASE_NAMES = ("expression", "phrase", "sentences", "sent", "caption", "text")
SENTENCE_NAMES = ("sent", "raw", "text", "sentence")
BOX_NAMES = ("bbox", "box")
ID_NAMES = ("id", "question_id", "sent_id", "region_id")
REGION_NAMES = ("x", "y", "width", "height")
"""Fields of Visual Genome's regions. Their width and height are those of the region."""


@dataclass(frozen=True)
class BoxForm:
    """Format of boxes, for records that do not specify it.

    Attributes:
        format: "xyxy" or "xywh". Defaults to xyxy.
        unit: "pixels", "fractions" or "thousandths" of the image. Defaults to pixels.
    """

    format: str | None = None
    unit: str | None = None


COCO_FORM = BoxForm("xywh", "pixels")

Size = tuple[int, int]
"""Width and height in pixels."""


class _ImageSizeError(ValueError):
    """The size of an image is needed but cannot be read."""


@dataclass(frozen=True)
class Target:
    """The box that a phrase refers to.

    Attributes:
        box: Fractions of the image (x1, y1, x2, y2). Empty if the size of the image is needed but cannot be read.
        image_size: Size in the record, if the box depends on it.
        error: Reason why there is no box.
    """

    box: list[float] = field(default_factory=list)
    image_size: Size | None = None
    error: str = ""


def score_rec(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Scores:
    """Compute accuracy at IoU 0.5, mean IoU, and the share of answers without a box, in percent.

    The reference is the box (x1, y1, x2, y2) as fractions of the image. Only the first box of an answer counts.
    """
    return score_measures(examples, predictions, _judge_box)


def _judge_box(example: Example, prediction: Prediction) -> dict[str, float]:
    boxes = extract_boxes(prediction.answer)
    iou = box_iou(boxes[0], tuple(example.references)) if boxes and example.references else 0.0
    return {
        "mean_iou": 100 * iou,
        "accuracy": 100.0 * (iou >= IOU_THRESHOLD),
        "without_box": 100.0 * (not boxes),
    }


def load_rec(
    data: Path, images: Path | None = None, *, box_format: str | None = None, box_unit: str | None = None
) -> list[Example]:
    """Load phrases and boxes from a file in any of the formats in docs/evaluation.md.

    Args:
        data: Data file.
        images: Image folder. Required if the data do not have the sizes of images.
        box_format: "xyxy" or "xywh", for records without the field `box_format`. Defaults to xyxy.
        box_unit: "pixels", "fractions" or "thousandths", for records without the field `box_unit`. By default, boxes
            are in pixels, and those that look like fractions raise an error.

    Returns:
        An example for each phrase. If the size of an image is needed but cannot be read, the example has no references
        and `error` says why.

    Raises:
        ValueError: If something is missing, none of the images can be read, or a box does not fit its image or format.
    """
    for name, value, known in (("box_format", box_format, FORMATS), ("box_unit", box_unit, UNITS)):
        if value is not None and value not in known:
            raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(known)}.")
    if data.suffix in (".p", ".pkl", ".pickle"):
        raise ValueError(f"{data}: pickled references may run code when loaded; save them as JSON.")
    find_size = partial(cache(_measure_image), images)
    document = read_document(data)
    if isinstance(document, Row) and isinstance(document.find("annotations"), list):
        examples = list(_read_coco(document, images, find_size))
    else:
        rows = list_rows(document, id_name="id")
        read = _read_references if _is_refer(rows[0]) else partial(_read_records, form=BoxForm(box_format, box_unit))
        examples = list(read(rows, data, images, find_size))
    if not examples:
        raise ValueError(f"{data} has no phrases with boxes.")
    require_unique([example.id for example in examples], str(data))
    examples = leave_out_training(examples)
    errors = [example.error for example in examples if example.error]
    if len(errors) == len(examples):
        raise ValueError(errors[0])
    if errors:
        logger.warning("%s: %d of %d phrases cannot be scored. %s", data, len(errors), len(examples), errors[0])
    return examples


def _measure_image(images: Path | None, name: str) -> Size:
    """Read the size of an image from the header of its file, after applying the EXIF orientation.

    Raises:
        _ImageSizeError: If the image does not exist or cannot be read.
        ValueError: If there is no image folder.
    """
    if images is None and not is_in_parquet(name):
        raise ValueError("pass the image folder to read them from the images.")
    path = (images or Path()) / name
    try:
        with open_in_parquet(name) if is_in_parquet(name) else open_file(str(path)) as opened:
            return measure(opened)
    except Exception as error:  # decoders raise many kinds of errors, for example for images above Pillow's size limit
        raise _ImageSizeError(f"image {path} cannot be read: {error}") from error


FindSize = Callable[[str], Size]


def _find_row_size(row: Row, image: str, find_size: FindSize) -> tuple[Size, bool]:
    """Return the size of an image, and whether it comes from its record rather than from the image.

    Raises:
        _ImageSizeError: If the record has no size and the image cannot be read.
    """
    is_given = row.find("width") is not None and row.find("height") is not None and not _is_region(row)
    if is_given:
        size = row.whole("width"), row.whole("height")
    else:
        missing = "its width and height are the region's" if _is_region(row) else "has no width and height"
        try:
            size = find_size(image)
        except _ImageSizeError as error:
            raise _ImageSizeError(f"{row.where}: {missing}, and {error}") from error
        except ValueError as error:
            raise row.error(f"{missing}; {error}") from error
    if min(size) <= 0:
        raise row.error(f"expected a positive width and height, not {size[0]} and {size[1]}.")
    return size, is_given


def _is_region(row: Row) -> bool:
    """Whether the width and height of a record are those of its box, as in Visual Genome, rather than of the image."""
    if any(row.find(name) is None for name in REGION_NAMES):
        return False
    x, y, width, height = (row.find(name) for name in REGION_NAMES)
    return row.find(*BOX_NAMES) in (None, [x, y, width, height], [x, y, x + width, y + height])


def _make_example(
    name: str, image: str, phrase: str, target: Target, group: str, tags: tuple[str, ...] | None
) -> Example:
    return Example(
        name,
        image,
        PROMPT.format(phrase.strip().rstrip(".")),
        target.box,
        "region_level",
        group=group,
        tags=tags,
        image_size=target.image_size,
        error=target.error,
    )


def _find_target(row: Row, image: str, find_size: FindSize, form: BoxForm) -> Target:
    """Read the box of a record, or the reason why it is unknown."""
    try:
        return read_box(row, image, find_size, form)
    except _ImageSizeError as error:
        return Target(error=" ".join(str(error).split()))


def read_box(row: Row, image: str, find_size: FindSize, form: BoxForm) -> Target:
    """Read the box of a record as fractions of its image.

    Raises:
        _ImageSizeError: If the size of the image is needed but cannot be read.
        ValueError: If the box is invalid or may be in another format.
    """
    if row.find(*BOX_NAMES) is None and _is_region(row):
        region = [row.find(name) for name in REGION_NAMES]
        row, form = Row({**row.fields, "bbox": region}, row.where), COCO_FORM
    numbers = row.numbers(*BOX_NAMES)
    if len(numbers) != 4:
        raise row.error(f"expected 4 numbers in bbox, but found {len(numbers)}.")
    unit = _read_word(row, "box_unit", UNITS) or form.unit
    if unit is None and max(numbers) <= 1:
        raise row.error(
            f"the box {describe(list(numbers))} may be in fractions or pixels; specify the field box_unit of "
            "the record or the option box_unit."
        )
    (width, height), is_given = ((1, 1) if unit == "fractions" else (1000, 1000)), False
    if unit in (None, "pixels"):
        (width, height), is_given = _find_row_size(row, image, find_size)
    x1, y1, x2, y2 = numbers
    if (_read_word(row, "box_format", FORMATS) or form.format) == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    box = _check_box(row, (x1 / width, y1 / height, x2 / width, y2 / height), numbers)
    return Target(list(box), (width, height) if is_given else None)


def _read_word(row: Row, name: str, known: Sequence[str]) -> str | None:
    """Return a field whose value must be one of the known words, or `None`."""
    value = row.find(name)
    if value is not None and value not in known:
        raise row.error(f"expected one of {', '.join(known)} in {name}, not {describe(value)}.")
    return value


def _check_box(row: Row, box: Box, written: Sequence[float]) -> Box:
    """Return a box clipped to the image, after checking that it has an area and is inside the image.

    Raises:
        ValueError: If it has no area or extends beyond the image by more than `ROOM`, which suggests that its format is
            wrong.
    """
    hint = "Does it have another format (box_format xyxy or xywh, box_unit pixels, fractions or thousandths)?"
    if box[0] >= box[2] or box[1] >= box[3]:
        raise row.error(f"the box {describe(list(written))} has no area. {hint}")
    if min(box) < -ROOM or max(box) > 1 + ROOM:
        edges = ", ".join(f"{value:.3f}" for value in box)
        raise row.error(
            f"the box {describe(list(written))} extends beyond its image, of which it covers {edges}. {hint}"
        )
    x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in box)
    return x1, y1, x2, y2


def _read_phrases(row: Row) -> list[str]:
    """Read the phrases of a record: a string, a list of strings, or a list of objects in REFER's format."""
    value = row.need(*PHRASE_NAMES)
    phrases = [_find_sentence(entry) for entry in (value if isinstance(value, list) else [value])]
    if not phrases or not all(isinstance(phrase, str) and phrase.strip() for phrase in phrases):
        raise row.error(f"expected a string or strings in {' or '.join(PHRASE_NAMES)}, not {describe(value)}.")
    return [phrase for phrase in phrases if phrase is not None]


def _find_sentence(entry: object) -> str | None:
    """Return a phrase that is a string or a field of an object."""
    if isinstance(entry, Mapping):
        entry = next((entry[name] for name in SENTENCE_NAMES if entry.get(name)), None)
    return entry if isinstance(entry, str) else None


def _read_records(
    rows: Sequence[Row], data: Path, images: Path | None, find_size: FindSize, form: BoxForm
) -> Iterator[Example]:
    """Read records of an image, one or several phrases, and a box. Records without an id are numbered."""
    for place, row in enumerate(rows, 1):
        image, phrases = read_image(row, images), _read_phrases(row)
        target = _find_target(row, image, find_size, form)
        name = row.name(*ID_NAMES) if row.find(*ID_NAMES) is not None else str(place)
        for number, phrase in enumerate(phrases, 1):
            full = name if len(phrases) == 1 else f"{name}-{number}"
            yield _make_example(full, image, phrase, target, row.find("split") or "", row.tags)


def _is_refer(row: Row) -> bool:
    """Whether a record is a REFER reference, whose box is in COCO's instances."""
    return row.find("ann_id") is not None and row.find("sentences") is not None and row.find(*BOX_NAMES) is None


def _read_references(rows: Sequence[Row], data: Path, images: Path | None, find_size: FindSize) -> Iterator[Example]:
    """Read REFER references with the boxes of instances.json in the same folder. Ids are those of sentences."""
    instances = read_document(data.with_name("instances.json"))
    if isinstance(instances, list):
        raise instances[0].error("expected an object with images and annotations, not a list.")
    image_rows = _index_rows(instances, "images")
    annotations = _index_rows(instances, "annotations")
    for row in rows:
        annotation = _pick(annotations, row, "ann_id")
        image_row = _pick(image_rows, annotation, "image_id")
        image = read_image(image_row, images)
        target = _find_target(_with_size(annotation, image_row), image, find_size, COCO_FORM)
        for sentence, phrase in zip(row.list("sentences"), _read_phrases(row), strict=True):
            name = Row(sentence, row.where).name("sent_id") if isinstance(sentence, dict) else row.name("ref_id")
            yield _make_example(name, image, phrase, target, row.find("split") or "", row.tags)


def _index_rows(document: Row, name: str) -> dict[str, Row]:
    """Return the rows of a list by id."""
    return {row.name("id"): row for row in document.rows(name)}


def _pick(rows: Mapping[str, Row], row: Row, name: str) -> Row:
    """Return the row that a field of another row refers to."""
    key = row.name(name)
    if key not in rows:
        raise row.error(f"expected one of {len(rows)} ids in {name}, not {key}.")
    return rows[key]


def _with_size(annotation: Row, image_row: Row) -> Row:
    """Return an annotation with the size of its image."""
    size = {name: image_row.find(name) for name in ("width", "height")}
    return Row({**annotation.fields, **size}, annotation.where)


def _read_coco(document: Row, images: Path | None, find_size: FindSize) -> Iterator[Example]:
    """Read an example for each COCO annotation. Its phrase is that of the annotation, of the image (MDETR), or the
    category.

    The phrase of an image is used only if the image has one annotation, because it is unknown which of several it
    refers to. The category is used only if the image has one annotation of that category. Ids are those of annotations.
    """
    image_rows = _index_rows(document, "images")
    categories = _index_rows(document, "categories") if document.find("categories") else {}
    annotations = list(document.rows("annotations"))
    counts = Counter((row.name("image_id"), str(row.find("category_id"))) for row in annotations)
    totals = Counter(row.name("image_id") for row in annotations)
    left_out = 0
    for row in annotations:
        image_row = _pick(image_rows, row, "image_id")
        phrase = row.find(*PHRASE_NAMES) or None
        if phrase is None and totals[row.name("image_id")] == 1:
            phrase = image_row.find(*PHRASE_NAMES) or None
        if phrase is None:
            is_alone = counts[row.name("image_id"), str(row.find("category_id"))] == 1 and not row.find("iscrowd")
            if not is_alone or (not categories and image_row.find(*PHRASE_NAMES)):
                left_out += 1
                continue
            phrase = _pick(categories, row, "category_id").text("name")
        image = read_image(image_row, images)
        target = _find_target(_with_size(row, image_row), image, find_size, COCO_FORM)
        phrases = _read_phrases(Row({"phrase": phrase}, row.where))
        for number, text in enumerate(phrases, 1):
            name = row.name("id") if len(phrases) == 1 else f"{row.name('id')}-{number}"
            yield _make_example(name, image, text, target, image_row.find("split") or "", image_row.tags)
    if left_out:
        logger.warning(
            "%s: skipped %d of %d annotations, which have no phrase of their own and are not the only ones of their "
            "category in the image.",
            document.where, left_out, len(annotations),
        )  # fmt: skip


__all__ = ["BoxForm", "load_rec", "score_rec"]
