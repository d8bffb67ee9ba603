"""Referring expressions: how often the box that answers a phrase is the right one.

Source: LION (arXiv:2311.11860), section 4.1: a box is right if its IoU with the labelled one is 0.5 or more. The forms
of data are those of REFER (refs and instances), COCO, MDETR, Shikra, and records of any file.
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
"""Of the image, by which a labelled box may reach over its edge; it is cut off there."""

PHRASE_NAMES = ("expression", "phrase", "sentences", "sent", "caption", "text")
SENTENCE_NAMES = ("sent", "raw", "text", "sentence")
BOX_NAMES = ("bbox", "box")
ID_NAMES = ("id", "question_id", "sent_id", "region_id")
REGION_NAMES = ("x", "y", "width", "height")
"""Of Visual Genome's regions, whose width and height are their own."""


@dataclass(frozen=True)
class BoxForm:
    """How boxes are written, where records do not say it.

    Attributes:
        format: "xyxy" or "xywh"; without one xyxy.
        unit: "pixels", "fractions" or "thousandths" of the image; without one pixels.
    """

    format: str | None = None
    unit: str | None = None


COCO_FORM = BoxForm("xywh", "pixels")

Size = tuple[int, int]
"""Width and height in pixels."""


class PictureSizeError(ValueError):
    """A picture whose size is needed and cannot be read."""


@dataclass(frozen=True)
class Target:
    """Where a phrase's thing is.

    Attributes:
        box: fractions of the image, x1, y1, x2, y2; empty where the picture that they depend on cannot be read.
        image_size: that the record gives, if the box depends on it.
        error: why there is no box.
    """

    box: list[float] = field(default_factory=list)
    image_size: Size | None = None
    error: str = ""


def score_rec(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Scores:
    """Accuracy at IoU 0.5, mean IoU, and the share of answers without a box, in percent.

    The reference is the box, x1, y1, x2, y2 as fractions of the image. Of several boxes in an answer the first counts.
    """
    return score_measures(examples, predictions, judge_box)


def judge_box(example: Example, prediction: Prediction) -> dict[str, float]:
    """What an answer's first box is worth."""
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
    """Phrases and boxes of a file in any of the forms that docs/evaluation.md shows.

    Args:
        data: the file.
        images: the folder of images; needed where the data do not give the images' sizes.
        box_format: "xyxy" or "xywh", where records do not say it in `box_format`; left out, xyxy.
        box_unit: "pixels", "fractions" or "thousandths", where records do not say it in `box_unit`; left out, pixels,
            and boxes that look like fractions are an error.

    Returns:
        An example for each phrase. Where the size of a picture is needed and cannot be read, `error` says why, and the
        example has no references.

    Raises:
        ValueError: if something is missing, no picture can be read, or a box does not fit its image or form.
    """
    for name, value, known in (("box_format", box_format, FORMATS), ("box_unit", box_unit, UNITS)):
        if value is not None and value not in known:
            raise ValueError(f"{name} is {value!r}, not one of {', '.join(known)}.")
    if data.suffix in (".p", ".pkl", ".pickle"):
        raise ValueError(f"{data}: pickled references may run code when they are read; save them as JSON.")
    find_size = partial(cache(measure_image), images)
    document = read_document(data)
    if isinstance(document, Row) and isinstance(document.find("annotations"), list):
        examples = list(read_coco(document, images, find_size))
    else:
        rows = list_rows(document, id_name="id")
        read = read_references if is_refer(rows[0]) else partial(read_records, form=BoxForm(box_format, box_unit))
        examples = list(read(rows, data, images, find_size))
    if not examples:
        raise ValueError(f"{data} has no phrases with a box.")
    require_unique([example.id for example in examples], str(data))
    examples = leave_out_training(examples)
    errors = [example.error for example in examples if example.error]
    if len(errors) == len(examples):
        raise ValueError(errors[0])
    if errors:
        logger.warning("%s: %d of %d phrases cannot be scored. %s", data, len(errors), len(examples), errors[0])
    return examples


def measure_image(images: Path | None, name: str) -> Size:
    """The size of an image as it is seen, from the header of its file.

    Raises:
        PictureSizeError: if there is no such picture in the folder.
        ValueError: if there is no folder.
    """
    if images is None and not is_in_parquet(name):
        raise ValueError("with the folder of images they are read from the pictures.")
    path = (images or Path()) / name
    try:
        with open_in_parquet(name) if is_in_parquet(name) else open_file(str(path)) as picture:
            return measure(picture)
    except Exception as error:  # decoders raise many kinds, such as that of a picture above Pillow's limit
        raise PictureSizeError(f"image {path} cannot be read: {error}") from error


FindSize = Callable[[str], Size]


def find_row_size(row: Row, image: str, find_size: FindSize) -> tuple[Size, bool]:
    """An image's size, and whether its record has it, rather than its picture.

    Raises:
        PictureSizeError: if it stands in neither.
    """
    is_given = row.find("width") is not None and row.find("height") is not None and not is_region(row)
    if is_given:
        size = row.whole("width"), row.whole("height")
    else:
        missing = "its width and height are the region's" if is_region(row) else "has no width and height"
        try:
            size = find_size(image)
        except PictureSizeError as error:
            raise PictureSizeError(f"{row.where}: {missing}, and {error}") from error
        except ValueError as error:
            raise row.error(f"{missing}; {error}") from error
    if min(size) <= 0:
        raise row.error(f"expected a width and a height above 0, not {size[0]} and {size[1]}.")
    return size, is_given


def is_region(row: Row) -> bool:
    """Whether a record's width and height are those of its box, as in Visual Genome, rather than the picture's."""
    if any(row.find(name) is None for name in REGION_NAMES):
        return False
    x, y, width, height = (row.find(name) for name in REGION_NAMES)
    return row.find(*BOX_NAMES) in (None, [x, y, width, height], [x, y, x + width, y + height])


def make_example(
    name: str, image: str, phrase: str, target: Target, group: str, tags: tuple[str, ...] | None
) -> Example:
    """A question for a phrase's box."""
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


def find_target(row: Row, image: str, find_size: FindSize, form: BoxForm) -> Target:
    """A record's box, or the reason why it is not known."""
    try:
        return read_box(row, image, find_size, form)
    except PictureSizeError as error:
        return Target(error=" ".join(str(error).split()))


def read_box(row: Row, image: str, find_size: FindSize, form: BoxForm) -> Target:
    """A record's box as fractions of its image.

    Raises:
        PictureSizeError: if the size of the picture is needed and cannot be read.
        ValueError: if the box is none, or may be in another form.
    """
    if row.find(*BOX_NAMES) is None and is_region(row):
        region = [row.find(name) for name in REGION_NAMES]
        row, form = Row({**row.fields, "bbox": region}, row.where), COCO_FORM
    numbers = row.numbers(*BOX_NAMES)
    if len(numbers) != 4:
        raise row.error(f"expected 4 numbers in bbox, found {len(numbers)}.")
    unit = read_word(row, "box_unit", UNITS) or form.unit
    if unit is None and max(numbers) <= 1:
        raise row.error(
            f"the box {describe(list(numbers))} may be fractions or pixels; say so in the record's box_unit "
            "or by the option box_unit."
        )
    (width, height), is_given = ((1, 1) if unit == "fractions" else (1000, 1000)), False
    if unit in (None, "pixels"):
        (width, height), is_given = find_row_size(row, image, find_size)
    x1, y1, x2, y2 = numbers
    if (read_word(row, "box_format", FORMATS) or form.format) == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    box = check_box(row, (x1 / width, y1 / height, x2 / width, y2 / height), numbers)
    return Target(list(box), (width, height) if is_given else None)


def read_word(row: Row, name: str, known: Sequence[str]) -> str | None:
    """A field that holds one of some words, or nothing."""
    value = row.find(name)
    if value is not None and value not in known:
        raise row.error(f"expected one of {', '.join(known)} in {name}, not {describe(value)}.")
    return value


def check_box(row: Row, box: Box, written: Sequence[float]) -> Box:
    """A box that has an area and lies on its image, cut off at its edges.

    Raises:
        ValueError: if it has none or reaches further out than `ROOM`, as boxes that are read in a wrong form do.
    """
    hint = "Is it in another form (box_format xyxy or xywh, box_unit pixels, fractions or thousandths)?"
    if box[0] >= box[2] or box[1] >= box[3]:
        raise row.error(f"the box {describe(list(written))} has no area. {hint}")
    if min(box) < -ROOM or max(box) > 1 + ROOM:
        edges = ", ".join(f"{value:.3f}" for value in box)
        raise row.error(f"the box {describe(list(written))} leaves its image, of which it covers {edges}. {hint}")
    x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in box)
    return x1, y1, x2, y2


def read_phrases(row: Row) -> list[str]:
    """The phrases of a record: a text, a list of them, or of objects in the way of REFER."""
    value = row.need(*PHRASE_NAMES)
    phrases = [find_sentence(entry) for entry in (value if isinstance(value, list) else [value])]
    if not phrases or not all(isinstance(phrase, str) and phrase.strip() for phrase in phrases):
        raise row.error(f"expected a text or texts in {' or '.join(PHRASE_NAMES)}, not {describe(value)}.")
    return [phrase for phrase in phrases if phrase is not None]


def find_sentence(entry: object) -> str | None:
    """A phrase that is a text or stands in an object."""
    if isinstance(entry, Mapping):
        entry = next((entry[name] for name in SENTENCE_NAMES if entry.get(name)), None)
    return entry if isinstance(entry, str) else None


def read_records(
    rows: Sequence[Row], data: Path, images: Path | None, find_size: FindSize, form: BoxForm
) -> Iterator[Example]:
    """Records of an image, a phrase or several, and a box. Ids are theirs, or else their place in the file."""
    for place, row in enumerate(rows, 1):
        image, phrases = read_image(row, images), read_phrases(row)
        target = find_target(row, image, find_size, form)
        name = row.name(*ID_NAMES) if row.find(*ID_NAMES) is not None else str(place)
        for number, phrase in enumerate(phrases, 1):
            full = name if len(phrases) == 1 else f"{name}-{number}"
            yield make_example(full, image, phrase, target, row.find("split") or "", row.tags)


def is_refer(row: Row) -> bool:
    """Whether a record is a reference of REFER, whose box stands among COCO's instances."""
    return row.find("ann_id") is not None and row.find("sentences") is not None and row.find(*BOX_NAMES) is None


def read_references(rows: Sequence[Row], data: Path, images: Path | None, find_size: FindSize) -> Iterator[Example]:
    """REFER's references with the boxes of instances.json beside them. Ids are those of the sentences."""
    instances = read_document(data.with_name("instances.json"))
    if isinstance(instances, list):
        raise instances[0].error("expected an object with images and annotations, not a list.")
    pictures = index_rows(instances, "images")
    annotations = index_rows(instances, "annotations")
    for row in rows:
        annotation = pick(annotations, row, "ann_id")
        picture = pick(pictures, annotation, "image_id")
        image = read_image(picture, images)
        target = find_target(with_size(annotation, picture), image, find_size, COCO_FORM)
        for sentence, phrase in zip(row.list("sentences"), read_phrases(row), strict=True):
            name = Row(sentence, row.where).name("sent_id") if isinstance(sentence, dict) else row.name("ref_id")
            yield make_example(name, image, phrase, target, row.find("split") or "", row.tags)


def index_rows(document: Row, name: str) -> dict[str, Row]:
    """The rows of a list by their ids."""
    return {row.name("id"): row for row in document.rows(name)}


def pick(rows: Mapping[str, Row], row: Row, name: str) -> Row:
    """The row whose id another names."""
    key = row.name(name)
    if key not in rows:
        raise row.error(f"expected in {name} one of {len(rows)} ids, not {key}.")
    return rows[key]


def with_size(annotation: Row, picture: Row) -> Row:
    """An annotation with the size of its picture."""
    size = {name: picture.find(name) for name in ("width", "height")}
    return Row({**annotation.fields, **size}, annotation.where)


def read_coco(document: Row, images: Path | None, find_size: FindSize) -> Iterator[Example]:
    """COCO's annotations: an example for each, with the phrase it has, or its image (MDETR), or its category.

    An image's phrase counts only where the image has one annotation, since it is not known which of several it means.
    Where the phrase is the category, only those are taken that are alone of their kind in their image. Ids are those
    of the annotations.
    """
    pictures = index_rows(document, "images")
    categories = index_rows(document, "categories") if document.find("categories") else {}
    annotations = list(document.rows("annotations"))
    counts = Counter((row.name("image_id"), str(row.find("category_id"))) for row in annotations)
    totals = Counter(row.name("image_id") for row in annotations)
    left_out = 0
    for row in annotations:
        picture = pick(pictures, row, "image_id")
        phrase = row.find(*PHRASE_NAMES) or None
        if phrase is None and totals[row.name("image_id")] == 1:
            phrase = picture.find(*PHRASE_NAMES) or None
        if phrase is None:
            is_alone = counts[row.name("image_id"), str(row.find("category_id"))] == 1 and not row.find("iscrowd")
            if not is_alone or (not categories and picture.find(*PHRASE_NAMES)):
                left_out += 1
                continue
            phrase = pick(categories, row, "category_id").text("name")
        image = read_image(picture, images)
        target = find_target(with_size(row, picture), image, find_size, COCO_FORM)
        phrases = read_phrases(Row({"phrase": phrase}, row.where))
        for number, text in enumerate(phrases, 1):
            name = row.name("id") if len(phrases) == 1 else f"{row.name('id')}-{number}"
            yield make_example(name, image, text, target, picture.find("split") or "", picture.tags)
    if left_out:
        logger.warning(
            "%s: %d of %d annotations are not the only ones of their category in their image and have no phrase of "
            "their own. They are left out.",
            document.where, left_out, len(annotations),
        )  # fmt: skip


__all__ = ["BoxForm", "load_rec", "score_rec"]
