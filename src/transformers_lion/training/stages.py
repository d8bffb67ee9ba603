"""The stages of LION's training: which parts of the model learn in each, and how the others are frozen.

Source: LION (arXiv:2311.11860), section 3.4, "Stage-wise Instruction-tuning". `stage_models.py` makes the models that
the stages begin with, `trainable_checkpoints.py` saves what they trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ..configuration_lion import LionConfig
from ..modeling_lion import LionForConditionalGeneration

ADAPTERS = "language_model.*.feed_forward.adapter"
"""The adapters and, where there are two, their router."""

BASE_PARTS = ("vision_model", "language_model")
"""What no stage trains."""

PARTS = (
    "vision_model.post_layernorm", "query_tokens", "qformer", "language_projection", "aggregator",
    "aggregator_projection", ADAPTERS, "soft_prompt", *BASE_PARTS,
)  # fmt: skip
"""All parts of a model, as patterns of module names: a parameter belongs to the first that it lies in."""

QFORMER_PARTS = ("query_tokens", "qformer", "vision_model.post_layernorm", "language_projection")
AGGREGATOR_PARTS = ("aggregator", "aggregator_projection")
LANGUAGE_PARTS = (ADAPTERS, "soft_prompt")


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: its key in `STAGES`.
        number: its place in the order of training, from 1.
        visual_branch: the model's, as in `LionConfig`.
        num_adapters: the model's, as in `LionT5Config`.
        task_types: the kinds of data that it trains on, of `TASK_TYPES`.
        parts: what it trains, of `PARTS`.
    """

    name: str
    number: int
    visual_branch: str
    num_adapters: int
    task_types: tuple[str, ...]
    parts: tuple[str, ...]


MIXTURE_PARTS = QFORMER_PARTS + AGGREGATOR_PARTS + LANGUAGE_PARTS

STAGES = {
    stage.name: stage
    for stage in (
        Stage("image_level", 1, "qformer", 1, ("image_level",), QFORMER_PARTS + LANGUAGE_PARTS),
        Stage("region_level", 2, "aggregator", 1, ("region_level",), AGGREGATOR_PARTS + LANGUAGE_PARTS),
        Stage("mixture", 3, "both", 2, ("region_level", "image_level"), MIXTURE_PARTS),
        Stage("released", 4, "both", 2, ("region_level", "image_level"), MIXTURE_PARTS),
    )
}
"""The three stages of the paper, and the fourth of the released code, which goes on from the third's checkpoint."""


@dataclass(frozen=True)
class PartReport:
    """Numbers of parameters of one part.

    Attributes:
        name: of `PARTS`.
        total: all.
        trainable: those that train.
        unused: those that reach no output, and so do not train (`reaches_no_output`).
    """

    name: str
    total: int
    trainable: int
    unused: int


@dataclass(frozen=True)
class StageReport:
    """What trains in a stage; `str` makes a table of it.

    Attributes:
        stage: the stage.
        parts: one for each part that the model has.
    """

    stage: Stage
    parts: tuple[PartReport, ...]

    @property
    def total(self) -> int:
        """Number of all parameters."""
        return sum(part.total for part in self.parts)

    @property
    def trainable(self) -> int:
        """Number of parameters that train."""
        return sum(part.trainable for part in self.parts)

    @property
    def unused(self) -> int:
        """Number of parameters of trained parts that reach no output. The paper's figures count them as trained."""
        return sum(part.unused for part in self.parts)

    def __str__(self) -> str:
        rows = [(part.name, part.trainable, part.total) for part in self.parts]
        rows.append(("all", self.trainable, self.total))
        lines = [f"stage {self.stage.number}, {self.stage.name}: {' and '.join(self.stage.task_types)} data"]
        lines.append(f"{'part':<40}{'trainable':>15}{'total':>15}{'share':>9}")
        lines += [f"{name:<40}{some:>15,}{total:>15,}{some / total:>9.2%}" for name, some, total in rows]
        if self.unused:
            lines.append(f"{self.unused:,} parameters of the Q-Former stay out: they reach no output.")
        return "\n".join(lines)


def get_stage(stage: str | int | Stage) -> Stage:
    """The stage of that name or number.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(stage, Stage):
        return stage
    for known in STAGES.values():
        if str(stage) in (known.name, str(known.number)):
            return known
    names = ", ".join(f"{known.name} ({known.number})" for known in STAGES.values())
    raise ValueError(f"There is no stage {stage!r}. The stages are {names}.")


def part_of(name: str) -> str:
    """The part in `PARTS` that a parameter belongs to.

    Raises:
        ValueError: if it is none of LION's.
    """
    for part in PARTS:
        if fnmatchcase(name, f"{part}.*"):
            return part
    raise ValueError(f"{name} is no parameter of LionForConditionalGeneration.")


def reaches_no_output(name: str, config: LionConfig) -> bool:
    """Whether no output of the model depends on a parameter, so that its gradient is none or zero.

    That is the feed-forward of the text positions in the Q-Former's last layer: only its query positions are read. The
    reference counts it as trained; here it is frozen, as it would only cost memory and be drawn in by weight decay.
    """
    last = f"qformer.encoder.layer.{config.qformer_config.num_hidden_layers - 1}"
    return name.startswith((f"{last}.intermediate.", f"{last}.output."))


def check_fits(config: LionConfig, stage: Stage) -> None:
    """Raise `ValueError` if a model of this configuration is not the one that the stage trains."""
    found = (config.visual_branch, config.text_config.num_adapters)
    if found != (stage.visual_branch, stage.num_adapters):
        raise ValueError(
            f"Stage {stage.number} ({stage.name}) trains a model with visual_branch {stage.visual_branch!r} and "
            f"num_adapters {stage.num_adapters}, but this one has {found[0]!r} and {found[1]}."
        )


def trainable_parameters(
    model: LionForConditionalGeneration, stage: str | int | Stage
) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of `model` that train in a stage.

    Raises:
        ValueError: if the model is not the one that the stage trains.
    """
    stage = get_stage(stage)
    check_fits(model.config, stage)
    for name, parameter in model.named_parameters():
        if part_of(name) in stage.parts and not reaches_no_output(name, model.config):
            yield name, parameter


def apply_stage(model: LionForConditionalGeneration, stage: str | int | Stage) -> StageReport:
    """Freeze and thaw the parameters of `model` for a stage. The frozen vision tower goes to eval mode and stays there.

    Raises:
        ValueError: if the model is not the one that the stage trains, or if what it trains is quantised.
    """
    stage = get_stage(stage)
    trainable = dict(trainable_parameters(model, stage))
    for name, parameter in trainable.items():
        if not parameter.is_floating_point():
            raise ValueError(f"{name} is to be trained in stage {stage.number}, but is quantised ({parameter.dtype}).")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    model.train(model.training)  # the model keeps a frozen tower in eval mode
    return _report_stage(model, stage)


def _report_stage(model: LionForConditionalGeneration, stage: Stage) -> StageReport:
    """Count what of `model` is trainable now, part by part."""
    counts = {part: [0, 0, 0] for part in PARTS}
    for name, parameter in model.named_parameters():
        count, size = counts[part_of(name)], parameter.numel()
        count[0] += size
        count[1] += size * parameter.requires_grad
        count[2] += size * reaches_no_output(name, model.config)
    return StageReport(stage, tuple(PartReport(part, *count) for part, count in counts.items() if count[0]))


__all__ = [
    "ADAPTERS",
    "BASE_PARTS",
    "PARTS",
    "STAGES",
    "PartReport",
    "Stage",
    "StageReport",
    "apply_stage",
    "check_fits",
    "get_stage",
    "part_of",
    "trainable_parameters",
]
