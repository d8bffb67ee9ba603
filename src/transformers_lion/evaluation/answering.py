"""Answers batches of examples with a model.

If an image cannot be read, only the examples about this image have no answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import set_seed

from ..images import is_url, to_rgb
from ..inference import Lion, Request
from ..tag_source import TagSource, resolve_tag_source
from .batches import Batch
from .parquet_files import is_in_parquet, open_in_parquet
from .predictions import format_prediction
from .settings import EvaluationSettings
from .task import Example, Prediction

Fields = dict[str, Any]
"""A prediction with its prompt and tags, or the reason why there is none."""


def answer_batch(lion: Lion, batch: Batch, settings: EvaluationSettings, **generation: Any) -> dict[str, Fields]:
    """Answer a batch's questions, or rank their candidates.

    Args:
        lion: the model.
        batch: a batch from `plan_batches`.
        settings: settings of the evaluation.
        **generation: options of `generate` that override those of the settings.

    Returns:
        By example id: `answer`, `prompt`, `tags` and, if candidates were ranked, `scores`; or `error`.
    """
    set_seed(settings.seed)
    images, reasons = open_images([example.image for example in batch], settings.image_folder)
    errors = {x.id: x.error or reasons.get(x.image) or compare_sizes(x, images[x.image]) for x in batch}
    found: dict[str, Fields] = {name: {"answer": "", "error": error} for name, error in errors.items() if error}
    readable = [example for example in batch if example.id not in found]
    asked = [example for example in readable if not example.candidates]
    if asked:
        requests = [make_request(example, images, settings.tag_source) for example in asked]
        options = {**settings.generate_options, **generation}
        answers = lion.answer(requests, batch_size=settings.batch_size, **options)
        for example, answer in zip(asked, answers, strict=True):
            found[example.id] = {"answer": answer.text, "prompt": answer.prompt, "tags": answer.tags}
    found.update(rank_candidates(lion, [x for x in readable if x.candidates], images, settings))
    return found


def rank_candidates(
    lion: Lion, examples: Sequence[Example], images: Mapping[str, Image.Image], settings: EvaluationSettings
) -> dict[str, Fields]:
    """Return the most likely candidate of each example (the first if tied), with the scores of all candidates."""
    if not examples:
        return {}
    requests = tag_requests(lion, [make_request(example, images, settings.tag_source) for example in examples])
    candidates = [example.candidates for example in examples]
    rows = lion.rank(requests, candidates, batch_size=settings.batch_size)
    found: dict[str, Fields] = {}
    for example, request, scores in zip(examples, requests, rows, strict=True):
        found[example.id] = {
            "answer": example.candidates[scores.index(max(scores))],
            "scores": scores,
            "prompt": read_prompt(lion, request),
            "tags": request.tags,
        }
    return found


def open_images(names: Sequence[str], folder: Path) -> tuple[dict[str, Image.Image], dict[str, str]]:
    """Open images, and return images and the reasons for failures by name."""
    images: dict[str, Image.Image] = {}
    reasons: dict[str, str] = {}
    for name in dict.fromkeys(names):
        try:
            images[name] = open_image(name, folder)
        except ValueError as error:
            reasons[name] = " ".join(str(error).split())
    return images, reasons


def open_image(name: str, folder: Path) -> Image.Image:
    """Open an image in a folder, at a URL, or in a Parquet file.

    Raises:
        ValueError: if it cannot be read; the message names it.
    """
    if is_in_parquet(name):
        try:
            return to_rgb(open_in_parquet(name))
        except (ValueError, OSError) as error:
            raise ValueError(f"Image {name} cannot be read: {error}") from error
    return to_rgb(name if is_url(name) else folder / name)


def compare_sizes(example: Example, image: Image.Image) -> str:
    """Return an error message if an image's aspect ratio differs from that of the size in the data, otherwise "".

    Args:
        example: the example with its image size.
        image: the image, upright as the model sees it.
    """
    if example.image_size is None:
        return ""
    (width, height), (own_width, own_height) = example.image_size, image.size
    if abs(width * own_height - height * own_width) <= max(width, height, own_width, own_height):  # rounded to pixels
        return ""
    rotated = example.image_size == image.size[::-1]
    reason = "its EXIF orientation rotates it, and boxes must refer to the upright image" if rotated else (
        "boxes in pixels must refer to this image, or to a resized copy"
    )  # fmt: skip
    return (
        f"Image {example.image} is {own_width} x {own_height} pixels upright, but the data say {width} x {height}: "
        f"{reason}."
    )


def make_request(example: Example, images: Mapping[str, Image.Image], tag_source: TagSource | None) -> Request:
    """Build the request for an example."""
    tags = None if tag_source == "tagger" or example.tags is None else list(example.tags)
    return Request(images[example.image], example.question, example.task_type, tags, tag_source)


def tag_requests(lion: Lion, requests: Sequence[Request]) -> list[Request]:
    """Resolve the tags of requests, running the tagger if needed, so that they can be reported."""
    has_tagger = lion.tagger is not None
    sources = [resolve_tag_source(request.tags, request.tag_source, has_tagger) for request in requests]
    untagged = {id(x.image): x.image for x, source in zip(requests, sources, strict=True) if source == "tagger"}
    names = dict(zip(untagged, lion.tag(list(untagged.values())) if untagged else [], strict=True))
    return [
        replace(
            request,
            tags={"data": request.tags, "tagger": names.get(id(request.image)), "none": None}[source],
            tag_source="data",
        )
        for request, source in zip(requests, sources, strict=True)
    ]


def read_prompt(lion: Lion, request: Request) -> str:
    """Return the prompt of a request as the language model reads it."""
    return lion.read_prompts(lion.processor(text=[request.question], tags=[request.tags], return_tensors="pt"))[0]


def format_fields(name: str, fields: Fields) -> str:
    """Format a line of the file of predictions."""
    scores = tuple(fields["scores"]) if "scores" in fields else None
    more = {key: value for key, value in fields.items() if key not in ("id", "answer", "scores")}
    return format_prediction(Prediction(name, fields["answer"], scores), more)


__all__ = ["answer_batch", "format_fields", "open_image", "open_images"]
