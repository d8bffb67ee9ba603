"""The settings of `lion train`: a YAML file, and changes of it, -> typed settings, or an error that names the key.

The file holds the keys of `RunSettings`, with `stages` as a list of `StageSettings`. A key of a stage may also stand at
the top of the file: it then holds for all stages that do not have it themselves.
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
from .stages import get_stage
from .values import describe, fits, fitting

NAME = re.compile(r"\w[\w-]*")

SCIENTIFIC = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")


@dataclass(frozen=True)
class DataSettings:
    """Where records come from.

    Attributes:
        records: a file of records, or several; see `load_records`.
        images: the folder that their images' paths begin in; by default that of the file.
        sample_ratio: how often they are drawn, relative to other sources.
    """

    records: str | list[str]
    images: str | None = None
    sample_ratio: float = 1.0

    def __post_init__(self) -> None:
        check_positive("data: ", self, ("sample_ratio",))


@dataclass(frozen=True)
class StageSettings:
    """One stage. Defaults are those of the released recipe, but for the length.

    Attributes:
        stage: which of `STAGES`, by name or number.
        data: what it trains on; of each source the records of the stage's task types.
        name: of its folder; the stage's by default.
        model: what it begins with: a folder, or the name of a stage further up in the file; for the mixture a list of
            two, the image-level and the region-level one. By default the mixture combines those two stages of the file,
            the released stage goes on from the mixture, and else it is the run's `model`.
        reuse: parts of that model that the first or second stage keeps; see `start_stage`.
        evaluation: records that answers are generated for at each checkpoint.
        steps: of the optimizer; they go before `epochs`.
        epochs: how often all data are gone through.
        learning_rate: at its height.
        aggregator_lr_multiplier: of the learning rate, for the aggregator.
        warmup_steps: until it is there; below 1 a share of all steps.
        weight_decay: of matrices.
        batch_size: records on a device.
        gradient_accumulation: batches before a step.
        one_source_per_batch: as in the reference, where no batch mixes sources.
        bf16: compute in bfloat16; weights stay in float32.
        activation_checkpointing: less memory, more time.
        compile: `torch.compile` the model.
        tag_source: "data" for the tags of the records, "tagger" for those of the `tagger` instead, "none" for no tag
            sentence; if it is not set, the tags of a record that has some, otherwise the tagger's if there is one.
        tagger: a tagger's folder.
        augment: crop and mirror image-level images.
        on_error: whether a record that cannot be used stops the run, or is left out and reported.
        save_steps: steps from checkpoint to checkpoint.
        trainable_only: whether checkpoints hold only what is trained.
        arguments: any further ones of `Seq2SeqTrainingArguments`.
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
    save_steps: int = 500
    trainable_only: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("steps", "epochs", "learning_rate", "batch_size", "gradient_accumulation", "save_steps")
        check_positive(f"Stage {self.name}: ", self, names)
        check_argument_names(self.arguments)
        object.__setattr__(self, "arguments", read_arguments(self.arguments, f"Stage {self.name}: arguments"))
        if self.one_source_per_batch and "train_sampling_strategy" in self.arguments:
            raise ValueError(
                f"Stage {self.name}: one_source_per_batch and arguments: train_sampling_strategy exclude each other; "
                "the first needs the order that it makes."
            )


@dataclass(frozen=True)
class RunSettings:
    """A whole run.

    Attributes:
        output: the folder of everything; each stage has one in it.
        stages: run one after the other.
        model: the folder that stages begin with.
        seed: of new parts, of the data's order and of dropout.
        num_workers: processes that load images, on each device.
        feature_cache: a folder that keeps the frozen vision tower's outputs, so that later epochs do not run it.
        report_to: "tensorboard", "wandb" and others that the Trainer knows.
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
"""Keys of stages that may stand at the top."""


class RecipeLoader(yaml.SafeLoader):
    """YAML with numbers like 1e-8, which are texts in YAML 1.1 and numbers in 1.2."""


RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:float", SCIENTIFIC, list("-+.0123456789"))


def load_settings(path: Path, changes: Sequence[str] = ()) -> RunSettings:
    """Read settings.

    Args:
        path: of a YAML file.
        changes: `KEY=VALUE`, with a key of the file, `STAGE.KEY` for one stage, or a stage's key for all stages; also
            `arguments.KEY`. The value is YAML.

    Raises:
        ValueError: that names the key which is unknown or missing, or whose value does not fit.
    """
    raw = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    check_keys(str(path), raw, RUN_KEYS + SHARED_KEYS)
    pairs = {change: parse_change(change) for change in changes}
    raw.update(pair for pair in pairs.values() if pair[0] in RUN_KEYS)
    if not isinstance(raw.get("stages"), list) or not raw["stages"]:
        raise ValueError(f"{path}: stages must be a list of one stage or more.")
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
    """What a YAML text holds.

    Raises:
        ValueError: if it is no YAML; with the line.
    """
    try:
        return yaml.load(text, RecipeLoader)  # a safe one
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{where}{line}: this is no YAML: {getattr(error, 'problem', error)}.") from error


def parse_change(change: str) -> tuple[str, Any]:
    """Key and value of a change.

    Raises:
        ValueError: if it is no `KEY=VALUE`.
    """
    key, equals, text = change.partition("=")
    if not equals:
        raise ValueError(f"{change!r} must be KEY=VALUE.")
    return key, parse_yaml(text, change)


def change_stages(stages: list[dict[str, Any]], change: str, key: str, value: Any) -> None:
    """Change a key of the stage that `key` begins with, or of all of them.

    Raises:
        ValueError: if there is no such key.
    """
    names = [str(stage.get("name")) for stage in stages]
    first, *rest = key.split(".")
    chosen, known = stages, RUN_KEYS + SHARED_KEYS
    if first in names and rest:
        chosen, known = [stages[names.index(first)]], STAGE_KEYS
        first, *rest = rest
    if rest and (first != "arguments" or len(rest) > 1):
        raise ValueError(f"{change}: {first!r} is no stage; stages are {', '.join(names)}.")
    check_keys(change, {first: value}, known)
    for stage in chosen:
        stage[first] = {**(stage.get(first) or {}), rest[0]: value} if rest else value


def check_names(settings: RunSettings) -> None:
    """Raise `ValueError` unless stages have names of their own that can be folders."""
    names = [stage.name for stage in settings.stages]
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"The name {name!r} of a stage must consist of letters, digits, _ and -.")
        if names.count(name) > 1:
            raise ValueError(f"{names.count(name)} stages are called {name!r}: give each a name of its own.")


def check_positive(where: str, settings: Any, names: Iterable[str]) -> None:
    """Raise `ValueError` if one of these fields is given and not above 0."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise ValueError(f"{where}{name} is {value}, but must be above 0.")


def check_keys(where: str, raw: Any, known: Iterable[str]) -> None:
    """Raise `ValueError` if `raw` is no mapping, or has a key that is not known."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} must hold keys with values, but holds {raw!r}.")
    known = list(known)
    for key in raw:
        if key not in known:
            close = get_close_matches(str(key), known, 1)
            hint = f" Do you mean {close[0]}?" if close else ""
            if key == "tags":
                hint = f" tag_source says where tags come from: {', '.join(TAG_SOURCES)}."
            raise ValueError(f"{where}: there is no key {key!r}.{hint} The keys are {', '.join(known)}.")


def build(kind: Any, value: Any, where: str) -> Any:
    """`value`, as YAML has it, as a `kind`: a dataclass, a list of one, or a plain type or a choice of such.

    Raises:
        ValueError: if it is none.
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
    """A dataclass from a mapping of its fields."""
    types = get_type_hints(kind)
    check_keys(where, value, types)
    for entry in fields(kind):
        if entry.name not in value and entry.default is MISSING and entry.default_factory is MISSING:
            raise ValueError(f"{where}: the key {entry.name} is missing.")
    return kind(**{name: build(types[name], item, f"{where}: {name}") for name, item in value.items()})


__all__ = ["DataSettings", "RunSettings", "StageSettings", "load_settings"]
