"""Export boxes to other libraries: `supervision.Detections` and COCO result files.

Sources: The constructor of supervision's `Detections`, and COCO's results format (cocodataset.org, "Results Format").
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
"""Words and punctuation to drop from the start of a phrase, as in "and a dog"."""

ID_BITS = 0x7FFFFFFF
"""Mask that keeps class ids derived from names below 2**31, so that they fit into any integer type."""


@dataclass(frozen=True)
class _ExportedBox:
    """A validated box, ready for export.

    Attributes:
        phrase: Empty if the text has none.
        box: Box in pixels with a positive area, upper-left corner first.
        score: A finite number.
    """

    phrase: str
    box: Box
    score: float


def to_supervision(
    found: Found,
    scores: Sequence[float] | None = None,
    class_names: Sequence[str] | Mapping[str, int] | Callable[[str], str] | None = None,
) -> Any:
    """Convert boxes to `supervision.Detections`, for its annotators, trackers and filters.

    Boxes without an area are dropped with a warning.

    Args:
        found: Boxes in pixels with their phrases.
        scores: Score of each box if `found` is a sequence of entities. Defaults to 1 for all.
        class_names: Class names, whose order defines `class_id`; a mapping from class names to ids; or a function that
            maps a phrase to its class name. By default, the class of a phrase is the phrase without a leading "and" or
            comma.

    Returns:
        `Detections` with `xyxy`, `confidence`, `class_id` and, in `data`, `class_name`. Without a list or mapping,
        `class_id` is computed from the name, so a name has the same id in all answers.

    Raises:
        ImportError: If supervision is not installed.
        ValueError: If the number of scores differs from the number of boxes, a box is not four numbers in pixels, a
            score is not a finite number, or a phrase is not in `class_names`.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError(
            'to_supervision requires supervision: pip install "transformers-lion[supervision]".'
        ) from error
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
    """Convert boxes to COCO detection results. Concatenate the lists of all images to get a result file.

    Boxes without an area are dropped with a warning, because COCO's evaluation never matches them.

    Args:
        found: Boxes in pixels with their phrases.
        image_id: Id of the image in the annotations.
        categories: Category ids by phrase, with or without a leading "and" or comma; a function that maps a phrase to
            its id; or one id for all boxes.
        scores: Score of each box if `found` is a sequence of entities. Defaults to 1 for all.

    Returns:
        A dict for each box with `image_id`, `category_id`, `bbox` (x, y, width, height) and `score`, ready for
        `json.dump`.

    Raises:
        ValueError: If the number of scores differs from the number of boxes, a box is not four numbers in pixels, a
            score is not a finite number, an id is not an integer, or a phrase has no category.
    """
    image = str(image_id) if isinstance(image_id, str) else _check_id("image_id", image_id, "an integer or a string")
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
    """Collect all boxes that have an area, with their phrases and scores.

    Raises:
        ValueError: If the number of scores differs from the number of boxes, scores are passed twice, or a box or score
            cannot be exported.
    """
    if isinstance(found, Mapping):
        if scores is not None:
            raise ValueError("A result has its own scores: pass scores only with entities.")
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
        kind = "box has no area and was" if count == 1 else "boxes have no area and were"
        logger.warning("%d of %d %s dropped: %s of %r.", count, len(rows), kind, list(empty.box), empty.phrase)
    for row in kept:
        check_pixels(row.box, repr(row.phrase))
    return kept


def plain(values: Any) -> list[Any]:
    """Convert a list, an array or a tensor to a list."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def read_box(box: Sequence[float], name: str) -> Box:
    """Convert four finite numbers of any type to a box with ordered corners."""
    numbers = [_to_float(value) for value in box]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be four finite numbers, but is {list(box)}.")
    return order_box((numbers[0], numbers[1], numbers[2], numbers[3]))


def _read_score(score: Any, number: int, phrase: str) -> float:
    value = _to_float(score)
    if not math.isfinite(value):
        raise ValueError(
            f"The score of box {number} ({phrase!r}) is {score}, which is not a finite number. Pass a finite score "
            "or remove the box."
        )
    return value


def _to_float(value: Any) -> float:
    """Convert to `float`, with `nan` for anything that is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _check_id(name: str, value: Any, wanted: str = "an integer") -> int:
    """Convert an integer of any type, including those of NumPy and PyTorch, to `int`.

    Raises:
        ValueError: If the value is not an integer. The message names what is expected.
    """
    is_truth = isinstance(value, bool | np.bool_) or str(getattr(value, "dtype", "")).endswith("bool")
    try:
        if not is_truth:
            return index(value)
    except TypeError:
        pass
    raise ValueError(f"{name} must be {wanted}, but is {value!r}.")


def _find_category(phrase: str, categories: int | Mapping[str, int] | Callable[[str], int]) -> int:
    if isinstance(categories, Mapping):
        return _check_id(f"The category of {phrase!r}", categories[_find_name(phrase, categories)])
    if callable(categories):
        return _check_id(f"The category of {phrase!r}", categories(phrase))
    return _check_id("categories", categories)


def _find_class_name(phrase: str, class_names: Sequence[str] | Mapping[str, int] | Callable[[str], str] | None) -> str:
    if class_names is None:
        return _trim_phrase(phrase)
    return class_names(phrase) if callable(class_names) else _find_name(phrase, class_names)


def _list_ids(class_names: Sequence[str] | Mapping[str, int] | Callable[[str], str] | None) -> dict[str, int] | None:
    """Map class names to ids. Return `None` if `class_names` does not define ids."""
    if isinstance(class_names, Mapping):
        return {name: _check_id(f"The class of {name!r}", value) for name, value in class_names.items()}
    if class_names is None or callable(class_names):
        return None
    return {name: number for number, name in enumerate(class_names)}


def _stable_id(name: str) -> int:
    """Derive an id from a name alone."""
    return crc32(name.encode()) & ID_BITS


def _trim_phrase(phrase: str) -> str:
    """Remove leading commas and conjunctions from a phrase."""
    return LEADING.sub("", phrase, count=1).strip() or phrase


def _find_name(phrase: str, names: Sequence[str] | Mapping[str, int]) -> str:
    """Find a phrase in a collection of names, verbatim or without a leading "and" or comma.

    Raises:
        ValueError: If the phrase is not found.
    """
    for name in (phrase, _trim_phrase(phrase)):
        if name in names:
            return name
    raise ValueError(f"{phrase!r} is not one of {', '.join(map(repr, names))}.")


__all__ = ["to_coco_results", "to_supervision"]
