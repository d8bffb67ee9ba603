"""Boxes for other libraries: `supervision.Detections`, and the result files of COCO's evaluation.

Sources: the constructor of supervision's `Detections`, and COCO's format of detection results (cocodataset.org,
"Results Format").
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .boxes import Box, Entity, box_to_xywh

Found = Sequence[Entity] | Mapping[str, Any]
"""Boxes in pixels: entities, or one result of `LionProcessor.post_process_grounded_object_detection`."""


def to_supervision(
    found: Found, scores: Sequence[float] | None = None, class_names: Sequence[str] | None = None
) -> Any:
    """Boxes as `supervision.Detections`, for its annotators, trackers and filters.

    Args:
        found: boxes in pixels, with their phrases.
        scores: of each box, where `found` are entities; all one if they are left out.
        class_names: whose order gives `class_id`; by default each phrase, in the order of the first boxes.

    Returns:
        `Detections` with `xyxy`, `confidence`, `class_id` and, in `data`, `class_name`.

    Raises:
        ImportError: if supervision is not installed.
        ValueError: if there are not as many scores as boxes, or a phrase is none of `class_names`.
    """
    try:
        import supervision
    except ImportError as error:
        raise ImportError('This needs supervision: pip install "transformers-lion[supervision]".') from error
    rows = list(each_box(found, scores))
    names = list(dict.fromkeys(phrase for phrase, _, _ in rows)) if class_names is None else list(class_names)
    ids = {name: index for index, name in enumerate(names)}
    return supervision.Detections(
        xyxy=np.array([box for _, box, _ in rows], dtype=np.float32).reshape(-1, 4),
        confidence=np.array([score for _, _, score in rows], dtype=np.float32),
        class_id=np.array([id_of(phrase, ids) for phrase, _, _ in rows], dtype=int),
        data={"class_name": np.array([phrase for phrase, _, _ in rows], dtype=str)},
    )


def to_coco_results(
    found: Found, image_id: int, categories: int | Mapping[str, int] = 1, scores: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """Boxes as COCO's detection results; the lists of all images, one after the other, are a result file.

    Args:
        found: boxes in pixels, with their phrases.
        image_id: as in the annotations.
        categories: id of each phrase, or one for all.
        scores: of each box, where `found` are entities; all one if they are left out.

    Returns:
        For each box `image_id`, `category_id`, `bbox` (x, y, width, height) and `score`, ready for `json.dump`.

    Raises:
        ValueError: if there are not as many scores as boxes, or a phrase has no category.
    """
    return [
        {
            "image_id": image_id,
            "category_id": categories if isinstance(categories, int) else id_of(phrase, categories),
            "bbox": list(box_to_xywh(box)),
            "score": score,
        }
        for phrase, box, score in each_box(found, scores)
    ]


def each_box(found: Found, scores: Sequence[float] | None) -> Iterator[tuple[str, Box, float]]:
    """The phrase, the box and the score of each box.

    Raises:
        ValueError: if there are not as many scores as boxes, or there are two kinds of scores.
    """
    if isinstance(found, Mapping):
        if scores is not None:
            raise ValueError("A result has its own scores: give scores only with entities.")
        phrases, boxes, scores = found["text_labels"], found["boxes"].tolist(), found["scores"].tolist()
    else:
        phrases = [phrase for phrase, _, boxes in found for _ in boxes]
        boxes = [box for _, _, boxes in found for box in boxes]
    values = [1.0] * len(boxes) if scores is None else [float(score) for score in scores]
    if len(values) != len(boxes):
        raise ValueError(f"{len(values)} scores for {len(boxes)} boxes.")
    return zip(phrases, map(tuple, boxes), values, strict=True)


def id_of(phrase: str, ids: Mapping[str, int]) -> int:
    """The id of a phrase.

    Raises:
        ValueError: if it has none.
    """
    if phrase not in ids:
        raise ValueError(f"{phrase!r} is none of {', '.join(map(repr, ids))}.")
    return ids[phrase]


__all__ = ["to_coco_results", "to_supervision"]
