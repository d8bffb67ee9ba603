"""Boxes as text and as pictures: read, written, scaled and drawn. No model is in it."""

from .boxes import Box, Entity, box_iou, extract_boxes, extract_entities, format_boxes, parse_boxes, scale_box
from .drawing import draw_boxes

__all__ = [
    "Box",
    "Entity",
    "box_iou",
    "draw_boxes",
    "extract_boxes",
    "extract_entities",
    "format_boxes",
    "parse_boxes",
    "scale_box",
]
