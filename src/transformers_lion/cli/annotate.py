"""`lion annotate`: annotates any number of images on Ray."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import Debug, hide_progress_bars, raise_termination, report, require, run_action, stderr_console
from .options import Dtype, MaxNewTokens, Model, NumBeams, Optimize, Tagger, TagSourceOption, expand_settings

if TYPE_CHECKING:
    from ..jobs import AnnotationTask, JobSettings

PACKAGES = ("ray", "pyarrow")


class FormatName(str, Enum):
    """Formats of results."""

    parquet = "parquet"
    jsonl = "jsonl"


@dataclass(frozen=True)
class TaskOptions:
    """The options that make up a task. They replace the fields of `--task`."""

    task: Annotated[Path | None, typer.Option("--task", help="YAML file with the fields of a task.")] = None
    caption: Annotated[bool, typer.Option("--caption", help="Describe each image.")] = False
    tags: Annotated[bool, typer.Option("--tags", help="List the tags of each image.")] = False
    ask: Annotated[
        list[str] | None, typer.Option("--ask", help="Question, such as 'Is this {category} red?'; repeatable.")
    ] = None
    locate: Annotated[list[str] | None, typer.Option("--locate", help="Phrase to locate; repeatable.")] = None
    locate_column: Annotated[
        str | None, typer.Option("--locate-column", help="Column with phrases to locate in each image.")
    ] = None
    locate_tags: Annotated[bool, typer.Option("--locate-tags", help="Locate each tag of the image.")] = False
    regions_column: Annotated[
        str | None, typer.Option("--regions-column", help="Column with boxes to describe, in pixels.")
    ] = None
    scores: Annotated[bool, typer.Option("--scores", help="Score located boxes.")] = False
    tag_source_name: TagSourceOption = None
    tag_column: Annotated[str | None, typer.Option("--tag-column", help="Column with the tags for prompts.")] = None
    num_beams: NumBeams = None
    max_new_tokens: MaxNewTokens = None

    def to_task(self) -> "AnnotationTask":
        """Return the task.

        Raises:
            OSError, ValueError: if it is invalid.
        """
        from ..jobs import AnnotationTask
        from ..jobs.task import read_task

        names = ("caption", "tags", "ask", "locate", "locate_column", "locate_tags", "regions_column", "scores")
        values: dict[str, Any] = {name: getattr(self, name) for name in (*names, "tag_column")}
        values["tag_source"] = self.tag_source_name and self.tag_source_name.value
        given = {name: value for name, value in values.items() if value}
        fields = {} if self.task is None else read_task(self.task)
        generation = {"num_beams": self.num_beams, "max_new_tokens": self.max_new_tokens}
        chosen = {name: value for name, value in generation.items() if value is not None}
        if chosen:
            given["generation"] = {**(fields.get("generation") or {}), **chosen}
        return AnnotationTask.from_dict({**fields, **given}, "options" if self.task is None else str(self.task))


@dataclass(frozen=True)
class JobOptions:
    """The other options of `lion annotate`, named as in `JobSettings`."""

    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]
    image_column: Annotated[
        str | None, typer.Option("--image-column", help="Column with the images.", show_default="the only one")
    ] = None
    key_column: Annotated[
        str | None,
        typer.Option("--key-column", help="Column with unique keys; # for file and row.", show_default="the path"),
    ] = None
    image_root: Annotated[
        str | None,
        typer.Option("--image-root", help="Folder that paths are relative to.", show_default="that of the file"),
    ] = None
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Number of rows, from the first.")] = None
    sample: Annotated[int | None, typer.Option("--sample", min=1, help="Number of rows to draw at random.")] = None
    seed: Annotated[int, typer.Option("--seed", help="Seed of --sample.")] = 0
    model: Model = None
    tagger: Tagger = None
    dtype: Dtype = None
    optimize: Optimize = True
    format: Annotated[FormatName, typer.Option("--format", help="Format of the results.")] = FormatName.parquet
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images and questions per batch.")] = 8
    num_actors: Annotated[
        int | None, typer.Option("--num-actors", min=1, help="Models at work.", show_default="as many as fit")
    ] = None
    num_cpus_per_actor: Annotated[
        float | None, typer.Option("--num-cpus-per-actor", help="CPUs of each actor.", show_default="an equal share")
    ] = None
    num_gpus_per_actor: Annotated[
        float | None,
        typer.Option("--num-gpus-per-actor", help="GPUs of each actor: 1, 0.5...", show_default="1 if there are any"),
    ] = None
    num_threads: Annotated[
        int | None,
        typer.Option("--num-threads", min=1, help="Threads per actor that decode images.", show_default="its CPUs"),
    ] = None
    address: Annotated[
        str | None, typer.Option("--address", help="Ray cluster, such as auto.", show_default="this machine")
    ] = None
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the output of the actors.")] = False

    def to_settings(self, source: list[str], task: "AnnotationTask") -> "JobSettings":
        """Return the settings of the job."""
        from ..jobs import JobSettings

        values = {**vars(self), "dtype": self.dtype and self.dtype.value, "format": self.format.value}
        return JobSettings(source=source, task=task, **values)


@expand_settings
def annotate(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE", help="Images, folders, globs or URLs; Parquet; shards (.tar); JSON Lines; COCO; datasets."
        ),
    ],
    task: TaskOptions,
    job: JobOptions,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and the columns of the results.")] = False,
    debug: Debug = False,
) -> None:
    """Caption, tag, question and ground any number of images. Interrupted jobs resume when started again."""

    def action() -> bool:
        require("lion annotate", "ray", PACKAGES)
        from ..jobs.job import annotate, describe_job

        settings = job.to_settings(source, task.to_task())
        if dry_run:
            print(describe_job(settings))
            return True
        hide_progress_bars()
        console = stderr_console()
        try:
            with raise_termination():
                annotate(settings, say=console.print, console=console)
        except RuntimeError as error:
            if debug:
                raise
            report(error)
            report(f"what is finished is kept in {settings.output}; run the command again to continue.")
            return False
        return True

    run_action(action, debug)
