"""Implements `lion eval`: runs a model on a task's examples, scores the predictions, and writes pages of the worst.

The output folder contains `setup.json` (what predictions depend on), `model.json` (how the model was run),
`predictions.jsonl`, `errors.jsonl` (examples without an answer, with reasons), `result.json`, `worst.html` and
`worst.png`. Interrupted runs resume. With `torchrun` or `accelerate launch`, processes share the work, and the first
one merges and scores all predictions.
"""

import gc
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..file_utils import LOCK, locked, write_text
from ..inference import Lion
from ..package_versions import describe_versions
from ..ram import ImageTagger
from .answering import Fields, answer_batch
from .batches import Batch, plan_batches
from .batching_check import BatchingCheck, check_batching
from .missing import wrong_prediction
from .pages import write_pages
from .parquet_files import forget_images
from .predictions import read_predictions
from .processes import Processes, join_processes
from .progress_files import (
    ERRORS,
    PredictionWriter,
    merge_parts,
    name_part,
    read_fields,
    read_parts,
    write_errors,
)
from .results import PACKAGES, RESULT, Result, describe_model
from .settings import (
    MODEL,
    SETUP,
    EvaluationSettings,
    check_settings,
    check_unchanged,
    describe_setup,
    find_dataset,
    hash_data,
)
from .task import Example, Prediction

Say = Callable[[str], None]
"""Prints a message."""

LoadLion = Callable[[EvaluationSettings, str, str | None], Lion]
"""Loads a model from settings, a device and a dtype."""


@dataclass(frozen=True)
class Run:
    """Statistics of a run.

    Attributes:
        num_answered: number of examples answered by all processes.
        seconds: time that the first process took for its share.
        check: the batching check, if requested.
    """

    num_answered: int = 0
    seconds: float = 0.0
    check: BatchingCheck | None = None


def load_lion(settings: EvaluationSettings, device: str, dtype: str | None) -> Lion:
    """Load the model of an evaluation, with its tagger if prompts may need it."""
    tagger: ImageTagger | Literal[False] | None = None if settings.may_ask_tagger else False
    if settings.tagger is not None:
        tagger = ImageTagger.from_pretrained(settings.tagger, device=device, optimize=settings.optimize)
    return Lion.from_pretrained(settings.model, tagger=tagger, device=device, dtype=dtype, optimize=settings.optimize)


def evaluate(
    settings: EvaluationSettings, say: Say = print, show_progress: bool = False, load: LoadLion = load_lion
) -> Result | None:
    """Answer a task's questions with a model, and score the answers.

    Args:
        settings: settings of the evaluation.
        say: called with messages.
        show_progress: whether to show a progress bar on stderr.
        load: loads the model.

    Returns:
        The result; `None` in all processes but the first.

    Raises:
        ValueError: if the settings or the data are invalid, the output folder has predictions made with other
            settings, or another run is writing to it.
        OSError: if a file or folder is missing or cannot be written.
    """
    with join_processes() as processes, ExitStack() as at_end:
        at_end.callback(forget_images)
        examples, chosen = prepare(settings, processes, at_end)
        batches = plan_batches(chosen, settings.batch_size)
        done = {name for name, fields in read_parts(settings.output).items() if "error" not in fields}
        processes.wait()  # until all know which examples are done
        pending = [batch for batch in batches if any(example.id not in done for example in batch)]
        if processes.is_first and len(pending) < len(batches):
            say(f"{len(batches) - len(pending)} of {len(batches)} batches are already done.")
        run = answer_all(settings, pending, chosen, processes, show_progress, load)
        processes.wait()  # until all are done
        if not processes.is_first:
            return None
        merged = merge_parts(settings.output, [example.id for example in examples])
        return conclude(settings, chosen, collect(chosen, merged), find_errors(chosen, merged), run)


def evaluate_file(settings: EvaluationSettings, predictions: Path) -> Result:
    """Score a file of predictions without a model.

    Examples for which the file has an `error` instead of an answer, as files of `evaluate` do, count as wrong.

    Raises:
        ValueError: if the settings, data or predictions are invalid or do not match, or another run is writing to the
            output folder.
        OSError: if a file or folder is missing or cannot be written.
    """
    check_settings(settings)
    examples = settings.task.load(settings.data, settings.images, **settings.load_options)
    chosen = examples[: settings.limit]
    left_out = {example.id for example in examples[len(chosen) :]}
    found = [prediction for prediction in read_predictions(predictions) if prediction.id not in left_out]
    errors = {example.id: example.error for example in chosen if example.error} | read_error_reasons(predictions)
    wrong = {example.id: wrong_prediction(example) for example in chosen if example.id in errors}
    found = [wrong.get(prediction.id, prediction) for prediction in found]
    settings.output.mkdir(parents=True, exist_ok=True)
    missing = {name: reason for name, reason in errors.items() if name in wrong}
    with locked(settings.output / LOCK, settings.output):
        return conclude(settings, chosen, found, missing, Run(), predictions)


def prepare(
    settings: EvaluationSettings, processes: Processes, at_end: ExitStack
) -> tuple[list[Example], list[Example]]:
    """Read the data, and lock and prepare the output folder.

    Args:
        settings: settings of the evaluation.
        processes: the processes of the run; the first one prepares the folder.
        at_end: releases the lock.

    Returns:
        All examples, and those to answer.
    """
    error: Exception | None = None
    if processes.is_first:
        try:
            examples = read_examples(settings)
            settings.output.mkdir(parents=True, exist_ok=True)
            at_end.enter_context(locked(settings.output / LOCK, settings.output))
            begin_folder(settings, examples)
        except (ValueError, OSError) as found:
            error = found
    processes.share_error(error)
    if not processes.is_first:
        examples = read_examples(settings)
    return examples, examples[: settings.limit]


def read_examples(settings: EvaluationSettings) -> list[Example]:
    """Load all examples of the data."""
    check_settings(settings)
    examples = settings.task.load(settings.data, settings.image_folder, **settings.load_options)
    if settings.tag_source == "data" and not any(example.tags is not None for example in examples):
        raise ValueError(f"tag_source is 'data', but none of the {len(examples)} examples of {settings.data} has tags.")
    return examples


def begin_folder(settings: EvaluationSettings, examples: Sequence[Example]) -> None:
    """Record what predictions depend on, and merge the predictions of earlier processes into one file."""
    setup = describe_setup(settings, examples)
    if read_parts(settings.output):
        check_unchanged(settings.output, setup)
    write_text(settings.output / SETUP, json.dumps(setup, indent=2, ensure_ascii=False) + "\n")
    merge_parts(settings.output, [example.id for example in examples])


def answer_all(
    settings: EvaluationSettings,
    pending: Sequence[Batch],
    chosen: Sequence[Example],
    processes: Processes,
    show_progress: bool,
    load: LoadLion,
) -> Run:
    """Answer this process's share of the batches, and append the predictions to the process's file."""
    device = settings.device or processes.device
    own = list(pending[processes.rank :: processes.count])
    check, lion = None, None
    started = time.monotonic()
    if settings.check_batching and processes.is_first:
        lion = load(settings, device, "float32")
        check = check_batching(lion, chosen, settings)
        started = time.monotonic()
        if settings.dtype != "float32":
            lion = None
            gc.collect()
    if own:
        lion = lion or load(settings, device, settings.dtype)
        if processes.is_first:
            facts = json.dumps(describe_model(lion, settings), indent=2, ensure_ascii=False) + "\n"
            write_text(settings.output / MODEL, facts)
        answer_own(lion, own, settings, processes, show_progress and processes.is_first)
    return Run(sum(map(len, pending)), time.monotonic() - started, check)


def answer_own(
    lion: Lion, batches: Sequence[Batch], settings: EvaluationSettings, processes: Processes, show_progress: bool
) -> None:
    """Answer batches one after the other.

    Raises:
        ValueError: if a batch does not fit in memory.
    """
    writer = PredictionWriter(settings.output / name_part(processes.rank))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    times = TimeElapsedColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, *times, console=Console(stderr=True), disable=not show_progress) as progress:
            bar = progress.add_task(settings.task.name, total=sum(map(len, batches)))
            for batch in batches:
                writer.write(answer_batch(lion, batch, settings))
                progress.advance(bar, len(batch))
    except torch.OutOfMemoryError as error:
        size = settings.batch_size
        raise ValueError(
            f"{lion.model.device} has too little memory for a batch of {size} questions: use a smaller batch size. "
            f"Completed predictions are kept in {settings.output}."
        ) from error
    finally:
        writer.close()


def collect(examples: Sequence[Example], found: dict[str, Fields]) -> list[Prediction]:
    """Return the prediction for each example; a wrong one if there is no answer."""
    return [
        wrong_prediction(example)
        if "error" in found[example.id]
        else Prediction(
            example.id,
            found[example.id]["answer"],
            tuple(found[example.id]["scores"]) if "scores" in found[example.id] else None,
        )
        for example in examples
    ]


def find_errors(examples: Sequence[Example], found: dict[str, Fields]) -> dict[str, str]:
    """Return the reasons for missing answers, by example id."""
    return {example.id: found[example.id]["error"] for example in examples if "error" in found[example.id]}


def read_error_reasons(predictions: Path) -> dict[str, str]:
    """Return the reasons for missing answers in a file of predictions, by example id."""
    with predictions.open("rb") as file:
        if file.read(64).lstrip()[:1] == b"[":
            return {}
    return {name: str(fields["error"]) for name, fields in read_fields(predictions).items() if "error" in fields}


def conclude(
    settings: EvaluationSettings,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    errors: dict[str, str],
    run: Run,
    file: Path | None = None,
) -> Result:
    """Score predictions, and write the result and the pages of the worst ones."""
    scores = settings.task.score(examples, predictions)
    folder = settings.output if file is None else file.parent
    dataset = find_dataset(settings.task, settings.dataset)
    result = Result(
        task=settings.task.name,
        dataset=dataset,
        metrics=scores.metrics,
        headline=settings.task.headline,
        paper=dict(settings.task.paper[dataset]) if dataset else {},
        counts={"examples": len(examples), "missing": len(errors), "answered_in_this_run": run.num_answered},
        data={"name": str(settings.data), "sha256": hash_data(settings.data), "limit": settings.limit},
        predictions=None if file is None else str(file),
        setup=read_object(folder / SETUP),
        model=read_object(folder / MODEL),
        versions=describe_versions(PACKAGES),
        batch_size=settings.batch_size,
        seconds=round(run.seconds, 3),
        check=None if run.check is None else run.check.summary(),
    )
    images = {example.id: example.image for example in examples}
    if file is None:
        write_errors(settings.output / ERRORS, [(name, images[name], why) for name, why in errors.items()])
    write_text(settings.output / RESULT, result.to_json())
    write_pages(settings, result, examples, predictions, scores.per_example, errors)
    return result


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON file, if it exists."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


__all__ = ["evaluate", "evaluate_file"]
