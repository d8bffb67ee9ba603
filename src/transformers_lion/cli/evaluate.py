"""`lion eval`: answers the questions of a data file with a model and scores the answers."""

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
from .options import Device, Dtype, Model, NumBeams, Optimize, Tagger, TagSourceOption, expand_settings

if TYPE_CHECKING:
    from ..evaluation.results import Result
    from ..evaluation.settings import EvaluationSettings
    from ..inference import Lion


NUM_REASONS = 3
"""Number of reasons shown for examples without an answer."""

TASK_NAMES = ("rec", "captioning", "vqa", "exact-match", "multiple-choice", "visdial", "pope")

EPILOG = (
    "Example: lion eval REC --model lion-flant5-xl --data refcoco_testA.json --images train2014 --output runs/testA "
    "--dataset refcoco-testA"
)


def refuse_tags(value: str | None) -> None:
    """Raise `typer.BadParameter` for `--tags`, which other commands have but `lion eval` does not."""
    if value is not None:
        raise typer.BadParameter(f"tags are part of the data; use --tag-source with {', '.join(TAG_SOURCES)}.")


@dataclass(frozen=True)
class Options:
    """The options of `lion eval`."""

    data: Annotated[Path, typer.Option("--data", help="File of the data set, in its usual format.")]
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for predictions and results.")]
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of the images.", show_default="that of the data")
    ] = None
    model: Model = None
    predictions: Annotated[Path | None, typer.Option("--predictions", help="Score this file without a model.")] = None
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Compare with the paper's results on this data set: refcoco-testA.")
    ] = None
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Questions per batch.")] = 8
    num_beams: NumBeams = None
    max_new_tokens: Annotated[
        int | None,
        typer.Option("--max-new-tokens", min=1, help="Maximum tokens per answer.", show_default="the task's"),
    ] = None
    length_penalty: Annotated[
        float | None,
        typer.Option("--length-penalty", help="Length penalty of beam search.", show_default="the model's"),
    ] = None
    box_format: Annotated[
        str | None, typer.Option("--box-format", help="REC: xyxy or xywh, if the data do not specify it.")
    ] = None
    box_unit: Annotated[
        str | None,
        typer.Option("--box-unit", help="REC: pixels, fractions or thousandths, if the data do not specify it."),
    ] = None
    tag_source: TagSourceOption = None
    tags: Annotated[str | None, typer.Option("--tags", hidden=True, callback=refuse_tags)] = None
    tagger: Tagger = None
    dtype: Dtype = None
    device: Device = None
    optimize: Optimize = True
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Number of examples to use.")] = None
    seed: Annotated[int, typer.Option("--seed", help="Seed for checkpoints that sample.")] = 0
    check_batching: Annotated[
        int, typer.Option("--check-batching", min=0, help="Also answer this many one by one, in float32, and compare.")
    ] = 0

    def to_settings(self, task: str) -> "EvaluationSettings":
        """Convert the options to the settings of an evaluation.

        Raises:
            OSError, ValueError: if the task, model or device does not exist.
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
            optimize=self.optimize,
            load_options=self.given("box_format", "box_unit"),
            limit=self.limit,
            seed=self.seed,
            check_batching=self.check_batching,
        )

    def given(self, *names: str) -> dict[str, Any]:
        """Return the named options that are set."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@expand_settings
def evaluate(
    task: Annotated[str, typer.Argument(metavar="TASK", help=f"{', '.join(TASK_NAMES)} (case-insensitive).")],
    options: Options,
    debug: Debug = False,
) -> None:
    """Evaluate a model on a data file, or score a file of predictions. Interrupted runs resume when started again.

    The exit code is 1 if an image could not be read, or answers depend on the batch.
    """

    def action() -> bool:
        from ..evaluation.runner import evaluate, evaluate_file

        if not show_progress() or os.environ.get("RANK", "0") != "0":
            hide_progress_bars()
        settings = options.to_settings(task)
        if options.predictions is None:
            result = evaluate(settings, speaker(), show_progress(), load)
        elif options.model is not None or options.check_batching:
            raise ValueError("--predictions scores a file without a model: omit --model and --check-batching.")
        else:
            result = evaluate_file(settings, options.predictions)
        return result is None or show(result, settings)

    run_action(action, debug)


def load(settings: "EvaluationSettings", device: str, dtype: str | None) -> "Lion":
    """Load the model of an evaluation, with its tagger if prompts may need it."""
    return load_lion(settings.model, settings.tagger or settings.may_ask_tagger, device, dtype, settings.optimize)


def find_name(name: str, known: list[str]) -> str:
    """Look up a task's name, ignoring case and hyphens.

    Raises:
        ValueError: if there is no such task.
    """
    plain = re.compile("[^a-z]")
    found = {plain.sub("", key): key for key in known}.get(plain.sub("", name.lower()))
    if found is None:
        raise ValueError(f"There is no task {name!r}; the tasks are {', '.join(known)}.")
    return found


def show(result: "Result", settings: "EvaluationSettings") -> bool:
    """Print the metrics, any problems with them, and the location of the results.

    Returns:
        Whether the result is complete.
    """
    from ..evaluation.progress_files import ERRORS

    Console(highlight=False, markup=False).print(result.to_table())
    say = speaker()
    say(result.to_sentence())
    if result.counts["missing"] and result.predictions is None:
        say(f"The reasons are in {settings.output / ERRORS}")
        for line in read_reasons(settings.output / ERRORS):
            say(f"  {line}")
    if result.check is not None:
        say(describe_check(result.check))
    say(f"Results and worst cases: {settings.output}")
    return result.is_complete


def read_reasons(file: Path) -> list[str]:
    """Return the first few distinct reasons why examples have no answer, and the number of others."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    reasons = list(dict.fromkeys(printable(row["error"]) for row in rows))
    more = len(reasons) - NUM_REASONS
    return reasons[:NUM_REASONS] + ([f"and {more} more"] if more > 0 else [])


def describe_check(check: dict[str, Any]) -> str:
    """Describe how many answers depend on their batch, and which."""
    lines = [f"{check['differ']} of {check['examples']} answers differ when computed in a batch (float32)."]
    lines += [f"  {row['id']}: alone {row['alone']!r}, in a batch {row['batched']!r}" for row in check["differences"]]
    return "\n".join(lines)
