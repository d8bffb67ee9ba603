"""Worker processes that are started by spawn or forkserver, Python 3.14's default, do what forked ones do."""

import multiprocessing
import pickle
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import pipeline

from examples.small_world.cells import labelled_scenes
from training.recipe_run import build, metrics
from training.record_files import good_record, make_image, png, write_source
from transformers_lion import LionForConditionalGeneration, LionProcessor, example_checkpoint
from transformers_lion.example import sketch
from transformers_lion.pipelines import LionImageToTextPipeline
from transformers_lion.training import (
    ImageAugmentation,
    LionDataCollator,
    RecordReport,
    load_records,
    mix_datasets,
    train,
)

ALWAYS = ImageAugmentation(scale=(0.5, 0.5), flip_probability=1.0)


@pytest.fixture(params=["spawn", "forkserver"])
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    """How processes are started, also where nobody says so, as in the Trainer and in pipelines."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_forkserver_preload(["transformers_lion.training"])  # imported once, for all tests
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


SPAWN_ONLY = pytest.mark.parametrize("start_method", ["spawn"], indirect=True)
"""Both methods send the same objects to a worker, and starting one takes seconds; the collator is tested with both."""


def assert_same(batch: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(batch) == set(expected)
    for name, tensor in batch.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_collators_batches_faults_and_epochs_are_those_of_one_process(
    start_method: str, lion_processor: LionProcessor, tmp_path: Path
) -> None:
    rows = load_records(write_source(tmp_path, 4))
    (tmp_path / "a2.png").write_bytes(png(2)[:150])
    report = RecordReport()
    collator = LionDataCollator(lion_processor, augmentation=ALWAYS, on_error="skip", report=report)
    loader = DataLoader(rows, 2, collate_fn=collator, num_workers=1, persistent_workers=True)
    assert loader.multiprocessing_context is None  # the default, which is the fixture's
    alone = LionDataCollator(lion_processor, augmentation=ALWAYS, on_error="skip")
    for epoch in (0, 1):
        collator.set_epoch(epoch)
        alone.set_epoch(epoch)
        for batch, expected in zip(loader, DataLoader(rows, 2, collate_fn=alone), strict=True):
            assert_same(batch, expected)
    (fault,) = report.faults
    assert fault.source.endswith("a.json[2]")


@pytest.mark.long
@SPAWN_ONLY
def test_workers_share_a_stream_and_its_report(start_method: str, tmp_path: Path) -> None:
    sources = [write_source(tmp_path, 6, "a", ".jsonl"), write_source(tmp_path, 4, "b", ".jsonl")]
    with sources[1].open("a") as file:
        file.write("no record\n")
    report = RecordReport()
    streams = [load_records(source, streaming=True, num_shards=2, on_error="skip", report=report) for source in sources]
    mixture: Any = mix_datasets(streams, [2, 1], stopping_strategy="all_exhausted_without_replacement")
    asked = [row["question"] for row in DataLoader(mixture, batch_size=None, num_workers=2)]
    expected = [good_record(seed, name)["question"] for name, count in (("a", 6), ("b", 4)) for seed in range(count)]
    assert sorted(asked) == sorted(expected)
    assert [fault.source for fault in report.faults] == [f"{sources[1]}:5"]


@pytest.mark.long
@SPAWN_ONLY
def test_the_trainers_workers_change_no_step(start_method: str, lion_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_source(tmp_path, 4, name)
    losses = []
    for workers in (0, 1):
        arguments = {"dataloader_num_workers": workers}
        trainer = build(tmp_path, lion_folder, tmp_path / f"out{workers}", arguments=arguments)
        train(trainer)
        losses.append([entry["loss"] for entry in metrics(trainer)])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5


@SPAWN_ONLY
def test_a_pipelines_workers_change_no_answer(
    start_method: str, lion_model: LionForConditionalGeneration, lion_processor: LionProcessor
) -> None:
    pipe = LionImageToTextPipeline(model=lion_model, processor=lion_processor)
    images, options = [make_image(0), make_image(1)], {"max_new_tokens": 4}
    assert pipe(images, num_workers=1, **options) == pipe(images, **options)


def test_a_taggers_pipeline_hands_its_workers_no_weights() -> None:
    pipe = pipeline("image-tagging", model=f"{example_checkpoint()}/tagger")
    assert len(pickle.dumps(pipe.model)) > 1_000_000
    assert len(pickle.dumps(pipe.preprocess)) < 10_000
    preprocess = pickle.loads(pickle.dumps(pipe.preprocess))
    assert torch.equal(preprocess(sketch())["pixel_values"], pipe.preprocess(sketch())["pixel_values"])


def test_lions_pipeline_hands_its_workers_no_weights() -> None:
    pipe: Any = pipeline("image-to-text", model=example_checkpoint())
    tagger_size = len(pickle.dumps(pipe.tagger))
    handed_on = len(pickle.dumps(pipe.preprocess))
    assert handed_on < tagger_size / 2 < len(pickle.dumps(pipe))
    assert abs(handed_on - len(pickle.dumps(pipe.processor))) < 1000


def test_processes_draw_the_scenes_that_one_draws() -> None:
    """More scenes than one process takes at a time."""
    (pixels, labels), (expected_pixels, expected) = (
        labelled_scenes("train", 501, 16, 2, processes=processes) for processes in (2, 1)
    )
    assert np.array_equal(pixels, expected_pixels)
    for part in fields(labels):
        assert np.array_equal(getattr(labels, part.name), getattr(expected, part.name)), part.name
