"""The stages of LION's training: which parts of the model each stage trains, and which it freezes.

Source: LION (arXiv:2311.11860), section 3.4, "Stage-wise Instruction-tuning". `stage_models.py` builds the initial
models of the stages, and `trainable_checkpoints.py` saves the trained parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ..configuration_lion import LionConfig
from ..modeling_lion import LionForConditionalGeneration

ADAPTERS = "language_model.*.feed_forward.adapter"
"""The adapters and, if there are two, their router."""

BASE_PARTS = ("vision_model", "language_model")
"""Parts that no stage trains."""

PARTS = (
    "vision_model.post_layernorm", "query_tokens", "qformer", "language_projection", "aggregator",
    "aggregator_projection", ADAPTERS, "soft_prompt", *BASE_PARTS,
)  # fmt: skip
"""All parts of a model, as patterns of module names; a parameter belongs to the first part that matches."""

QFORMER_PARTS = ("query_tokens", "qformer", "vision_model.post_layernorm", "language_projection")
AGGREGATOR_PARTS = ("aggregator", "aggregator_projection")
LANGUAGE_PARTS = (ADAPTERS, "soft_prompt")


@dataclass(frozen=True)
class Stage:
    """A training stage.

    Attributes:
        name: the stage's key in `STAGES`.
        number: position in the order of training, from 1.
        visual_branch: the model's `visual_branch`; see `LionConfig`.
        num_adapters: the model's `num_adapters`; see `LionT5Config`.
        task_types: the task types that the stage trains on, from `TASK_TYPES`.
        parts: the parts that the stage trains, from `PARTS`.
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
"""The three stages of the paper, and the fourth stage of the released code, which continues from the third."""


@dataclass(frozen=True)
class PartReport:
    """Parameter counts of one part.

    Attributes:
        name: the part, from `PARTS`.
        total: number of parameters.
        trainable: number of trainable parameters.
        unused: number of parameters that do not affect the output, and so are not trained (`reaches_no_output`).
    """

    name: str
    total: int
    trainable: int
    unused: int


@dataclass(frozen=True)
class StageReport:
    """Trainable parameters of a model in a stage; `str(report)` formats them as a table.

    Attributes:
        stage: the stage.
        parts: one report per part of the model.
    """

    stage: Stage
    parts: tuple[PartReport, ...]

    @property
    def total(self) -> int:
        """Total number of parameters."""
        return sum(part.total for part in self.parts)

    @property
    def trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(part.trainable for part in self.parts)

    @property
    def unused(self) -> int:
        """Number of parameters that do not affect the output. The paper's numbers count them as trained."""
        return sum(part.unused for part in self.parts)

    def __str__(self) -> str:
        rows = [(part.name, part.trainable, part.total) for part in self.parts]
        rows.append(("all", self.trainable, self.total))
        lines = [f"stage {self.stage.number}, {self.stage.name}: {' and '.join(self.stage.task_types)} data"]
        lines.append(f"{'part':<40}{'trainable':>15}{'total':>15}{'share':>9}")
        lines += [f"{name:<40}{some:>15,}{total:>15,}{some / total:>9.2%}" for name, some, total in rows]
        if self.unused:
            lines.append(f"{self.unused:,} parameters of the Q-Former are not trained: they do not affect the output.")
        return "\n".join(lines)


def get_stage(stage: str | int | Stage) -> Stage:
    """Look up a stage by name or number.

    Raises:
        ValueError: if there is no such stage.
    """
    if isinstance(stage, Stage):
        return stage
    for known in STAGES.values():
        if str(stage) in (known.name, str(known.number)):
            return known
    names = ", ".join(f"{known.name} ({known.number})" for known in STAGES.values())
    raise ValueError(f"There is no stage {stage!r}. The stages are {names}.")


def part_of(name: str) -> str:
    """Return the part in `PARTS` that a parameter belongs to.

    Raises:
        ValueError: if it is not one of LION's parameters.
    """
    for part in PARTS:
        if fnmatchcase(name, f"{part}.*"):
            return part
    raise ValueError(f"{name} is not a parameter of LionForConditionalGeneration.")


def reaches_no_output(name: str, config: LionConfig) -> bool:
    """Whether no output of the model depends on a parameter, so that its gradient is `None` or zero.

    This is true for the feed-forward network of the text positions in the Q-Former's last layer, because only the query
    positions are used afterwards. The reference code trains it; here it is frozen, because training it would only cost
    memory and apply weight decay to it.
    """
    last = f"qformer.encoder.layer.{config.qformer_config.num_hidden_layers - 1}"
    return name.startswith((f"{last}.intermediate.", f"{last}.output."))


def check_fits(config: LionConfig, stage: Stage) -> None:
    """Raise `ValueError` if the stage does not train models with this configuration."""
    found = (config.visual_branch, config.text_config.num_adapters)
    if found != (stage.visual_branch, stage.num_adapters):
        raise ValueError(
            f"Stage {stage.number} ({stage.name}) trains a model with visual_branch {stage.visual_branch!r} and "
            f"num_adapters {stage.num_adapters}, but this one has {found[0]!r} and {found[1]}."
        )


def trainable_parameters(
    model: LionForConditionalGeneration, stage: str | int | Stage
) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the names and parameters of `model` that a stage trains.

    Raises:
        ValueError: if the model does not fit the stage.
    """
    stage = get_stage(stage)
    check_fits(model.config, stage)
    for name, parameter in model.named_parameters():
        if part_of(name) in stage.parts and not reaches_no_output(name, model.config):
            yield name, parameter


def apply_stage(model: LionForConditionalGeneration, stage: str | int | Stage) -> StageReport:
    """Set `requires_grad` of the parameters of `model` for a stage. The frozen vision tower stays in eval mode.

    Raises:
        ValueError: if the model does not fit the stage, or a parameter that the stage trains is quantized.
    """
    stage = get_stage(stage)
    trainable = dict(trainable_parameters(model, stage))
    for name, parameter in trainable.items():
        if not parameter.is_floating_point():
            raise ValueError(f"Stage {stage.number} trains {name}, but it is quantized ({parameter.dtype}).")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    model.train(model.training)  # the model keeps a frozen tower in eval mode
    return _report_stage(model, stage)


def _report_stage(model: LionForConditionalGeneration, stage: Stage) -> StageReport:
    """Count the trainable parameters of `model` by part."""
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
