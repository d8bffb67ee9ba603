"""Draw on the image of the page: the boxes of an answer, and the region that a user selects."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..grounding import Box, Entity
from ..grounding.drawing import draw_entities
from ..inference import Answer
from .answering import Question, Seen

Point = tuple[int, int]

REGION_LABEL = "your region"


def draw_answer(seen: Seen, question: Question, answer: Answer) -> Image.Image:
    """Draw the boxes of an answer on the image. Boxes of the task "locate" are labeled with the phrase to locate."""
    entities = [
        (question.about if question.task == "locate" else phrase, span, boxes)
        for phrase, span, boxes in answer.entities
    ]
    if question.box is not None:
        entities = [(REGION_LABEL, (0, 0), [question.box]), *entities]
    return draw_entities(seen.shown, [scale(entity, seen) for entity in entities])


def scale(entity: Entity, seen: Seen) -> Entity:
    """Convert an entity from pixels of the uploaded image to pixels of the displayed image."""
    x, y = seen.shown.width / seen.size[0], seen.shown.height / seen.size[1]
    phrase, span, boxes = entity
    return phrase, span, [(box[0] * x, box[1] * y, box[2] * x, box[3] * y) for box in boxes]


def draw_corners(seen: Seen, corners: Sequence[Point]) -> Image.Image:
    """Draw one corner of a region, or the region between two corners, in pixels of the displayed image."""
    if len(corners) == 2:
        (x1, y1), (x2, y2) = corners
        return draw_entities(seen.shown, [(REGION_LABEL, (0, 0), [(x1, y1, x2, y2)])])
    drawn = seen.shown.copy()
    reach, width = max(6, min(drawn.size) // 30), max(1, min(drawn.size) // 200)
    for x, y in corners:
        for color, line in (("white", 3 * width), ("#e6194b", width)):
            ImageDraw.Draw(drawn).line((x - reach, y, x + reach, y), fill=color, width=line)
            ImageDraw.Draw(drawn).line((x, y - reach, x, y + reach), fill=color, width=line)
    return drawn


def to_box(corners: Sequence[Point], seen: Seen) -> Box:
    """Convert two corners on the displayed image to a box in pixels of the uploaded image."""
    x, y = seen.size[0] / seen.shown.width, seen.size[1] / seen.shown.height
    (x1, y1), (x2, y2) = corners
    return min(x1, x2) * x, min(y1, y2) * y, max(x1, x2) * x, max(y1, y2) * y


def box_as_text(box: Box) -> str:
    """Format a box in whole pixels."""
    return ", ".join(f"{value:.0f}" for value in box)
