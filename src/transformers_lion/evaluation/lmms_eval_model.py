"""LION as a model of lmms-eval, which finds it through the entry point `lmms_eval.models`.

Source: the `lmms` interface of lmms-eval 0.7.3. No other module of this package imports this one.
"""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from ..grounding import convert_grounded_text, extract_boxes, format_boxes
from ..inference import LOCATE_QUESTION, Lion, Request
from ..tag_source import TagSource

PHRASES = (re.compile(r"this sentence describes: (.+)\Z", re.DOTALL), re.compile(r'matches the description "(.+?)"'))
"""Patterns that extract the phrase from questions of `refcoco_bbox_rec` and `refcoco_grounding`."""


class LionForLmmsEval(lmms):
    """LION with the interface of lmms-eval.

    Tasks with `bbox_rec` or `grounding` in their name use the region level, all others the image level. The former get
    the first box of the answer in LION's format, and the latter get all boxes in the format "qwen3", because that is
    what the tasks read.

    Args:
        pretrained: Folder or repository. Defaults to the example checkpoint.
        batch_size: Number of questions per batch.
        device: Defaults to the GPU of this process, if there is one.
        dtype: Dtype of the weights. Defaults to the saved dtype.
        tag_source: `"tagger"` or `"none"`. By default, the tagger's tags if the checkpoint has a tagger.
        locate: Replace the questions of `refcoco_bbox_rec` and `refcoco_grounding` by the prompt that LION was trained
            with.
        max_batch_size: Ignored. lmms-eval passes it to all models.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        tag_source: TagSource | None = None,
        locate: bool = True,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        self.lion = Lion.from_pretrained(pretrained, device=device or own, dtype=dtype)
        self.device = self.lion.model.device
        self.batch_size = int(batch_size)
        self.tag_source = tag_source
        self.locate = locate

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer questions, in order. See `lmms`."""
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(place)
        found: dict[int, str] = {}
        for places in groups.values():
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                texts = self.answer([requests[place] for place in batch])
                found.update(zip(batch, texts, strict=True))
        return [found[place] for place in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return negative log-likelihoods of continuations (tasks choose the lowest) and whether they match greedy
        decoding.
        """
        found = []
        for request in requests:
            context, continuation, *place = request.args
            asked = [self.make_request(context, *place)]
            ((score,),) = self.lion.rank(asked, [[continuation.strip()]], batch_size=1)
            (answer,) = self.lion.answer(asked, batch_size=1, do_sample=False, num_beams=1)
            found.append((-score, answer.text.strip() == continuation.strip()))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not supported, because LION was not trained on dialogues.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("LION answers one question at a time: tasks with several rounds are not supported.")

    def answer(self, requests: Sequence[Any]) -> list[str]:
        """Answer a batch of questions that share their generation options."""
        asked = [self.make_request(request.args[0], *request.args[2:]) for request in requests]
        until, options = _read_options(requests[0].args[1])
        answers = self.lion.answer(asked, batch_size=self.batch_size, **options)
        return [
            _write_answer(cut(answer.text, until), request.args[4])
            for request, answer in zip(requests, answers, strict=True)
        ]

    def make_request(self, context: str, doc_to_visual: Any, doc_id: Any, task: str, split: str) -> Request:
        """Create the request for a document.

        Raises:
            ValueError: If the document does not have exactly one image.
        """
        images = doc_to_visual(self.task_dict[task][split][doc_id])
        if len(images) != 1:
            raise ValueError(f"Document {doc_id} of {task} has {len(images)} images, but LION accepts 1.")
        question = context.replace("<image>", "").strip()
        phrase = next((match[1] for pattern in PHRASES if (match := pattern.search(question))), None)
        if self.locate and phrase:
            question = LOCATE_QUESTION.format(phrase=phrase.strip())
        task_type = "region_level" if _wants_boxes(task) else "image_level"
        return Request(images[0], question, task_type, tag_source=self.tag_source)


def _wants_boxes(task: str) -> bool:
    """Whether a task expects boxes."""
    return "bbox_rec" in task or "grounding" in task


def _write_answer(text: str, task: str) -> str:
    """Format an answer as its task expects: only the first box, or all boxes as JSON, if there are boxes."""
    if not _wants_boxes(task) or not extract_boxes(text):
        return text
    return (
        convert_grounded_text(text, "lion", "qwen3") if "grounding" in task else format_boxes(extract_boxes(text)[:1])
    )


def _read_options(generation: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Return the stop strings and the options for `generate`, without sampling options if sampling is off."""
    options = dict(generation)
    until = options.pop("until", None) or []
    if not options.setdefault("do_sample", bool(options.get("temperature"))):
        options = {name: value for name, value in options.items() if name not in ("temperature", "top_p", "top_k")}
    return [until] if isinstance(until, str) else list(until), options


def cut(text: str, until: Sequence[str]) -> str:
    """Truncate a text at the first stop string."""
    for word in filter(None, until):
        text = text.split(word)[0]
    return text.strip()


def list_models() -> list[ModelManifest]:
    """Entry point for lmms-eval: the model "lion"."""
    return [ModelManifest("lion", simple_class_path=f"{__name__}.{LionForLmmsEval.__name__}")]


__all__ = ["LionForLmmsEval", "list_models"]
