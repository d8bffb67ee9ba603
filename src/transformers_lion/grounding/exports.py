"""Boxes for other libraries: `supervision.Detections`, and the result files of COCO's evaluation.

Sources: the constructor of supervision's `Detections`, and COCO's format of detection results (cocodataset.org,
"Results Format").
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any
from zlib import crc32

import numpy as np

from .boxes import Box, Entity, box_to_xywh, check_pixels, order_box

logger = logging.getLogger(__name__)

Found = Sequence[Entity] | Mapping[str, Any]
"""Boxes in pixels: entities, or one result of `LionProcessor.post_process_grounded_object_detection`."""

LEADING = re.compile(r"[\s,;]*(?:(?:and|or)(?=[\s,])[\s,;]*)*", re.IGNORECASE)
"""What a phrase may begin with because it is not the first of its sentence: "and a dog"."""

ID_BITS = 0x7FFFFFFF
"""Class numbers made from names stay below 2**31, so that they are whole numbers everywhere."""


@dataclass(frozen=True)
class _ExportedBox:
    """A box that is ready for other libraries.

    Attributes:
        phrase: empty where the text has none.
        box: pixels, with an area, from the upper left to the lower right corner.
        score: a finite number.
    """

    phrase: str
    box: Box
    score: float


def to_supervision(
    found: Found,
    scores: Sequence[float] | None = None,
    class_names: Sequence[str] | Mapping[str, int] | Callable[[str], str] | None = None,
) -> Any:
    """Boxes as `supervision.Detections`, for its annotators, trackers and filters.

    Boxes without an area are left out with a warning.

    Args:
        found: boxes in pixels, with their phrases.
        scores: of each box, where `found` are entities; all one if they are left out.
        class_names: the classes, whose order gives `class_id`; their ids by name; or a function from a phrase to the
            name of its class. By default the class of a phrase is the phrase without a leading "and" or comma.

    Returns:
        `Detections` with `xyxy`, `confidence`, `class_id` and, in `data`, `class_name`. Without a list or ids, a
        `class_id` is computed from the name, so that a name has the same id in all answers.

    Raises:
        ImportError: if supervision is not installed.
        ValueError: if there are not as many scores as boxes, a box is no pixels or no numbers, a score is no number, or
            a phrase is none of `class_names`.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError('This needs supervision: pip install "transformers-lion[supervision]".') from error
    rows = _collect_boxes(found, scores)
    names = [_find_class_name(row.phrase, class_names) for row in rows]
    ids = _list_ids(class_names)
    return supervision.Detections(
        xyxy=np.array([row.box for row in rows], dtype=np.float32).reshape(-1, 4),
        confidence=np.array([row.score for row in rows], dtype=np.float32),
        class_id=np.array([_stable_id(name) if ids is None else ids[name] for name in names], dtype=int),
        data={"class_name": np.array(names, dtype=str)},
    )


def to_coco_results(
    found: Found,
    image_id: int | str,
    categories: int | Mapping[str, int] | Callable[[str], int] = 1,
    scores: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """Boxes as COCO's detection results; the lists of all images, one after the other, are a result file.

    Boxes without an area are left out with a warning, since COCO's evaluation matches none of them.

    Args:
        found: boxes in pixels, with their phrases.
        image_id: as in the annotations.
        categories: the id of each phrase, with or without a leading "and" or comma; a function from a phrase to its
            id; or one id for all.
        scores: of each box, where `found` are entities; all one if they are left out.

    Returns:
        For each box `image_id`, `category_id`, `bbox` (x, y, width, height) and `score`, ready for `json.dump`.

    Raises:
        ValueError: if there are not as many scores as boxes, a box is no pixels or no numbers, a score is no number, an
            id is no whole number, or a phrase has no category.
    """
    image = str(image_id) if isinstance(image_id, str) else _check_id("image_id", image_id, "a whole number or a text")
    return [
        {
            "image_id": image,
            "category_id": _find_category(row.phrase, categories),
            "bbox": list(box_to_xywh(row.box)),
            "score": row.score,
        }
        for row in _collect_boxes(found, scores)
    ]


def _collect_boxes(found: Found, scores: Sequence[float] | None) -> list[_ExportedBox]:
    """All boxes that have an area, with their phrases and scores.

    Raises:
        ValueError: if there are not as many scores as boxes, there are two kinds of scores, or a box or score cannot be
            exported.
    """
    if isinstance(found, Mapping):
        if scores is not None:
            raise ValueError("A result has its own scores: give scores only with entities.")
        phrases, boxes, scores = list(found["text_labels"]), plain(found["boxes"]), found["scores"]
    else:
        phrases = [phrase for phrase, _, boxes in found for _ in boxes]
        boxes = [box for _, _, boxes in found for box in boxes]
    values = [1.0] * len(boxes) if scores is None else plain(scores)
    if len(values) != len(boxes):
        raise ValueError(f"{len(values)} scores for {len(boxes)} boxes.")
    rows = [
        _ExportedBox(phrase, read_box(box, f"Box {number} ({phrase!r})"), _read_score(score, number, phrase))
        for number, (phrase, box, score) in enumerate(zip(phrases, boxes, values, strict=True), 1)
    ]
    kept = [row for row in rows if row.box[0] < row.box[2] and row.box[1] < row.box[3]]
    if len(kept) < len(rows):
        empty = next(row for row in rows if row not in kept)
        count = len(rows) - len(kept)
        kind = "box has no area and is" if count == 1 else "boxes have no area and are"
        logger.warning("%d of %d %s left out: %s of %r.", count, len(rows), kind, list(empty.box), empty.phrase)
    for row in kept:
        check_pixels(row.box, repr(row.phrase))
    return kept


def plain(values: Any) -> list[Any]:
    """A list of a list, an array or a tensor."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def read_box(box: Sequence[float], name: str) -> Box:
    """Four finite numbers of any type as a box with its corners in order."""
    numbers = [_to_float(value) for value in box]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be four finite numbers, but is {list(box)}.")
    return order_box((numbers[0], numbers[1], numbers[2], numbers[3]))


def _read_score(score: Any, number: int, phrase: str) -> float:
    """A score of any type of number."""
    value = _to_float(score)
    if not math.isfinite(value):
        raise ValueError(
            f"The score of box {number} ({phrase!r}) is {score}, which result files cannot hold. Give a finite number, "
            "or leave the box out."
        )
    return value


def _to_float(value: Any) -> float:
    """A number, or `nan` for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _check_id(name: str, value: Any, wanted: str = "a whole number") -> int:
    """A whole number of any type, numpy's and torch's included, as Python's own.

    Raises:
        ValueError: if it is none; the message names what is wanted.
    """
    is_truth = isinstance(value, bool | np.bool_) or str(getattr(value, "dtype", "")).endswith("bool")
    try:
        if not is_truth:
            return index(value)
    except TypeError:
        pass
    raise ValueError(f"{name} must be {wanted}, but is {value!r}.")


def _find_category(phrase: str, categories: int | Mapping[str, int] | Callable[[str], int]) -> int:
    """The category's id of a phrase."""
    if isinstance(categories, Mapping):
        return _check_id(f"The category of {phrase!r}", categories[_find_name(phrase, categories)])
    if callable(categories):
        return _check_id(f"The category of {phrase!r}", categories(phrase))
    return _check_id("categories", categories)


def _find_class_name(phrase: str, class_names: Sequence[str] | Mapping[str, int] | Callable[[str], str] | None) -> str:
    """The name of a phrase's class."""
    if class_names is None:
        return _trim_phrase(phrase)
    return class_names(phrase) if callable(class_names) else _find_name(phrase, class_names)


def _list_ids(class_names: Sequence[str] | Mapping[str, int] | Callable[[str], str] | None) -> dict[str, int] | None:
    """The ids of classes by name, or `None` where they are not given."""
    if isinstance(class_names, Mapping):
        return {name: _check_id(f"The class of {name!r}", value) for name, value in class_names.items()}
    if class_names is None or callable(class_names):
        return None
    return {name: number for number, name in enumerate(class_names)}


def _stable_id(name: str) -> int:
    """A number that follows from a name alone."""
    return crc32(name.encode()) & ID_BITS


def _trim_phrase(phrase: str) -> str:
    """A phrase without the commas and conjunctions before it."""
    return LEADING.sub("", phrase, count=1).strip() or phrase


def _find_name(phrase: str, names: Sequence[str] | Mapping[str, int]) -> str:
    """That of some names which a phrase is, as it stands or without a leading "and" or comma.

    Raises:
        ValueError: if it is none of them.
    """
    for name in (phrase, _trim_phrase(phrase)):
        if name in names:
            return name
    raise ValueError(f"{phrase!r} is none of {', '.join(map(repr, names))}.")


__all__ = ["to_coco_results", "to_supervision"]
