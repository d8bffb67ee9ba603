"""The settings of an evaluation, saved with its predictions, so that a folder never mixes different settings."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..model_identity import identify_model
from ..tag_source import TagSource, check_tag_source
from .parquet_files import is_in_parquet
from .task import Example, Task

SETUP, MODEL, PREDICTIONS = "setup.json", "model.json", "predictions.jsonl"
"""File names in the output folder."""

ASKED = ("id", "image", "question", "task_type", "candidates", "tags")
"""Fields of an example that an answer depends on."""

BLOCK = 1 << 20
"""Number of bytes that are read at a time."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation.

    Attributes:
        task: the task.
        data: file or folder of the data.
        output: folder for all output files.
        images: folder that image paths are relative to; the folder of the data by default.
        model: folder or repository of the model.
        dataset: name of the data set, to look up the paper's results.
        batch_size: number of questions per batch.
        generation: options of `generate` that override the checkpoint's.
        tag_source: "data", "tagger" or "none". If unset, an example's own tags are used, or the tagger's if the example
            has none.
        tagger: folder or repository of a tagger; the tagger in the checkpoint's folder by default, if there is one.
        dtype: dtype of the weights; as saved by default.
        device: the device; by default the first GPU, or each process's own.
        optimize: see `Lion.from_pretrained`. Predictions of both kinds may be mixed.
        load_options: options of the task's `load`, such as `box_format`.
        limit: number of examples to use, from the first.
        seed: random seed; answers depend on it only if the checkpoint's generation config enables sampling.
        check_batching: number of examples that are also answered one by one, to check whether batching changes answers.
    """

    task: Task
    data: Path
    output: Path
    images: Path | None = None
    model: str = ""
    dataset: str | None = None
    batch_size: int = 8
    generation: dict[str, Any] = field(default_factory=dict)
    tag_source: TagSource | None = None
    tagger: str | None = None
    dtype: str | None = None
    device: str | None = None
    optimize: bool = True
    load_options: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    seed: int = 0
    check_batching: int = 0

    @property
    def may_ask_tagger(self) -> bool:
        """Whether prompts may contain tags from the tagger."""
        return self.tag_source in (None, "tagger")

    @property
    def image_folder(self) -> Path:
        """The folder of the images."""
        return self.images or (self.data if self.data.is_dir() else self.data.parent)

    @property
    def generate_options(self) -> dict[str, Any]:
        """The options of `generate`, including the task's maximum length of an answer."""
        return {"max_new_tokens": self.task.max_new_tokens, **self.generation}


def check_settings(settings: EvaluationSettings) -> None:
    """Check settings without loading data or model.

    Raises:
        ValueError: if a setting is invalid.
        FileNotFoundError: if the data or images do not exist.
    """
    check_tag_source(settings.tag_source)
    if settings.tagger is not None and not settings.may_ask_tagger:
        raise ValueError(
            f"The tagger {settings.tagger} would not be used, because tag_source is {settings.tag_source!r}."
        )
    for name, least in (("batch_size", 1), ("limit", 1), ("check_batching", 0)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, but must be at least {least}.")
    for name in settings.load_options:
        if name not in settings.task.load_options:
            known = ", ".join(settings.task.load_options) or "none"
            raise ValueError(f"{settings.task.name} has no data option {name}; its options are: {known}.")
    for path in (settings.data, *([settings.images] if settings.images else [])):
        if not path.exists():
            raise FileNotFoundError(2, os.strerror(2), str(path))
    find_dataset(settings.task, settings.dataset)


def find_dataset(task: Task, name: str | None) -> str | None:
    """Look up a data set of the paper by name, ignoring case, spaces and hyphens.

    Raises:
        ValueError: if the paper has no results for it.
    """
    known = {plain_name(key): key for key in task.paper}
    if name is not None and plain_name(name) not in known:
        names = ", ".join(task.paper) or "none"
        raise ValueError(f"The paper has no {task.name} results for {name!r}, only for: {names}.")
    return known[plain_name(name)] if name is not None else None


def plain_name(name: str) -> str:
    """Reduce a name to lowercase letters, digits and "+", which distinguishes RefCOCO+ from RefCOCO."""
    return re.sub(r"[^a-z0-9+]", "", name.lower())


def describe_setup(settings: EvaluationSettings, examples: Sequence[Example]) -> dict[str, Any]:
    """Return everything that predictions depend on, ready for JSON; not what only scores depend on, such as `limit`."""
    return {
        "task": settings.task.name,
        "model": identify_model(settings.model),
        "data": {"name": str(settings.data), "sha256": hash_examples(examples)},
        "images": str(settings.image_folder.resolve()),
        "tag_source": settings.tag_source,
        "tagger": None if settings.tagger is None else identify_model(settings.tagger),
        "dtype": settings.dtype,
        **settings.generate_options,
        "seed": settings.seed,
    }


def check_unchanged(folder: Path, setup: dict[str, Any]) -> None:
    """Compare a setup with that of the existing predictions in a folder.

    Raises:
        ValueError: if they differ, or the setup of the predictions is unknown.
    """
    file = folder / SETUP
    if not file.exists():
        raise ValueError(
            f"{folder} has {PREDICTIONS}, but no {SETUP} with the settings they were made with. Choose another output "
            "folder, or score the predictions with --predictions."
        )
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. Delete {folder} to start again.") from error
    for key in dict.fromkeys((*before, *setup)):
        old, new = before.get(key), setup.get(key)
        if without_name(key, old) != without_name(key, new):
            raise ValueError(
                f"The predictions in {folder} were made with {key} {show_value(old)}, but now it is {show_value(new)}. "
                f"Use the old value or another output folder, or delete {folder} to start again."
            )


def without_name(key: str, value: Any) -> Any:
    """Return the part of a value to compare: the name of the data is ignored, because data may be moved."""
    return value["sha256"] if key == "data" and isinstance(value, dict) else value


def show_value(value: Any) -> str:
    """Format a value of a setup for an error message."""
    if isinstance(value, dict):
        return f"{value['name']} (sha256 {str(value['sha256'])[:12]})" if value["sha256"] else value["name"]
    return "unset" if value is None else str(value)


def hash_examples(examples: Sequence[Example]) -> str:
    """Hash everything in the examples that answers depend on; not references, which change if an image is repaired."""
    digest = hashlib.sha256()
    for example in examples:
        fields = {name: getattr(example, name) for name in ASKED}
        if is_in_parquet(example.image):  # data may be moved
            fields["image"] = Path(example.image).name
        digest.update(json.dumps(fields, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def hash_data(data: Path) -> str:
    """Hash a file as `sha256sum` does, or the concatenated JSON files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(data.glob("*.json*")) if data.is_dir() else [data]:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()


__all__ = ["EvaluationSettings", "check_settings", "check_unchanged", "describe_setup", "find_dataset"]
