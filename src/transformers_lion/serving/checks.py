"""Turns the parameters of requests into questions to the model, within the limits of the service."""

import math
from collections.abc import Sequence

from PIL import Image

from ..grounding import format_boxes
from ..inference import LOCATE_QUESTION, REGION_QUESTION, Request, to_fractions
from ..tag_source import Tags, TagSource, check_tags, resolve_tag_source
from .errors import encodable, invalid
from .model import Generation
from .schemas import PromptBody
from .service import Service

MAX_BEAMS = 16


def check_texts(service: Service, texts: Sequence[str], param: str) -> None:
    """Raise `ServiceError` if there are too many texts, or one is blank or too long."""
    check_count(service, len(texts), param)
    for position, text in enumerate(texts):
        check_text(service, text, f"{param}[{position}]")


def check_text(service: Service, text: str, param: str) -> None:
    """Raise `ServiceError` if a text is blank, too long, or not valid Unicode."""
    if not text.strip():
        raise invalid(f"{param} is blank.", param)
    if text != encodable(text):
        raise invalid(f"{param} contains a lone surrogate, which is not valid Unicode.", param)
    if len(text) > service.limits.max_characters:
        raise invalid(
            f"{param} has {len(text):,} characters, but the limit is {service.limits.max_characters:,}.", param
        )


def check_count(service: Service, count: int, param: str) -> None:
    """Raise `ServiceError` if there are too many questions, phrases or boxes."""
    if count > service.limits.max_questions:
        raise invalid(f"{param} has {count} entries, but the limit is {service.limits.max_questions}.", param)


def check_tag_arguments(service: Service, tags: Tags, tag_source: TagSource | None, prefix: str = "") -> None:
    """Raise `ServiceError` if tags and their source do not fit together, or the tags are too long."""
    try:
        check_tags(tags, tag_source)
        resolve_tag_source(tags, tag_source, service.lion.tagger is not None)
    except ValueError as error:
        raise invalid(str(error), f"{prefix}tag_source") from error
    length = len(tags) if isinstance(tags, str) else sum(map(len, tags or ()))
    if length > service.limits.max_characters:
        raise invalid(
            f"{prefix}tags has {length:,} characters, but the limit is {service.limits.max_characters:,}.",
            f"{prefix}tags",
        )


def make_generation(
    service: Service,
    num_beams: int | None,
    max_tokens: int | None,
    max_tokens_param: str = "max_tokens",
    temperature: float | None = None,
    top_p: float | None = None,
) -> Generation:
    """Return how answers are generated.

    Raises:
        ServiceError: If a number is above the limit, or sampling and beams are combined.
    """
    if num_beams is not None and num_beams > MAX_BEAMS:
        raise invalid(f"num_beams is {num_beams}, but the limit is {MAX_BEAMS}.", "num_beams")
    limit = service.limits.max_new_tokens
    if max_tokens is not None and max_tokens > limit:
        raise invalid(f"{max_tokens_param} is {max_tokens}, but the limit is {limit}.", max_tokens_param)
    generation = Generation(num_beams, max_tokens, temperature, top_p)
    if generation.is_sampled and num_beams not in (None, 1):
        raise invalid(f"num_beams is {num_beams}, but must be 1 with a temperature above 0 or a top_p.", "num_beams")
    return generation


def generation_of(service: Service, body: PromptBody) -> Generation:
    """Check the tags of a request, and return how its answers are generated."""
    check_tag_arguments(service, body.tags, body.tag_source)
    return make_generation(service, body.num_beams, body.max_tokens)


def write_boxes(boxes: Sequence[Sequence[float]], image: Image.Image, param: str) -> list[str]:
    """Write boxes in pixels as LION reads them.

    Raises:
        ServiceError: If a box is outside the image, or seems to use fractions.
    """
    texts = []
    for position, box in enumerate(boxes):
        try:
            if not all(map(math.isfinite, box)):
                raise ValueError(f"Box {box} contains a number that is not finite.")
            x1, y1, x2, y2 = box
            texts.append(format_boxes([to_fractions((x1, y1, x2, y2), image.size)]))
        except ValueError as error:
            raise invalid(f"{param}[{position}]: {error}", f"{param}[{position}]") from error
    return texts


def ask_all(image: Image.Image, questions: Sequence[str], body: PromptBody) -> list[Request]:
    """Return requests for questions."""
    return [Request(image, text, "image_level", body.tags, body.tag_source) for text in questions]


def locate_all(image: Image.Image, phrases: Sequence[str], body: PromptBody) -> list[Request]:
    """Return requests for phrases."""
    questions = [LOCATE_QUESTION.format(phrase=phrase.strip()) for phrase in phrases]
    return [Request(image, text, "region_level", body.tags, body.tag_source) for text in questions]


def describe_all(image: Image.Image, boxes: Sequence[Sequence[float]], body: PromptBody) -> list[Request]:
    """Return requests for boxes."""
    questions = [REGION_QUESTION.format(box=box) for box in write_boxes(boxes, image, "boxes")]
    return [Request(image, text, "region_level", body.tags, body.tag_source) for text in questions]
