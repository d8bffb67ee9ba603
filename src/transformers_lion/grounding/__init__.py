"""Read, write, convert, score, export and draw boxes that are written as text. Nothing here needs a model."""

from .boxes import (
    Box,
    Entity,
    box_from_xywh,
    box_iou,
    box_to_xywh,
    clip_box,
    format_boxes,
    normalize_box,
    order_box,
    round_box,
    scale_box,
)
from .confidence import score_boxes, token_log_probs, token_spans
from .drawing import draw_boxes
from .exports import to_coco_results, to_supervision
from .formats import BOX_FORMATS, convert_grounded_text, read_grounded_text, write_grounded_text
from .reading import FoundBox, GroundedText, Region, extract_boxes, extract_entities, parse_boxes

__all__ = [
    "BOX_FORMATS",
    "Box",
    "Entity",
    "FoundBox",
    "GroundedText",
    "Region",
    "box_from_xywh",
    "box_iou",
    "box_to_xywh",
    "clip_box",
    "convert_grounded_text",
    "draw_boxes",
    "extract_boxes",
    "extract_entities",
    "format_boxes",
    "normalize_box",
    "order_box",
    "parse_boxes",
    "read_grounded_text",
    "round_box",
    "scale_box",
    "score_boxes",
    "to_coco_results",
    "to_supervision",
    "token_log_probs",
    "token_spans",
    "write_grounded_text",
]
