"""What a run's predictions depend on, kept beside them, so that no two ways of making them are mixed in one folder."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..tag_source import TagSource, check_tag_source
from .parquet_files import is_in_parquet
from .task import Example, Task

SETUP, MODEL, PREDICTIONS = "setup.json", "model.json", "predictions.jsonl"
"""In the output folder."""

ASKED = ("id", "image", "question", "task_type", "candidates", "tags")
"""What of an example an answer depends on."""

EDGE = 1 << 20
"""Bytes at both ends of a model's file that tell it from others."""
MODEL_FILES = ("*.json", "*.jinja", "*.model", "*.safetensors", "*.bin")


@dataclass(frozen=True)
class EvaluationSettings:
    """One evaluation.

    Attributes:
        task: which.
        data: its file, or folder.
        output: folder for everything that is written.
        images: folder that the data's images are relative to; that of the data by default.
        model: folder or id of a repository.
        dataset: by whose name the paper's figures are looked up.
        batch_size: questions that go through the model at a time.
        generation: options of `generate` that are not the checkpoint's.
        tag_source: "data", "tagger" or "none"; if it is not set, the tags of an example that has some, otherwise the
            tagger's if there is one.
        tagger: folder or id of one; by default the one in the checkpoint's folder, if there is one.
        dtype: of the weights; as saved by default.
        device: the first GPU's, or each process's own, by default.
        load_options: of the task's `load`, such as `box_format`.
        limit: only so many examples, from the data's first on.
        seed: of random numbers, which answers depend on only where the checkpoint has them drawn at random.
        check_batching: so many examples are answered one by one as well, to see whether anything changes.
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
    load_options: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    seed: int = 0
    check_batching: int = 0

    @property
    def may_ask_tagger(self) -> bool:
        """Whether some prompts may have the tagger's tags."""
        return self.tag_source in (None, "tagger")

    @property
    def image_folder(self) -> Path:
        """Where the images are."""
        return self.images or (self.data if self.data.is_dir() else self.data.parent)

    @property
    def generate_options(self) -> dict[str, Any]:
        """The options of `generate`, with the task's limit to an answer's length."""
        return {"max_new_tokens": self.task.max_new_tokens, **self.generation}


def check_settings(settings: EvaluationSettings) -> None:
    """Check what can be known without data and model.

    Raises:
        ValueError: if a value cannot be.
        FileNotFoundError: if the data or images are not there.
    """
    check_tag_source(settings.tag_source)
    if settings.tagger is not None and not settings.may_ask_tagger:
        raise ValueError(
            f"The tagger {settings.tagger} would have nothing to do: tag_source is {settings.tag_source!r}."
        )
    for name, least in (("batch_size", 1), ("limit", 1), ("check_batching", 0)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, but must be at least {least}.")
    for name in settings.load_options:
        if name not in settings.task.load_options:
            known = ", ".join(settings.task.load_options) or "none"
            raise ValueError(f"{settings.task.name} has no option {name} for its data; it has {known}.")
    for path in (settings.data, *([settings.images] if settings.images else [])):
        if not path.exists():
            raise FileNotFoundError(2, os.strerror(2), str(path))
    find_dataset(settings.task, settings.dataset)


def find_dataset(task: Task, name: str | None) -> str | None:
    """The data set of the paper that a name means, whatever its capitals, spaces and hyphens.

    Raises:
        ValueError: if the paper has no such one.
    """
    known = {plain_name(key): key for key in task.paper}
    if name is not None and plain_name(name) not in known:
        names = ", ".join(task.paper) or "none"
        raise ValueError(f"There are no figures of the paper for {name!r} in {task.name}; there are for: {names}.")
    return known[plain_name(name)] if name is not None else None


def plain_name(name: str) -> str:
    """A name in small letters and digits, and the + of RefCOCO+, which is another than RefCOCO."""
    return re.sub(r"[^a-z0-9+]", "", name.lower())


def describe_setup(settings: EvaluationSettings, examples: Sequence[Example]) -> dict[str, Any]:
    """What predictions depend on, as JSON has it. What only scores depend on, the limit, say, is not in it."""
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
    """Compare a setup with the one that the predictions in a folder, of which there are some, were made with.

    Raises:
        ValueError: if they differ, or there are predictions of unknown origin.
    """
    file = folder / SETUP
    if not file.exists():
        raise ValueError(
            f"{folder} has {PREDICTIONS}, but no {SETUP} that says how they were made. Take another output, or "
            "score them with --predictions."
        )
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. Delete {folder} to begin again.") from error
    for key in dict.fromkeys((*before, *setup)):
        old, new = before.get(key), setup.get(key)
        if without_name(key, old) != without_name(key, new):
            raise ValueError(
                f"The predictions in {folder} were made with {key} {show_value(old)}, but now it is {show_value(new)}. "
                f"Take the old one or another output, or delete {folder} to begin again."
            )


def without_name(key: str, value: Any) -> Any:
    """What of a value counts: data may be moved."""
    return value["sha256"] if key == "data" and isinstance(value, dict) else value


def show_value(value: Any) -> str:
    """A value of a setup in an error message."""
    if isinstance(value, dict):
        return f"{value['name']} (sha256 {str(value['sha256'])[:12]})" if value["sha256"] else value["name"]
    return "unset" if value is None else str(value)


def identify_model(model: str) -> dict[str, Any]:
    """A model's name, with a hash of its folder's files or the commit of its repository.

    Of each file its name, size, and both ends count; a change within large weights that leaves all three is not seen.

    Raises:
        ValueError: if it is neither.
    """
    folder = Path(model)
    if not folder.is_dir():
        try:
            return {"name": model, "sha256": PreTrainedConfig.get_config_dict(model)[0].get("_commit_hash")}
        except (OSError, ValueError) as error:  # where the text goes on, it gives advice
            reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
            raise ValueError(f"{model} is no folder, and no repository that can be read: {reason}.") from error
    digest = hashlib.sha256()
    for path in list_model_files(folder):
        with path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
            digest.update(file.read(EDGE))
            file.seek(max(0, size - EDGE))
            digest.update(file.read(EDGE))
    return {"name": str(folder.resolve()), "sha256": digest.hexdigest()}


def list_model_files(folder: Path) -> Iterator[Path]:
    """The files of a checkpoint, those of its tagger too."""
    yield from sorted({path for pattern in MODEL_FILES for path in folder.rglob(pattern) if path.is_file()})


def hash_examples(examples: Sequence[Example]) -> str:
    """A hash of all that answers depend on. References are not in it: they change when an image is repaired."""
    digest = hashlib.sha256()
    for example in examples:
        fields = {name: getattr(example, name) for name in ASKED}
        if is_in_parquet(example.image):  # which may be moved, as all data may
            fields["image"] = Path(example.image).name
        digest.update(json.dumps(fields, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def hash_data(data: Path) -> str:
    """The hash of a file, as `sha256sum` prints it; of a folder's JSON files, one after the other."""
    digest = hashlib.sha256()
    for path in sorted(data.glob("*.json*")) if data.is_dir() else [data]:
        with path.open("rb") as file:
            while block := file.read(EDGE):
                digest.update(block)
    return digest.hexdigest()


__all__ = ["EvaluationSettings", "check_settings", "check_unchanged", "describe_setup", "find_dataset"]
