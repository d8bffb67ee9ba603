"""A batch on the model: works of all kinds, streams of single rows, and the options of generation."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from transformers_lion import Lion
from transformers_lion.example import example_image, sketch
from transformers_lion.inference import LOCATE_QUESTION, Request
from transformers_lion.serving.model import AnswerWork, Generation, TagWork, Work, compute
from transformers_lion.serving.queue import Batch, Entry

SCENE, DRAWING = example_image().resize((100, 100)), sketch(160, 120)
GREEDY = Generation(num_beams=1)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    found = asyncio.new_event_loop()
    yield found
    found.close()


def batch_of(loop: asyncio.AbstractEventLoop, *works: Work) -> Batch[Any, Any]:
    return Batch([Entry(work, work.size, work.key, loop.create_future()) for work in works])


def test_works_with_several_questions_get_their_own_answers(lion: Lion, loop: asyncio.AbstractEventLoop) -> None:
    works = [
        AnswerWork([Request(SCENE, "What color is the heart?"), Request(SCENE, "Describe the image.")], GREEDY),
        AnswerWork([Request(DRAWING, LOCATE_QUESTION.format(phrase="the circle"), "region_level")], GREEDY),
    ]
    found = compute(lion, batch_of(loop, *works), 8)
    expected = [lion.answer([request], num_beams=1)[0] for work in works for request in work.requests]
    assert [answer.text for answers in found for answer in answers] == [answer.text for answer in expected]  # type: ignore[union-attr]
    assert [len(answers) for answers in found] == [2, 1]  # type: ignore[arg-type]


def test_only_the_rows_that_are_streamed_are_passed_on_and_end_as_the_answers(
    lion: Lion, loop: asyncio.AbstractEventLoop
) -> None:
    texts: list[str] = []
    works = [
        AnswerWork([Request(SCENE, "What color is the heart?")], GREEDY),
        AnswerWork([Request(DRAWING, "Describe the image.")], GREEDY, on_text=texts.append),
    ]
    found: Any = compute(lion, batch_of(loop, *works), 8)
    assert texts[-1] == found[1][0].text
    assert len(texts) > 3
    assert all(later.startswith(text) for text, later in pairwise(texts))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_stops_when_nobody_waits(lion: Lion, loop: asyncio.AbstractEventLoop, num_beams: int) -> None:
    batch = batch_of(loop, AnswerWork([Request(SCENE, "Describe the image.")], Generation(num_beams)))
    batch.entries[0].result.cancel()
    found: Any = compute(lion, batch, 8)
    assert found[0][0].num_tokens == 1
    assert not found[0][0].is_complete


def test_images_are_tagged_together(lion: Lion, loop: asyncio.AbstractEventLoop) -> None:
    found: Any = compute(lion, batch_of(loop, TagWork(SCENE), TagWork(DRAWING)), 8)
    assert [image.names for image in found] == lion.tag([SCENE, DRAWING])


@pytest.mark.parametrize(
    ("generation", "options"),
    [
        (Generation(), {}),
        (Generation(num_beams=2, max_new_tokens=5), {"num_beams": 2, "max_new_tokens": 5}),
        (Generation(temperature=0.0, top_p=0.5), {"do_sample": False}),
        (Generation(top_p=1.0), {}),
        (
            Generation(top_p=0.5),
            {"num_beams": 1, "do_sample": True, "temperature": 1.0, "top_p": 0.5, "top_k": 0},
        ),
    ],
)
def test_sampling_needs_a_temperature_or_a_share_of_the_probability(
    generation: Generation, options: dict[str, Any]
) -> None:
    assert generation.options == options
