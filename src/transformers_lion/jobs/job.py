"""The job behind `lion annotate`: lists the rows of a source, annotates them on Ray, and completes the results.

A job can be killed at any point: the same call continues it, and each row is in the results once. See `output` for how.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import GenerationConfig

from ..checkpoint_utils import MODEL_FILES, PROCESSOR_FILES, TAGGER_FILES, TAGGER_FOLDER, check_folder, local_folder
from ..example import example_checkpoint
from ..file_utils import LOCK, locked, write_text
from ..images.files import describe_passed_over
from ..model_identity import identify_model
from ..package_versions import describe_versions
from .annotator import LionAnnotator
from .output import (
    KEYS,
    MAX_CHUNK_ROWS,
    RUN,
    Done,
    FileFormat,
    Keys,
    Output,
    choose_chunk_rows,
    read_run,
    write_keys,
)
from .pipeline import MakeAnnotator, connected, run_chunks
from .plan import Node, Plan, make_plan
from .progress import Counts, describe_seconds, show_counts
from .schema import describe_schema
from .source_row import SourceRow, table_to_rows
from .sources import check_unique, list_rows
from .storage import absolute
from .task import AnnotationTask, get_column

PACKAGES = ("transformers-lion", "transformers", "torch", "ray", "pyarrow", "pillow")
"""Packages whose versions are recorded."""
KEYS_LISTED = f"{KEYS}.listed"
"""Rows that are not checked yet."""
ROWS_SHOWN = 3
"""Number of rows that `describe` shows."""

Say = Callable[[str], None]
"""Prints a message."""


@dataclass(frozen=True)
class JobSettings:
    """Settings of a job.

    Attributes:
        source: One or more sources; see `list_rows`.
        output: Folder for all files of the job.
        task: What to do for each image.
        image_column, key_column, image_root, limit, sample, seed: See `list_rows`.
        model: Folder or repository of the model. Defaults to the example checkpoint.
        tagger: Folder or repository of a tagger. Defaults to the model's own, if there is one.
        dtype: Data type of the weights. Defaults to the data type they were saved in.
        optimize: See `Lion.from_pretrained`.
        format: "parquet" or "jsonl".
        batch_size: Number of images, and of questions, per forward pass.
        num_actors, num_cpus_per_actor, num_gpus_per_actor: See `make_plan`.
        num_threads: Threads per actor that decode images. Defaults to the CPUs of the actor, but at least 2.
        address: Address of a Ray cluster, such as "auto". By default, Ray is started on this machine.
        verbose: Whether to show the output of the actors.
    """

    source: str | Sequence[str]
    output: str | os.PathLike
    task: AnnotationTask
    image_column: str | None = None
    key_column: str | None = None
    image_root: str | None = None
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    model: str | None = None
    tagger: str | None = None
    dtype: str | None = None
    optimize: bool = True
    format: FileFormat = "parquet"
    batch_size: int = 8
    num_actors: int | None = None
    num_cpus_per_actor: float | None = None
    num_gpus_per_actor: float | None = None
    num_threads: int | None = None
    address: str | None = None
    verbose: bool = False

    @property
    def sources(self) -> list[str]:
        """The sources, with absolute paths."""
        return [absolute(name) for name in ([self.source] if isinstance(self.source, str) else self.source)]

    def list_rows(self, skipped: Counter[str] | None = None) -> Iterator[SourceRow]:
        """List the rows of the source."""
        return list_rows(
            self.source,
            image_column=self.image_column,
            key_column=self.key_column,
            image_root=self.image_root,
            limit=self.limit,
            sample=self.sample,
            seed=self.seed,
            skipped=skipped,
        )


def annotate(
    settings: JobSettings,
    *,
    say: Say = print,
    console: Console | None = None,
    make_annotator: MakeAnnotator = LionAnnotator,
) -> Done:
    """Annotate the images of a source, or continue a job that was interrupted.

    Args:
        settings: Settings of the job.
        say: Called with messages.
        console: Console on stderr for the progress. By default, none is shown.
        make_annotator: Creates the annotator of an actor, with the arguments of `LionAnnotator`.

    Returns:
        Summary of the results, which `read_results` opens.

    Raises:
        ValueError: If a setting is invalid, the output folder belongs to a job with other settings or has other files,
            or another process is writing to it.
        OSError: If a file cannot be read or written. What is finished stays.
        RuntimeError: If the model fails on all rows, or actors die again and again. What is finished stays.
    """
    model = check_model(settings)
    output = Output(Path(settings.output))
    check_folder_is_ours(output.folder)
    output.folder.mkdir(parents=True, exist_ok=True)
    with locked(output.folder / LOCK, output.folder):
        begin(output, settings, model, say)
        done = output.done()
        if done is not None:
            output.clean_up()
            say(f"{output.folder} is already complete: {describe_done(done)}.")
            return done
        list_keys(output, settings, say)
        run(output, settings, say, console, make_annotator)
        done = output.finish(settings.format)
        say(f"{output.folder}: {describe_done(done)}.")
        return done


# --- checks and settings ----------------------------------------------------------------------------------------------


def check_model(settings: JobSettings) -> dict[str, Any]:
    """Check the model and what is asked of it, before any actor starts.

    Returns:
        Names and hashes of the model and the tagger.

    Raises:
        OSError, ValueError: If a file or the tagger is missing, or a generation option is unknown.
    """
    for name, value in (("batch_size", settings.batch_size), ("num_threads", settings.num_threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, but must be at least 1.")
    if settings.format not in ("parquet", "jsonl"):
        raise ValueError(f"format is {settings.format!r}, but must be 'parquet' or 'jsonl'.")
    known = GenerationConfig().to_dict().keys()
    for name in settings.task.generation:
        if name not in known:
            raise ValueError(f"generation: {name!r} is not an option of generate, such as num_beams or max_new_tokens.")
    folder = model_folder(settings)
    if folder.is_dir() and settings.task.has_prompts:
        check_folder(folder)
    has_tagger = settings.tagger is not None or not folder.is_dir() or (folder / TAGGER_FOLDER).is_dir()
    if settings.task.needs_tagger and not has_tagger:
        raise ValueError(f"The task needs tags, but {settings.model} has no tagger. Set tagger to the folder of one.")
    return {
        "model": identify_model(str(folder) if settings.model is None else settings.model),
        "tagger": None if settings.tagger is None else identify_model(settings.tagger),
    }


def model_folder(settings: JobSettings) -> Path:
    """Return the folder of the model, which is downloaded if necessary."""
    name = settings.model or example_checkpoint()
    return Path(local_folder(name, [*MODEL_FILES, *PROCESSOR_FILES, *TAGGER_FILES]))


def describe_settings(settings: JobSettings, model: dict[str, Any]) -> dict[str, Any]:
    """Return everything that the results depend on, ready for JSON. Numbers of actors and the like are left out."""
    root = settings.image_root
    return {
        "source": settings.sources,
        "image_column": settings.image_column,
        "key_column": settings.key_column,
        "image_root": None if root is None else absolute(root),
        "limit": settings.limit,
        "sample": settings.sample,
        "seed": settings.seed if settings.sample is not None else None,
        "task": settings.task.to_dict(),
        **model,
        "dtype": settings.dtype,
        "format": settings.format,
    }


def check_folder_is_ours(folder: Path) -> None:
    """Raise `ValueError` if the output folder has files, but not those of a job."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, but the output is a folder.")
    if not folder.is_dir() or (folder / RUN).exists():
        return
    others = [path.name for path in folder.iterdir() if not path.name.startswith((".", "_"))]
    if others:
        raise ValueError(f"{folder} has other files, such as {others[0]}. Choose a new or an empty folder.")


def begin(output: Output, settings: JobSettings, model: dict[str, Any], say: Say) -> None:
    """Write the settings of a new job, or compare them with those of the job to continue.

    Raises:
        ValueError: If they differ. The message names both.
    """
    new = {"settings": describe_settings(settings, model), "versions": describe_versions(PACKAGES)}
    old = read_run(output.folder)
    if old is None:
        write_text(output.folder / RUN, json.dumps(new, indent=2, ensure_ascii=False) + "\n")
        return
    for name in dict.fromkeys((*old["settings"], *new["settings"])):
        before, now = old["settings"].get(name), new["settings"].get(name)
        if before != now:
            raise ValueError(
                f"The results in {output.folder} were made with {name} {show_value(before)}, but now it is "
                f"{show_value(now)}. Use the old value or another output folder, or delete {output.folder} to start "
                "again."
            )
    changed = [
        f"{name} {old['versions'].get(name)} -> {found}"
        for name, found in new["versions"].items()
        if old["versions"].get(name) != found
    ]
    if changed:
        say(f"note: the job was started with other versions: {', '.join(changed)}.")


def show_value(value: Any) -> str:
    """Format a setting for a message."""
    if isinstance(value, dict) and "sha256" in value:
        return f"{value['name']} (sha256 {str(value['sha256'])[:12]})"
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)


def list_keys(output: Output, settings: JobSettings, say: Say) -> None:
    """List the rows of the source, once.

    Raises:
        OSError, ValueError: If the source cannot be listed, has no rows, two rows have the same key, or none of the
            first rows has a column of the task.
    """
    if not output.has_keys:
        skipped = Counter[str]()
        say("Listing the source ...")
        write_keys(output.folder / KEYS_LISTED, settings.list_rows(skipped))
        keys = Keys(output.folder / KEYS_LISTED)
        try:
            check_keys(keys, settings)
        except ValueError:
            (output.folder / KEYS_LISTED).unlink()
            raise
        finally:
            keys.close()
        (output.folder / KEYS_LISTED).replace(output.folder / KEYS)
        if skipped:
            say(f"note: {describe_passed_over(skipped)}")
    output.parts.mkdir(exist_ok=True)


def check_keys(keys: Keys, settings: JobSettings) -> None:
    """Check the rows of a source; see `list_keys`."""
    if not keys.num_rows:
        raise ValueError(f"There are no rows in {', '.join(settings.sources)}.")
    check_unique(lambda: (row for chunk in range(keys.num_chunks) for row in table_to_rows(keys.read_chunk(chunk))))
    check_columns(table_to_rows(keys.read_chunk(0)), settings.task)


def check_columns(rows: Sequence[SourceRow], task: AnnotationTask) -> None:
    """Raise `ValueError` if none of the rows has a column that the task uses."""
    known = [json.loads(row.columns) for row in rows]
    names = {name: None for columns in known for name in columns}
    for name in task.columns:
        get_column(names, name)


def describe_done(done: Done) -> str:
    """Describe complete results."""
    errors = "1 row has an error" if done.errors == 1 else f"{done.errors:,} rows have an error"
    return f"{done.rows:,} rows, {errors}"


# --- running ----------------------------------------------------------------------------------------------------------


def run(
    output: Output, settings: JobSettings, say: Say, console: Console | None, make_annotator: MakeAnnotator
) -> None:
    """Annotate the chunks without results.

    Raises:
        OSError, ValueError, RuntimeError: See `annotate`.
    """
    keys, chunks = output.keys, output.pending()
    if not chunks:
        return
    pending = sum(map(keys.count_rows, chunks))
    counts = Counts(keys.num_rows, keys.num_rows - pending)
    if counts.before:
        say(f"{counts.before:,} of {keys.num_rows:,} rows are already done.")
    with ExitStack() as stack:
        nodes = stack.enter_context(connected(settings.address, settings.verbose))
        plan = plan_actors(nodes, settings)
        say(f"{pending:,} rows in {describe_chunks(len(chunks))} for {plan}.")
        results = run_chunks(keys, chunks, plan, make_annotator, annotator_options(settings, plan))
        stack.callback(results.close)
        show = stack.enter_context(show_counts(counts, console))
        counts.started = time.monotonic()
        for result in results:
            output.write_part(result.chunk, result.content)
            counts.rows += result.rows
            counts.errors += result.errors
            show()
    say(f"{counts.rows:,} rows in {describe_seconds(counts.seconds)}, {counts.rate:.3g} rows/s.")


def describe_chunks(count: int) -> str:
    """Return a number of chunks as text."""
    return "1 chunk" if count == 1 else f"{count:,} chunks"


def plan_actors(nodes: Sequence[Node], settings: JobSettings) -> Plan:
    """Choose the actors of a job; see `make_plan`."""
    return make_plan(
        nodes,
        weights_size(settings),
        settings.num_actors,
        settings.num_cpus_per_actor,
        settings.num_gpus_per_actor,
    )


def weights_size(settings: JobSettings) -> int:
    """Return the size of the files of the weights in bytes; 0 if they are not on this machine."""
    folder = model_folder(settings)
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors")) if folder.is_dir() else 0


def annotator_options(settings: JobSettings, plan: Plan) -> dict[str, Any]:
    """Return the arguments of the annotator."""
    return {
        "model": None if settings.model is None else for_workers(settings.model),
        "task": settings.task,
        "batch_size": settings.batch_size,
        "tagger": None if settings.tagger is None else for_workers(settings.tagger),
        "dtype": settings.dtype,
        "optimize": settings.optimize,
        "num_threads": settings.num_threads or max(2, int(plan.cpus)),
    }


def for_workers(name: str) -> str:
    """Return the absolute path of a folder, because workers run elsewhere; other names are returned unchanged."""
    return str(Path(name).resolve()) if os.path.isdir(name) else name


# --- dry run ----------------------------------------------------------------------------------------------------------


def describe_job(settings: JobSettings) -> str:
    """Describe what a job would do, without writing or computing anything.

    Raises:
        OSError, ValueError: If a setting is invalid, the source cannot be listed, or there is no room for the actors.
    """
    model = check_model(settings)
    rows = settings.list_rows()
    first = list(islice(rows, MAX_CHUNK_ROWS))
    count = len(first) + sum(1 for _ in rows)
    if not count:
        raise ValueError(f"There are no rows in {', '.join(settings.sources)}.")
    check_columns(first, settings.task)
    chunk_rows = choose_chunk_rows(count)
    with connected(settings.address, settings.verbose) as nodes:
        plan = plan_actors(nodes, settings)
    shown = [row.key for row in first[:ROWS_SHOWN]] + (["..."] if count > ROWS_SHOWN else [])
    lines = [
        f"rows      {count:,}: {', '.join(shown)}",
        f"task      {json.dumps(settings.task.to_dict(), ensure_ascii=False)}",
        f"model     {settings.model or 'the example checkpoint'} (sha256 {str(model['model']['sha256'])[:12]})",
        f"work      {describe_chunks(-(-count // chunk_rows))} of up to {chunk_rows} rows for {plan}",
        f"output    {settings.output} ({settings.format}), with the columns",
        *(f"  {line}" for line in describe_schema().splitlines()),
    ]
    return "\n".join(lines)


__all__ = ["JobSettings", "annotate", "describe_job"]
