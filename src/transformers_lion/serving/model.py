"""Computes a batch on the model: questions of all tasks in one forward pass, or images in one pass of the tagger.

Answers are streamed token by token if they are generated without beam search. Beam search only knows the words of an
answer at its end.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation import BaseStreamer

from ..inference import Answer, Lion, Request
from ..modeling_lion import find_setting
from ..ram import TaggedImage
from .queue import Batch

OnText = Callable[[str], None]
UNFINISHED = "\ufffd"
"""Decoded in place of a character of which some bytes are still missing."""


@dataclass(frozen=True)
class Generation:
    """How answers are generated. The checkpoint's settings apply where a value is `None`.

    Attributes:
        num_beams: Number of beams.
        max_new_tokens: Maximum length of an answer.
        temperature: Above 0, tokens are sampled with this temperature, without beam search. 0 is for no sampling.
        top_p: Share of the probability to sample from.
    """

    num_beams: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None

    @property
    def is_sampled(self) -> bool:
        """Whether tokens are sampled."""
        if self.temperature is None:
            return self.top_p is not None and self.top_p < 1
        return self.temperature > 0

    @property
    def options(self) -> dict[str, Any]:
        """Options of `generate`."""
        limits = {"num_beams": self.num_beams, "max_new_tokens": self.max_new_tokens}
        options = {name: value for name, value in limits.items() if value is not None}
        if self.is_sampled:
            temperature = 1.0 if self.temperature is None else self.temperature
            top_p = 1.0 if self.top_p is None else self.top_p
            return {
                **options,
                "num_beams": 1,
                "do_sample": True,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": 0,
            }
        return {**options, "do_sample": False} if self.temperature == 0 else options


@dataclass(frozen=True, eq=False)
class AnswerWork:
    """Questions about an image.

    Attributes:
        requests: At least one request, all with the same image.
        generation: How answers are generated. Only works with equal settings share a forward pass.
        scores: Whether to score boxes.
        on_text: Called with the text so far whenever it grows, from another thread, if the answer can be streamed. For
            works with one request.
        created: Time of creation, for the time in the queue.
    """

    requests: Sequence[Request]
    generation: Generation = Generation()
    scores: bool = False
    on_text: OnText | None = None
    created: float = field(default_factory=time.perf_counter)

    @property
    def size(self) -> int:
        """Number of questions."""
        return len(self.requests)

    @property
    def key(self) -> Hashable:
        """Works with equal keys can share a forward pass."""
        return "answer", self.generation, self.scores


@dataclass(frozen=True, eq=False)
class TagWork:
    """An image to tag; see `ram.ImageTagger.tag` for the options."""

    image: Image.Image
    threshold: float | None = None
    top_k: int | None = None
    created: float = field(default_factory=time.perf_counter)

    @property
    def size(self) -> int:
        """Number of images."""
        return 1

    @property
    def key(self) -> Hashable:
        """Works with equal keys can share a forward pass."""
        return "tag", self.threshold, self.top_k


Work = AnswerWork | TagWork
Outcome = list[Answer] | TaggedImage
"""The answers of an `AnswerWork`, or the tags of a `TagWork`."""


def compute(lion: Lion, batch: "Batch[Work, Outcome]", max_batch_size: int) -> Sequence[Outcome | Exception]:
    """Compute a batch of works with equal keys.

    Args:
        lion: The model.
        batch: The batch. Generation stops when none of its callers waits any more.
        max_batch_size: Maximum number of questions per forward pass, for a single work that has more.

    Returns:
        The outcome of each work, or an exception for an image that cannot be tagged.
    """
    works = batch.items
    answering = [work for work in works if isinstance(work, AnswerWork)]
    if answering:
        return answer(lion, answering, batch.is_wanted, max_batch_size)
    return tag(lion, [work for work in works if isinstance(work, TagWork)])


def answer(
    lion: Lion, works: Sequence[AnswerWork], is_wanted: Callable[[], bool], max_batch_size: int
) -> list[list[Answer]]:
    """Answer the questions of all works in one forward pass, or in several if a single work has too many questions."""
    requests = [request for work in works for request in work.requests]
    options = works[0].generation.options
    streamers = [work.on_text for work in works]
    if any(streamers) and num_beams(lion, works[0].generation) == 1:
        options["streamer"] = BatchStreamer(
            lion.processor.tokenizer, [work.on_text for work in works for _ in work.requests]
        )
    options["stopping_criteria"] = StoppingCriteriaList([StopUnwanted(is_wanted)])
    answers = iter(lion.answer(requests, batch_size=max_batch_size, scores=works[0].scores, **options))
    return [[next(answers) for _ in work.requests] for work in works]


def tag(lion: Lion, works: Sequence[TagWork]) -> list[TaggedImage | Exception]:
    """Tag the images of all works."""
    assert lion.tagger is not None, "requests without a tagger are refused before the queue"
    found = lion.tagger.tag(
        [work.image for work in works],
        batch_size=len(works),
        threshold=works[0].threshold,
        top_k=works[0].top_k,
        sort_by_score=works[0].top_k is not None,
        show_progress=False,
    )
    return [image if image.error is None else ValueError(image.error) for image in found]


def num_beams(lion: Lion, generation: Generation) -> int:
    """Return the number of beams that an answer is generated with."""
    return find_setting("num_beams", generation.options, [lion.model.generation_config]) or 1


class BatchStreamer(BaseStreamer):
    """Passes on the text of each row of a batch whenever it grows.

    All tokens of a row are decoded again at each new token, because some tokens have no text of their own.

    Args:
        tokenizer: The tokenizer of the language model.
        receivers: What to call with the text of each row, or `None` for rows that are not streamed.
    """

    def __init__(self, tokenizer: Any, receivers: Sequence[OnText | None]):
        self.tokenizer = tokenizer
        self.receivers = receivers
        self.ids: list[list[int]] = [[] for _ in receivers]
        self.texts = [""] * len(receivers)

    def put(self, value: torch.Tensor) -> None:
        """Add a token to each row. `value` has shape (B,), or (B, 1) for the decoder's start token."""
        for row, token in enumerate(value.flatten().tolist()):
            receiver = self.receivers[row]
            if receiver is None:
                continue
            self.ids[row].append(token)
            text = self.tokenizer.decode(self.ids[row], skip_special_tokens=True)
            if text != self.texts[row] and not text.endswith(UNFINISHED):
                self.texts[row] = text
                receiver(text)

    def end(self) -> None:
        """Do nothing: the complete answers follow."""


class StopUnwanted(StoppingCriteria):
    """Stops generation when nobody waits for the batch."""

    def __init__(self, is_wanted: Callable[[], bool]):
        self.is_wanted = is_wanted

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Whether to stop, (B,)."""
        return torch.full((input_ids.shape[0],), not self.is_wanted(), device=input_ids.device)  # type: ignore[return-value]


__all__ = ["AnswerWork", "Generation", "Outcome", "TagWork", "Work", "compute", "num_beams"]
