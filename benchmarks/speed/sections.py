"""Sections of measurements. Each returns the rows of its table."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import InstructBlipForConditionalGeneration

from transformers_lion import LionForConditionalGeneration

from .composed import ComposedLion, compose_tagger
from .measures import Row, Settings, take_turns
from .models import SIZES, build_tagger, make_inputs, make_labels, tagger_pixels
from .sides import Side, Tensors, build_sides, first_token

BATCH_SIZES = (1, 4)
BEAMS = {"greedy": 1, "5 beams": 5}
TRAINING_BATCH = 4


class Bench:
    """Settings, and the sides, which are built on first use."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.size = SIZES[settings.size]
        self._sides: list[Any] | None = None

    @property
    def sides(self) -> list[Any]:
        """LION, InstructBLIP and the composition."""
        if self._sides is None:
            self._sides = build_sides(self.size)
        return self._sides

    @property
    def lion(self) -> Any:
        """Side of the package."""
        return self.sides[0]

    @torch.no_grad()
    def compare(self, name: str, call: Callable[[Side], object], warm: bool = True) -> Row:
        """Measure a call on all sides."""
        functions = {side.name: partial(call, side) for side in self.sides}
        return Row(name, "s", take_turns(functions, self.settings, warm))

    def inputs(self, batch_size: int) -> Tensors:
        return make_inputs(self.size, batch_size)


def check_equal(name: str, bench: Bench, call: Callable[[Side], torch.Tensor]) -> None:
    """Raise `AssertionError` unless both LIONs generate the same ids. (This also warms up all sides.)"""
    ids = {side.name: call(side) for side in bench.sides}
    assert torch.equal(ids["lion"], ids["composed"]), f"{name}: {ids['lion']} is not {ids['composed']}"


def load(bench: Bench) -> list[Row]:
    """Measure `from_pretrained`, or, for the composition, building and `load_state_dict` like the reference."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lion, instructblip, composed = bench.sides
        lion.model.save_pretrained(root / "lion")
        instructblip.model.save_pretrained(root / "instructblip")
        torch.save(composed.model.state_dict(), root / "composed.pth")

        def load_composed() -> ComposedLion:
            model = ComposedLion(lion.model.config)
            model.load_state_dict(torch.load(root / "composed.pth", map_location="cpu"))
            return model

        functions: dict[str, Callable[[], object]] = {
            "lion": lambda: LionForConditionalGeneration.from_pretrained(root / "lion"),
            "instructblip": lambda: InstructBlipForConditionalGeneration.from_pretrained(root / "instructblip"),
            "composed": load_composed,
        }
        return [Row("load", "s", take_turns(functions, bench.settings))]


def encode(bench: Bench) -> list[Row]:
    """Measure vision tower, aggregator and Q-Former."""
    rows = []
    for batch_size in BATCH_SIZES:
        inputs = bench.inputs(batch_size)
        rows.append(bench.compare(f"encode, batch {batch_size}", lambda side, inputs=inputs: side.encode(inputs)))
    return rows


@torch.no_grad()
def language(bench: Bench) -> list[Row]:
    """Measure prefill, and an additional token as the difference between two answer lengths."""
    inputs, settings = bench.inputs(1), bench.settings
    prepared = {side.name: side.language_inputs(inputs) for side in bench.sides}
    rows = [bench.compare("prefill, batch 1", lambda side: first_token(side, prepared[side.name]))]
    for name, beams in BEAMS.items():
        short = bench.compare(name, lambda side, beams=beams: side.answer(inputs, beams, 1))
        long = bench.compare(name, lambda side, beams=beams: side.answer(inputs, beams, settings.new_tokens))
        steps = settings.new_tokens - 1
        values = {
            side: [(more - less) / steps for more, less in zip(long.values[side], short.values[side], strict=True)]
            for side in long.values
        }
        rows.append(Row(f"a further token, {name}, batch 1", "s", values))
    return rows


def answers(bench: Bench) -> list[Row]:
    """Measure answers starting from pixels. Both LIONs generate the same ids."""
    rows = []
    for batch_size in BATCH_SIZES:
        inputs = bench.inputs(batch_size)
        for name, beams in BEAMS.items():

            def call(side: Side, inputs: Tensors = inputs, beams: int = beams) -> torch.Tensor:
                return side.answer(inputs, beams, bench.settings.new_tokens)

            title = f"answer, {name}, batch {batch_size}"
            check_equal(title, bench, call)
            rows.append(bench.compare(title, call, warm=False))
            rows[-1].notes["ids equal"] = True
    return rows


def questions(bench: Bench) -> list[Row]:
    """Measure several questions about one image, with 5 beams."""
    count, new_tokens = bench.settings.num_questions, bench.settings.new_tokens
    inputs = bench.inputs(count)
    title = f"{count} questions on one image, 5 beams"

    def call(side: Side) -> torch.Tensor:
        return side.ask(inputs, 5, new_tokens)

    check_equal(title, bench, call)
    return [bench.compare(title, call, warm=False)]


@torch.no_grad()
def tagging(bench: Bench) -> list[Row]:
    """Measure the tagger. Scores of both sides agree to 1e-4."""
    tagger = build_tagger(bench.size)
    composed = compose_tagger(tagger)
    rows = []
    for batch_size in BATCH_SIZES:
        pixels = tagger_pixels(tagger, batch_size)
        difference = (tagger(pixels).logits - composed(pixels)).abs().max().item()
        assert difference < 1e-4, difference
        functions = {
            "lion": lambda pixels=pixels: tagger(pixels),
            "composed": lambda pixels=pixels: composed(pixels),
        }
        values = take_turns(functions, bench.settings, warm=False)
        rows.append(Row(f"tagging, batch {batch_size}", "s", values, {"largest difference of logits": difference}))
    return rows


def training_step(side: Any, inputs: Tensors, labels: torch.Tensor) -> Callable[[], None]:
    """Create an AdamW step for the parameters that the stage trains."""
    optimizer = torch.optim.AdamW(side.thaw(), lr=1e-5)

    def step() -> None:
        side.loss(inputs, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def training(bench: Bench) -> list[Row]:
    """Measure a training step, on new sides because it changes their weights."""
    inputs, labels = bench.inputs(TRAINING_BATCH), make_labels(bench.size, TRAINING_BATCH)
    sides = build_sides(bench.size)
    steps = {side.name: training_step(side, inputs, labels) for side in sides}
    return [Row(f"training step, batch {TRAINING_BATCH}", "s", take_turns(steps, bench.settings))]
