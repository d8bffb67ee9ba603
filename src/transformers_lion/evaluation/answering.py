"""A batch of examples -> predictions, by a model.

An image that cannot be read costs its own examples their answers, and no others.
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
"""A prediction with what is kept beside it: the prompt and its tags, or the reason why there is none."""


def answer_batch(lion: Lion, batch: Batch, settings: EvaluationSettings, **generation: Any) -> dict[str, Fields]:
    """Answer a batch's questions, or rank their candidates.

    Args:
        lion: the model.
        batch: from `plan_batches`.
        settings: of the evaluation.
        **generation: options of `generate` before those of the settings.

    Returns:
        By the examples' ids `answer`, `scores` where candidates were ranked, `prompt` and `tags`, or `error`.
    """
    set_seed(settings.seed)
    pictures, reasons = open_images([example.image for example in batch], settings.image_folder)
    errors = {x.id: x.error or reasons.get(x.image) or compare_sizes(x, pictures[x.image]) for x in batch}
    found: dict[str, Fields] = {name: {"answer": "", "error": error} for name, error in errors.items() if error}
    readable = [example for example in batch if example.id not in found]
    asked = [example for example in readable if not example.candidates]
    if asked:
        requests = [make_request(example, pictures, settings.tag_source) for example in asked]
        options = {**settings.generate_options, **generation}
        answers = lion.answer(requests, batch_size=settings.batch_size, **options)
        for example, answer in zip(asked, answers, strict=True):
            found[example.id] = {"answer": answer.text, "prompt": answer.prompt, "tags": answer.tags}
    found.update(rank_candidates(lion, [x for x in readable if x.candidates], pictures, settings))
    return found


def rank_candidates(
    lion: Lion, examples: Sequence[Example], pictures: Mapping[str, Image.Image], settings: EvaluationSettings
) -> dict[str, Fields]:
    """The likeliest candidate of each example, the first of equals, with the scores of all."""
    if not examples:
        return {}
    requests = tag_requests(lion, [make_request(example, pictures, settings.tag_source) for example in examples])
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
    """The images of some files, and for those that cannot be read the reason, by their names."""
    pictures: dict[str, Image.Image] = {}
    reasons: dict[str, str] = {}
    for name in dict.fromkeys(names):
        try:
            pictures[name] = open_image(name, folder)
        except ValueError as error:
            reasons[name] = " ".join(str(error).split())
    return pictures, reasons


def open_image(name: str, folder: Path) -> Image.Image:
    """The image of a file in a folder, of a URL, or within a Parquet file.

    Raises:
        ValueError: if it cannot be read; the message names it.
    """
    if is_in_parquet(name):
        try:
            return to_rgb(open_in_parquet(name))
        except (ValueError, OSError) as error:
            raise ValueError(f"Image {name} cannot be read: {error}") from error
    return to_rgb(name if is_url(name) else folder / name)


def compare_sizes(example: Example, picture: Image.Image) -> str:
    """What is wrong with the size that the data give an image; "" where its image has it, or is resized.

    Args:
        example: of whose references the size is a part.
        image: upright, as the model sees it.
    """
    if example.image_size is None:
        return ""
    (width, height), (own_width, own_height) = example.image_size, picture.size
    if abs(width * own_height - height * own_width) <= max(width, height, own_width, own_height):  # rounded to pixels
        return ""
    turned = example.image_size == picture.size[::-1]
    reason = "its EXIF orientation turns it, and boxes have to be those of the upright image" if turned else (
        "boxes in pixels have to be those of this image, or of it resized"
    )  # fmt: skip
    return (
        f"Image {example.image} is {own_width} x {own_height} pixels upright, but the data give {width} x {height}: "
        f"{reason}."
    )


def make_request(example: Example, pictures: Mapping[str, Image.Image], tag_source: TagSource | None) -> Request:
    """A question to the model."""
    tags = None if tag_source == "tagger" or example.tags is None else list(example.tags)
    return Request(pictures[example.image], example.question, example.task_type, tags, tag_source)


def tag_requests(lion: Lion, requests: Sequence[Request]) -> list[Request]:
    """Requests that hold the tags of their prompts, also those of the tagger, so that they are known."""
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
    """What the language model reads of a request."""
    return lion.read_prompts(lion.processor(text=[request.question], tags=[request.tags], return_tensors="pt"))[0]


def format_fields(name: str, fields: Fields) -> str:
    """A line of the file of predictions."""
    scores = tuple(fields["scores"]) if "scores" in fields else None
    more = {key: value for key, value in fields.items() if key not in ("id", "answer", "scores")}
    return format_prediction(Prediction(name, fields["answer"], scores), more)


__all__ = ["answer_batch", "format_fields", "open_image", "open_images"]
