"""The settings of `lion train`: reads a YAML file and overrides from the command line into typed settings.

The file holds the keys of `RunSettings`, with `stages` as a list of `StageSettings`. A key of a stage may also appear
at the top level; it then applies to all stages that do not set it themselves. Errors name the key.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ..tag_source import TAG_SOURCES, TagSource
from .arguments import read_arguments
from .recipe import check_argument_names
from .record_files import are_shards, is_url
from .stages import get_stage
from .values import describe, fits, fitting

NAME = re.compile(r"\w[\w-]*")

SCIENTIFIC = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")


@dataclass(frozen=True)
class DataSettings:
    """A source of records.

    Attributes:
        records: a file, pattern or folder of records, or several; see `load_records`. URLs can be streamed.
        images: the folder that image paths are relative to; the folder of the file by default.
        sample_ratio: how often records are drawn from this source, relative to other sources.
        streaming: whether to read the records during training, without an index; by default for WebDataset shards
            (.tar) and URLs.
        buffer_size: number of records of a stream that are shuffled together.
    """

    records: str | list[str]
    images: str | None = None
    sample_ratio: float = 1.0
    streaming: bool | None = None
    buffer_size: int = 1000

    def __post_init__(self) -> None:
        check_positive("data: ", self, ("sample_ratio", "buffer_size"))
        remote = [name for name in self.paths if is_url(name)]
        if self.streaming is False and remote:
            raise ValueError(f"data: records has the URL {remote[0]}, which can only be streamed; drop streaming.")

    @property
    def paths(self) -> list[str]:
        """The names of `records` as a list."""
        return [self.records] if isinstance(self.records, str) else self.records

    @property
    def is_stream(self) -> bool:
        """Whether records are read during training."""
        if self.streaming is not None:
            return self.streaming
        return any(is_url(name) or are_shards(name) for name in self.paths)


@dataclass(frozen=True)
class StageSettings:
    """Settings of one stage. The defaults follow the released recipe, except for the length of training.

    Attributes:
        stage: the name or number of a stage in `STAGES`.
        data: the training data; of each source, only records of the stage's task types are used.
        name: the name of the stage's folder; the stage's own name by default.
        model: the model to start from: a folder, or the name of an earlier stage in the file. For the mixture, a list
            of two: the image-level and the region-level model. By default, the mixture combines those two stages of the
            file, the released stage continues from the mixture, and all others start from the run's `model`.
        reuse: parts of that model that the first or second stage keeps; see `start_stage`.
        evaluation: records to generate answers for at each checkpoint.
        steps: number of optimizer steps; overrides `epochs`.
        epochs: number of passes over the data.
        learning_rate: peak learning rate.
        aggregator_lr_multiplier: factor on the learning rate of the aggregator.
        warmup_steps: number of warmup steps; below 1, a fraction of all steps.
        weight_decay: weight decay of matrices.
        batch_size: records per device.
        gradient_accumulation: batches per optimizer step.
        one_source_per_batch: whether to draw each batch from a single source, as the reference code does.
        bf16: whether to compute in bfloat16; weights stay in float32.
        activation_checkpointing: whether to save memory by recomputing activations, which takes more time.
        compile: whether to compile the model with `torch.compile`.
        tag_source: "data" uses the tags of the records, "tagger" those of the `tagger` instead, and "none" leaves the
            tag sentence out. If unset, a record's own tags are used, or the tagger's if the record has none.
        tagger: the folder of a tagger.
        augment: whether to crop and mirror image-level images.
        on_error: whether a record that cannot be used stops the run ("raise"), or is left out and reported ("skip").
        check_images: "exists" checks that image files exist, "decode" also opens every image, and "none" checks
            nothing; by default "decode" if `on_error` is "skip", and "exists" otherwise.
        save_steps: number of steps between checkpoints.
        trainable_only: whether checkpoints hold only the trained parameters.
        arguments: any other arguments of `Seq2SeqTrainingArguments`.
    """

    stage: str | int
    data: list[DataSettings]
    name: str = ""
    model: str | list[str] | None = None
    reuse: list[str] | None = None
    evaluation: list[DataSettings] = field(default_factory=list)
    steps: int | None = None
    epochs: float = 1.0
    learning_rate: float = 1e-5
    aggregator_lr_multiplier: float = 1.0
    warmup_steps: float = 0.02
    weight_decay: float = 0.05
    batch_size: int = 16
    gradient_accumulation: int = 1
    one_source_per_batch: bool = False
    bf16: bool = True
    activation_checkpointing: bool = False
    compile: bool = False
    tag_source: TagSource | None = None
    tagger: str | None = None
    augment: bool = False
    on_error: Literal["raise", "skip"] = "raise"
    check_images: Literal["exists", "decode", "none"] | None = None
    save_steps: int = 500
    trainable_only: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("steps", "epochs", "learning_rate", "batch_size", "gradient_accumulation", "save_steps")
        check_positive(f"Stage {self.name}: ", self, names)
        check_argument_names(self.arguments)
        object.__setattr__(self, "arguments", read_arguments(self.arguments, f"Stage {self.name}: arguments"))
        self._check_streams()
        if self.one_source_per_batch and "train_sampling_strategy" in self.arguments:
            raise ValueError(
                f"Stage {self.name}: one_source_per_batch and arguments: train_sampling_strategy cannot be combined; "
                "one_source_per_batch needs its own sampling order."
            )

    @property
    def is_stream(self) -> bool:
        """Whether the training data, or a part of it, is streamed."""
        return any(source.is_stream for source in self.data)

    def _check_streams(self) -> None:
        """Raise `ValueError` if a setting does not go with a stream."""
        for source in self.evaluation:
            if source.streaming or any(map(is_url, source.paths)):
                raise ValueError(f"Stage {self.name}: evaluation: {source.records} cannot be streamed.")
        if not self.is_stream:
            return
        streamed = ", ".join(name for source in self.data if source.is_stream for name in source.paths)
        if self.steps is None:
            raise ValueError(
                f"Stage {self.name}: set steps; the length of {streamed} is not known, because it is streamed."
            )
        if self.arguments.get("train_sampling_strategy", "random") not in ("random", "sequential"):
            raise ValueError(
                f"Stage {self.name}: arguments: train_sampling_strategy needs an index of all records, but {streamed} "
                "is streamed."
            )


@dataclass(frozen=True)
class RunSettings:
    """Settings of a whole run.

    Attributes:
        output: the output folder; it has a subfolder for each stage.
        stages: the stages, which run one after the other.
        model: the folder of the model that stages start from.
        seed: seed for new parameters, the order of the data, and dropout.
        num_workers: number of dataloader workers per device.
        feature_cache: folder that caches the outputs of the frozen vision tower, so that later epochs do not run it.
        report_to: "tensorboard", "wandb", or any other integration that the Trainer supports.
    """

    output: str
    stages: list[StageSettings]
    model: str | None = None
    seed: int = 0
    num_workers: int = 0
    feature_cache: str | None = None
    report_to: list[str] = field(default_factory=list)


RUN_KEYS, STAGE_KEYS = ([entry.name for entry in fields(kind)] for kind in (RunSettings, StageSettings))
SHARED_KEYS = [key for key in STAGE_KEYS if key not in ("stage", "name", *RUN_KEYS)]
"""Keys of stages that may also appear at the top level."""


class RecipeLoader(yaml.SafeLoader):
    """Loads numbers such as 1e-8 as numbers, as YAML 1.2 does; in YAML 1.1 they are strings."""


RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:float", SCIENTIFIC, list("-+.0123456789"))


def load_settings(path: Path, changes: Sequence[str] = ()) -> RunSettings:
    """Read the settings of a run.

    Args:
        path: the path of a YAML file.
        changes: overrides of the form `KEY=VALUE`. The key is a key of the file, `STAGE.KEY` for one stage, or a
            stage's key for all stages; `arguments.KEY` works too. The value is YAML.

    Raises:
        ValueError: if a key is unknown or missing, or its value is invalid; the message names the key.
    """
    raw = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    check_keys(str(path), raw, RUN_KEYS + SHARED_KEYS)
    pairs = {change: parse_change(change) for change in changes}
    raw.update(pair for pair in pairs.values() if pair[0] in RUN_KEYS)
    if not isinstance(raw.get("stages"), list) or not raw["stages"]:
        raise ValueError(f"{path}: stages must be a list of at least one stage.")
    stages = []
    for index, stage in enumerate(raw["stages"]):
        check_keys(f"{path}: stages[{index}]", stage, STAGE_KEYS)
        stages.append({**{key: raw[key] for key in SHARED_KEYS if key in raw}, **stage})
        if "stage" in stage:
            stages[-1].setdefault("name", get_stage(stage["stage"]).name)
    for change, (key, value) in pairs.items():
        if key not in RUN_KEYS:
            change_stages(stages, change, key, value)
    run = {key: value for key, value in raw.items() if key in RUN_KEYS}
    settings = build(RunSettings, {**run, "stages": stages}, str(path))
    check_names(settings)
    return settings


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML.

    Raises:
        ValueError: if the text is not valid YAML; the message names the line.
    """
    try:
        return yaml.load(text, RecipeLoader)  # subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{where}{line}: invalid YAML: {getattr(error, 'problem', error)}.") from error


def parse_change(change: str) -> tuple[str, Any]:
    """Split an override into key and value.

    Raises:
        ValueError: if it is not of the form `KEY=VALUE`.
    """
    key, equals, text = change.partition("=")
    if not equals:
        raise ValueError(f"{change!r} must be KEY=VALUE.")
    return key, parse_yaml(text, change)


def change_stages(stages: list[dict[str, Any]], change: str, key: str, value: Any) -> None:
    """Set a key of the stage that `key` names, or of all stages.

    Raises:
        ValueError: if there is no such key or stage.
    """
    names = [str(stage.get("name")) for stage in stages]
    first, *rest = key.split(".")
    chosen, known = stages, RUN_KEYS + SHARED_KEYS
    if first in names and rest:
        chosen, known = [stages[names.index(first)]], STAGE_KEYS
        first, *rest = rest
    if rest and (first != "arguments" or len(rest) > 1):
        raise ValueError(f"{change}: {first!r} is not a stage; the stages are {', '.join(names)}.")
    check_keys(change, {first: value}, known)
    for stage in chosen:
        stage[first] = {**(stage.get(first) or {}), rest[0]: value} if rest else value


def check_names(settings: RunSettings) -> None:
    """Raise `ValueError` unless the stages have unique names that can serve as folder names."""
    names = [stage.name for stage in settings.stages]
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"The name {name!r} of a stage must consist of letters, digits, _ and -.")
        if names.count(name) > 1:
            raise ValueError(f"{names.count(name)} stages are called {name!r}; give each a unique name.")


def check_positive(where: str, settings: Any, names: Iterable[str]) -> None:
    """Raise `ValueError` if one of these fields is set to 0 or less."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise ValueError(f"{where}{name} is {value}, but must be above 0.")


def check_keys(where: str, raw: Any, known: Iterable[str]) -> None:
    """Raise `ValueError` if `raw` is not a mapping, or has an unknown key."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} must be a mapping of keys to values, but is {raw!r}.")
    known = list(known)
    for key in raw:
        if key not in known:
            close = get_close_matches(str(key), known, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            if key == "tags":
                hint = f" Set tag_source to choose where tags come from: {', '.join(TAG_SOURCES)}."
            raise ValueError(f"{where}: unknown key {key!r}.{hint} The keys are {', '.join(known)}.")


def build(kind: Any, value: Any, where: str) -> Any:
    """Convert a YAML value to `kind`: a dataclass, a list of dataclasses, a plain type, or a union of plain types.

    Raises:
        ValueError: if the value does not fit.
    """
    if is_dataclass(kind):
        return build_dataclass(kind, value, where)
    if get_origin(kind) is list and is_dataclass(get_args(kind)[0]):
        if not isinstance(value, list):
            raise ValueError(f"{where} is {value!r}, but must be a list.")
        return [build(get_args(kind)[0], entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for option in options:
        if fits(option, value):
            return fitting(option, value)
    raise ValueError(f"{where} is {value!r}, but must be {' or '.join(map(describe, options))}.")


def build_dataclass(kind: Any, value: Any, where: str) -> Any:
    """Build a dataclass from a mapping of its fields."""
    types = get_type_hints(kind)
    check_keys(where, value, types)
    for entry in fields(kind):
        if entry.name not in value and entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{where}: the key {entry.name} is missing.")
    return kind(**{name: build(types[name], item, f"{where}: {name}") for name, item in value.items()})


__all__ = ["DataSettings", "RunSettings", "StageSettings", "load_settings"]
