"""A model without weights, whose answers are derived from the size of the image and the question."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig

from transformers_lion.inference import Answer, Request


class FakeLion:
    """The part of `Lion` that an evaluation uses.

    Args:
        leaky: have answers tell how many others were in the batch.
        stop_after: questions after which it breaks off, as if somebody had pressed Ctrl-C.
    """

    def __init__(self, leaky: bool = False, stop_after: int | None = None):
        self.leaky = leaky
        self.stop_after = stop_after
        self.asked: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.tagger = None
        self.processor = lambda text, tags, return_tensors: [
            f"{names} {question}" for names, question in zip(tags, text, strict=True)
        ]
        self.model = SimpleNamespace(
            dtype=torch.float32, device=torch.device("cpu"), generation_config=GenerationConfig(num_beams=3)
        )

    def read_prompts(self, prompts: list[str]) -> list[str]:
        return prompts

    def answer(self, requests: Sequence[Request], *, batch_size: int, **generation: Any) -> list[Answer]:
        """`2x3: the question`, for an image of that size."""
        self.note(requests, generation)
        return [
            Answer(
                text=self.text(request, len(requests)),
                prompt=f"{request.tags or None} {request.question}",
                tags=list(request.tags) if isinstance(request.tags, list) else None,
                entities=[],
                image_size=request.image.size,
            )
            for request in requests
        ]

    def rank(
        self, requests: Sequence[Request], candidates: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[list[float]]:
        """The shorter a candidate, the likelier."""
        self.note(requests, {})
        return [[-1.5 * len(text) for text in texts] for texts in candidates]

    def note(self, requests: Sequence[Request], generation: dict[str, Any]) -> None:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += [request.question for request in requests]
        self.calls.append({"questions": [request.question for request in requests], **generation})

    def text(self, request: Request, num_requests: int) -> str:
        width, height = request.image.size
        return f"{width}x{height}: {request.question}{f' ({num_requests})' if self.leaky else ''}"
