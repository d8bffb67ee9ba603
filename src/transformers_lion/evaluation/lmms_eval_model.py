"""LION as a model of lmms-eval, which finds it by the entry point `lmms_eval.models`.

Source: the interface `lmms` of lmms-eval 0.7.3. Nothing else of this package imports this module.
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
"""Where the phrase stands in the questions of `refcoco_bbox_rec` and `refcoco_grounding`."""


class LionForLmmsEval(lmms):
    """LION behind the interface of lmms-eval.

    Tasks whose names hold `bbox_rec` or `grounding` are asked at the region level, all others at the image level. What
    goes back is the answer's first box in LION's form for the former, and all boxes in the form "qwen3" for the latter,
    since these are what the tasks read.

    Args:
        pretrained: folder or repository; the example checkpoint by default.
        batch_size: questions at a time.
        device: by default the GPU of this process, if there is one.
        dtype: of the weights; as saved by default.
        tag_source: "tagger" or "none"; if it is not set, the tagger's tags if the checkpoint has a tagger.
        locate: ask `refcoco_bbox_rec` and `refcoco_grounding` in the words that LION was trained with, instead of those
            of the task.
        max_batch_size: not used; lmms-eval gives it to all models.
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
        """The answers to questions, in their order; see `lmms`."""
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
        """The negative log-likelihoods of continuations, of which tasks take the least, and whether they are greedy."""
        found = []
        for request in requests:
            context, continuation, *place = request.args
            asked = [self.make_request(context, *place)]
            ((score,),) = self.lion.rank(asked, [[continuation.strip()]], batch_size=1)
            (answer,) = self.lion.answer(asked, batch_size=1, do_sample=False, num_beams=1)
            found.append((-score, answer.text.strip() == continuation.strip()))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not there: LION was not trained on dialogues.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("LION answers one question at a time: tasks with several rounds are not supported.")

    def answer(self, requests: Sequence[Any]) -> list[str]:
        """The answers to a batch of questions that are to be generated in one way."""
        asked = [self.make_request(request.args[0], *request.args[2:]) for request in requests]
        until, options = read_options(requests[0].args[1])
        answers = self.lion.answer(asked, batch_size=self.batch_size, **options)
        return [
            write_answer(cut(answer.text, until), request.args[4])
            for request, answer in zip(requests, answers, strict=True)
        ]

    def make_request(self, context: str, doc_to_visual: Any, doc_id: Any, task: str, split: str) -> Request:
        """The question of a document, with its picture.

        Raises:
            ValueError: if it has none or several.
        """
        pictures = doc_to_visual(self.task_dict[task][split][doc_id])
        if len(pictures) != 1:
            raise ValueError(f"Document {doc_id} of {task} has {len(pictures)} pictures, but LION takes 1.")
        question = context.replace("<image>", "").strip()
        phrase = next((match[1] for pattern in PHRASES if (match := pattern.search(question))), None)
        if self.locate and phrase:
            question = LOCATE_QUESTION.format(phrase=phrase.strip())
        task_type = "region_level" if wants_boxes(task) else "image_level"
        return Request(pictures[0], question, task_type, tag_source=self.tag_source)


def wants_boxes(task: str) -> bool:
    """Whether a task asks for boxes."""
    return "bbox_rec" in task or "grounding" in task


def write_answer(text: str, task: str) -> str:
    """An answer as a task reads it: with boxes, the first of them alone, or all as JSON."""
    if not wants_boxes(task) or not extract_boxes(text):
        return text
    return (
        convert_grounded_text(text, "lion", "qwen3") if "grounding" in task else format_boxes(extract_boxes(text)[:1])
    )


def read_options(generation: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """What ends an answer, and the options of `generate`, without those of sampling where nothing is drawn."""
    options = dict(generation)
    until = options.pop("until", None) or []
    if not options.setdefault("do_sample", bool(options.get("temperature"))):
        options = {name: value for name, value in options.items() if name not in ("temperature", "top_p", "top_k")}
    return [until] if isinstance(until, str) else list(until), options


def cut(text: str, until: Sequence[str]) -> str:
    """A text up to the first of some words."""
    for word in filter(None, until):
        text = text.split(word)[0]
    return text.strip()


def list_models() -> list[ModelManifest]:
    """What the entry point gives to lmms-eval: the model "lion"."""
    return [ModelManifest("lion", simple_class_path=f"{__name__}.{LionForLmmsEval.__name__}")]


__all__ = ["LionForLmmsEval", "list_models"]
