"""`lion eval`: a model's answers to a data file's questions, and what they are worth."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..tag_source import TAG_SOURCES
from .checkpoints import check_model, choose_device, load_lion
from .common import Debug, hide_progress_bars, printable, run_action, show_progress, speaker
from .options import Device, Dtype, Model, NumBeams, Tagger, TagSourceOption, expand_settings

if TYPE_CHECKING:
    from ..evaluation.results import Result
    from ..evaluation.settings import EvaluationSettings
    from ..inference import Lion


NUM_REASONS = 3
"""That are shown of those why examples have no answer."""

TASK_NAMES = ("rec", "captioning", "vqa", "exact-match", "multiple-choice", "visdial", "pope")

EPILOG = (
    "Example: lion eval REC --model lion-flant5-xl --data refcoco_testA.json --images train2014 --output runs/testA "
    "--dataset refcoco-testA"
)


def refuse_tags(value: str | None) -> None:
    """Raise `typer.BadParameter` for an option that `lion eval` does not have, but commands with prompts do."""
    if value is not None:
        raise typer.BadParameter(f"tags stand in the data; --tag-source takes {', '.join(TAG_SOURCES)}.")


@dataclass(frozen=True)
class Options:
    """The options of `lion eval`."""

    data: Annotated[Path, typer.Option("--data", help="The data's file, in one of its usual forms.")]
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for predictions and results.")]
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of the images.", show_default="that of the data")
    ] = None
    model: Model = None
    predictions: Annotated[Path | None, typer.Option("--predictions", help="Score this file; no model is loaded.")] = (
        None
    )
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Show the paper's figures of this data set beside: refcoco-testA.")
    ] = None
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Questions at a time.")] = 8
    num_beams: NumBeams = None
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", min=1, help="Of an answer.", show_default="the task's")
    ] = None
    length_penalty: Annotated[
        float | None, typer.Option("--length-penalty", help="Of beams.", show_default="the model's")
    ] = None
    box_format: Annotated[
        str | None, typer.Option("--box-format", help="REC: xyxy or xywh, where the data do not say.")
    ] = None
    box_unit: Annotated[
        str | None,
        typer.Option("--box-unit", help="REC: pixels, fractions or thousandths, where the data do not say."),
    ] = None
    tag_source: TagSourceOption = None
    tags: Annotated[str | None, typer.Option("--tags", hidden=True, callback=refuse_tags)] = None
    tagger: Tagger = None
    dtype: Dtype = None
    device: Device = None
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first examples.")] = None
    seed: Annotated[int, typer.Option("--seed", help="For checkpoints that draw answers at random.")] = 0
    check_batching: Annotated[
        int, typer.Option("--check-batching", min=0, help="Answer so many one by one too, in float32, and compare.")
    ] = 0

    def to_settings(self, task: str) -> "EvaluationSettings":
        """The settings of an evaluation.

        Raises:
            OSError, ValueError: if there is no such task, or no such model or device.
        """
        from ..evaluation.settings import EvaluationSettings
        from ..evaluation.tasks import TASKS

        return EvaluationSettings(
            task=TASKS[find_name(task, list(TASKS))],
            data=self.data,
            output=self.output,
            images=self.images,
            model=check_model(self.model),
            dataset=self.dataset,
            batch_size=self.batch_size,
            generation=self.given("num_beams", "max_new_tokens", "length_penalty"),
            tag_source=None if self.tag_source is None else self.tag_source.value,
            tagger=self.tagger,
            dtype=self.dtype.value if self.dtype else None,
            device=None if self.device is None else str(choose_device(self.device)),
            load_options=self.given("box_format", "box_unit"),
            limit=self.limit,
            seed=self.seed,
            check_batching=self.check_batching,
        )

    def given(self, *names: str) -> dict[str, Any]:
        """Those of some options that have a value."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@expand_settings
def evaluate(
    task: Annotated[str, typer.Argument(metavar="TASK", help=f"{', '.join(TASK_NAMES)}; capitals do not matter.")],
    options: Options,
    debug: Debug = False,
) -> None:
    """Evaluate a model on a data file, or score a file of predictions. Started again, it goes on where it was stopped.

    Exit code 1 if an image could not be read, or answers depend on the batch.
    """

    def action() -> bool:
        from ..evaluation.runner import evaluate, evaluate_file

        if not show_progress() or os.environ.get("RANK", "0") != "0":
            hide_progress_bars()
        settings = options.to_settings(task)
        if options.predictions is None:
            result = evaluate(settings, speaker(), show_progress(), load)
        elif options.model is not None or options.check_batching:
            raise ValueError("--predictions scores a file without a model: leave --model and --check-batching out.")
        else:
            result = evaluate_file(settings, options.predictions)
        return result is None or show(result, settings)

    run_action(action, debug)


def load(settings: "EvaluationSettings", device: str, dtype: str | None) -> "Lion":
    """The model of an evaluation, with its tagger where that has something to do."""
    return load_lion(settings.model, settings.tagger or settings.may_ask_tagger, device, dtype)


def find_name(name: str, known: list[str]) -> str:
    """A task's name, whatever its capitals and hyphens.

    Raises:
        ValueError: if there is none.
    """
    plain = re.compile("[^a-z]")
    found = {plain.sub("", key): key for key in known}.get(plain.sub("", name.lower()))
    if found is None:
        raise ValueError(f"There is no task {name!r}; there are {', '.join(known)}.")
    return found


def show(result: "Result", settings: "EvaluationSettings") -> bool:
    """Print figures, what is wrong with them, and where everything is.

    Returns:
        Whether all is well.
    """
    from ..evaluation.progress_files import ERRORS

    Console(highlight=False, markup=False).print(result.to_table())
    say = speaker()
    say(result.to_sentence())
    if result.counts["missing"] and result.predictions is None:
        say(f"Why they have none: {settings.output / ERRORS}")
        for line in read_reasons(settings.output / ERRORS):
            say(f"  {line}")
    if result.check is not None:
        say(describe_check(result.check))
    say(f"Results and worst cases: {settings.output}")
    return result.is_complete


def read_reasons(file: Path) -> list[str]:
    """Why examples have no answer: the first few reasons, each once, and how many more there are."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    reasons = list(dict.fromkeys(printable(row["error"]) for row in rows))
    more = len(reasons) - NUM_REASONS
    return reasons[:NUM_REASONS] + ([f"and {more} more"] if more > 0 else [])


def describe_check(check: dict[str, Any]) -> str:
    """How many answers depend on their batch, and which."""
    lines = [f"{check['differ']} of {check['examples']} answers differ in a batch from those one by one (float32)."]
    lines += [f"  {row['id']}: alone {row['alone']!r}, in a batch {row['batched']!r}" for row in check["differences"]]
    return "\n".join(lines)
