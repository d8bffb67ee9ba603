"""The initial models of the stages: a base with new parts for the first two, their combination for the third.

Source: LION (arXiv:2311.11860), section 3.4: the experts of the third stage are the adapters of the first two. The
origin of every parameter is recorded, so that none is left initialized by accident.
"""

import copy
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import logging

from ..configuration_lion import TASK_TYPES, LionConfig
from ..modeling_lion import LionForConditionalGeneration
from ..processing_lion import LionProcessor
from .stages import ADAPTERS, BASE_PARTS, PARTS, STAGES, Stage, check_fits, get_stage, part_of

ModelSource = LionForConditionalGeneration | str | os.PathLike
"""A model, or an argument for `from_pretrained`."""

SOFT_PROMPTS = ("image_level", "region_level", "mean")
"""The choices for the mixture's initial soft prompt."""

TAGGER = "tagger"
"""The subfolder of a checkpoint that contains its tagger."""

NO_FACTS = {"num_adapters", "architectures", "dtype", "transformers_version", "_name_or_path"}
"""Configuration fields that may differ between two models with the same base."""


@dataclass(frozen=True)
class StageModel:
    """The initial model of a stage; `str(stage_model)` formats the origins as a table.

    Attributes:
        model: the model, on the CPU and in eval mode. No parameters are frozen; call `apply_stage` for that.
        origins: the origin of each parameter: `"base"`, the stage that trained it, `"both"` if two stages agree,
            `"mean"` of two stages, or `"initialized"`.
    """

    model: LionForConditionalGeneration
    origins: dict[str, str]

    def __str__(self) -> str:
        counts: Counter[tuple[int, str]] = Counter()
        for name, parameter in self.model.named_parameters():
            counts[PARTS.index(part_of(name)), self.origins[name]] += parameter.numel()
        rows = [f"{PARTS[part]:<40}{origin:<15}{count:>15,}" for (part, origin), count in sorted(counts.items())]
        return "\n".join([f"{'part':<40}{'from':<15}{'parameters':>15}", *rows])


def start_stage(
    stage: str | int | Stage,
    base: ModelSource,
    reuse: Collection[str] | None = None,
    dtype: str | torch.dtype = "auto",
) -> StageModel:
    """Build the initial model of the first or second stage: a base with the stage's visual branch and a new adapter.

    Args:
        stage: the first or second stage.
        base: any LION model, which provides the vision tower and the language model.
        reuse: parts of the stage to take from the base as well; by default all that it has. `()` initializes all of
            them from scratch. (A Q-Former initialized from scratch is far worse than a pretrained one.)
        dtype: dtype to load the base in, if it is a folder; `"auto"` is its own. Use `"float32"` for training.

    Raises:
        ValueError: if it is a different stage, or a part to reuse is not part of the stage or not in the base.
    """
    stage = get_stage(stage)
    if stage.num_adapters > 1:
        raise ValueError(
            f"Stage {stage.number} ({stage.name}) does not start from a base: build the third stage's model with "
            "combine_stages; the fourth stage continues from the third."
        )
    source = load(base, dtype)
    present = {part_of(name) for name, _ in source.named_parameters()}
    reusable = [part for part in stage.parts if part in present and part != ADAPTERS]
    for part in reuse or ():
        if part not in reusable:
            raise ValueError(f"Stage {stage.number} cannot reuse {part!r} of this base, only {reusable}.")
    taken = {*BASE_PARTS, *(reusable if reuse is None else reuse)}
    tensors = {name: tensor for name, tensor in _tensors_of(source, base).items() if part_of(name) in taken}
    fields = source.config.to_dict()
    fields["visual_branch"] = stage.visual_branch
    fields["text_config"]["num_adapters"] = stage.num_adapters
    return _assemble(LionConfig.from_dict(fields), source, tensors, dict.fromkeys(tensors, "base"))


def combine_stages(
    stage1: ModelSource,
    stage2: ModelSource,
    output_dir: str | os.PathLike | None = None,
    soft_prompt: str = "image_level",
    dtype: str | torch.dtype = "auto",
) -> StageModel:
    """Build the initial model of the third stage: both visual branches, and both adapters with a new router.

    The Q-Former branch comes from the first stage and the aggregator branch from the second. The second stage's adapter
    becomes adapter 0, the first stage's adapter 1. The router initially selects one adapter per task, so that the
    language model computes exactly what that of the second stage does for region-level samples, and what that of the
    first does for image-level samples (except for the soft prompt, of which there is only one).

    Args:
        stage1, stage2: the models trained in the first and second stage, with the same base.
        output_dir: folder to save the model to, with the first processor and tagger found in the two folders.
        soft_prompt: `"image_level"` for that of the first stage, `"region_level"` for that of the second, or `"mean"`.
            It is not known what the reference does. With the default, image-level tasks, which tags were made for,
            keep the soft prompt that they were trained with; with the mean, neither kind of task does.
        dtype: dtype to load folders in; `"auto"` is their own.

    Raises:
        ValueError: if a model does not fit its stage, the two differ in vision tower or language model, `soft_prompt`
            is invalid, or `output_dir` is one of the sources.
    """
    if soft_prompt not in SOFT_PROMPTS:
        raise ValueError(f"soft_prompt is {soft_prompt!r}, but must be one of {SOFT_PROMPTS}.")
    folders = [Path(source) for source in (stage1, stage2) if not isinstance(source, LionForConditionalGeneration)]
    if output_dir is not None and Path(output_dir).resolve() in [folder.resolve() for folder in folders]:
        raise ValueError(f"output_dir {str(output_dir)!r} is the folder of one of the stages; choose another.")
    first, second = load(stage1, dtype), load(stage2, dtype)
    check_fits(first.config, STAGES["image_level"])
    check_fits(second.config, STAGES["region_level"])
    _check_same_facts(first.config, second.config)
    _check_same_base(first, second)
    fields = first.config.to_dict()
    fields["visual_branch"] = STAGES["mixture"].visual_branch
    fields["text_config"]["num_adapters"] = STAGES["mixture"].num_adapters
    fields["aggregator_config"] = second.config.aggregator_config.to_dict()
    tensors, origins = _mix(_tensors_of(first, stage1), _tensors_of(second, stage2), soft_prompt)
    result = _assemble(LionConfig.from_dict(fields), first, tensors, origins)
    assert all(".router." in name for name, origin in result.origins.items() if origin == "initialized")
    if output_dir is not None:
        result.model.save_pretrained(output_dir)
        for folder in folders:
            if (folder / "processor_config.json").exists():
                LionProcessor.from_pretrained(folder).save_pretrained(output_dir)
                break
        tagger = tagger_of(*(folder / TAGGER for folder in folders))
        if tagger is not None:
            shutil.copytree(tagger, Path(output_dir) / TAGGER, dirs_exist_ok=True)
    return result


def tagger_of(*folders: str | os.PathLike) -> Path | None:
    """Return the first folder that contains a tagger, if any."""
    return next((Path(folder) for folder in folders if (Path(folder) / "config.json").exists()), None)


def _mix(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], soft_prompt: str
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the mixture's tensors and their origins, from the tensors of the first two stages."""
    tensors, origins = {}, {}
    for task, stage_tensors in (("image_level", first), ("region_level", second)):
        for name, tensor in stage_tensors.items():
            part = part_of(name)
            if part == "soft_prompt" and soft_prompt not in (task, "mean"):
                continue
            if part == ADAPTERS:
                name = name.replace(".adapters.0.", f".adapters.{TASK_TYPES.index(task)}.")
            tensors[name], origins[name] = tensor, "both" if part in BASE_PARTS else task
    if soft_prompt == "mean":
        for name in [name for name in first if part_of(name) == "soft_prompt"]:
            tensors[name], origins[name] = (first[name] + second[name]) / 2, "mean"
    return tensors, origins


def load(source: ModelSource, dtype: str | torch.dtype) -> LionForConditionalGeneration:
    """Load a model, unless `source` is one."""
    if isinstance(source, LionForConditionalGeneration):
        return source
    return LionForConditionalGeneration.from_pretrained(source, dtype=dtype)


def _tensors_of(model: LionForConditionalGeneration, source: ModelSource) -> dict[str, torch.Tensor]:
    """Return the parameters of `model`, copied if the model belongs to the caller."""
    return {name: value.detach().to("cpu", copy=model is source) for name, value in model.named_parameters()}


def _assemble(
    config: LionConfig,
    source: LionForConditionalGeneration,
    tensors: dict[str, torch.Tensor],
    origins: dict[str, str],
) -> StageModel:
    """Build a model from tensors, initialize the rest, and copy dtypes and generation settings from `source`."""
    with _quiet_loading():
        model, info = LionForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=dict(tensors), dtype=source.dtype, output_loading_info=True
        )
    assert not info["unexpected_keys"], info["unexpected_keys"]
    assert not info["mismatched_keys"], info["mismatched_keys"]
    adapter_dtype = next(value.dtype for name, value in source.named_parameters() if part_of(name) == ADAPTERS)
    for name, parameter in model.named_parameters():
        if name in tensors:
            parameter.data = tensors[name]  # keeps the source's dtype, which may differ between parts
        elif part_of(name) == ADAPTERS:
            parameter.data = parameter.data.to(adapter_dtype)
    model.generation_config = copy.deepcopy(source.generation_config)
    return StageModel(model, {name: origins.get(name, "initialized") for name, _ in model.named_parameters()})


def _check_same_facts(first: LionConfig, second: LionConfig) -> None:
    """Raise `ValueError` unless two configurations agree on vision tower, language model and soft prompt."""
    for part in ("vision_config", "text_config"):
        ours, theirs = getattr(first, part).to_dict(), getattr(second, part).to_dict()
        _check_same_fields(f"{part}: ", ours, theirs, (ours.keys() | theirs.keys()) - NO_FACTS)
    fields = ("use_soft_prompt", "soft_prompt_token_id")
    _check_same_fields("", first.to_dict(), second.to_dict(), fields)


def _check_same_fields(where: str, first: dict, second: dict, names: Collection[str]) -> None:
    """Raise `ValueError` naming the first field that differs between two stages."""
    for name in sorted(names):
        if first.get(name) != second.get(name):
            raise ValueError(
                f"{where}{name} is {first.get(name)!r} in stage 1, but {second.get(name)!r} in stage 2. Both must be "
                "trained on the same base."
            )


def _check_same_base(first: LionForConditionalGeneration, second: LionForConditionalGeneration) -> None:
    """Raise `ValueError` unless the vision towers and language models of two stages have equal tensors."""
    others = dict(second.named_parameters())
    for name, ours in first.named_parameters():
        if part_of(name) not in BASE_PARTS:
            continue
        theirs = others[name]
        if ours.dtype != theirs.dtype:
            raise ValueError(
                f"{name} is {ours.dtype} in stage 1, but {theirs.dtype} in stage 2; pass dtype= to load both alike."
            )
        if not torch.equal(ours, theirs):
            difference = (ours.double() - theirs.double()).abs()
            raise ValueError(
                f"{name} differs between stage 1 and stage 2, in {int(difference.count_nonzero())} of {ours.numel()} "
                f"numbers and by up to {difference.max().item():.3g}. Both must be trained on the same base, which no "
                "stage changes."
            )


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Silence transformers' report of missing parameters, which are expected here."""
    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


__all__ = ["SOFT_PROMPTS", "StageModel", "combine_stages", "start_stage"]
