"""The models that the stages begin with: a base with new parts for the first two, what those learned for the third.

Source: LION (arXiv:2311.11860), section 3.4: the third stage's experts are the adapters of the first two. Every
parameter of a model made here has a known origin; none is left as it happened to be.
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
"""A model, or what `from_pretrained` takes."""

SOFT_PROMPTS = ("image_level", "region_level", "mean")
"""Whose soft prompt the mixture may begin with."""

TAGGER = "tagger"
"""The folder in a checkpoint's that holds its tagger."""

NO_FACTS = {"num_adapters", "architectures", "dtype", "transformers_version", "_name_or_path"}
"""Fields of a configuration that may differ between two models on one base."""


@dataclass(frozen=True)
class StageModel:
    """A model that a stage begins with; `str` makes a table of its origins.

    Attributes:
        model: on the CPU, in eval mode. Nothing is frozen yet: that is `apply_stage`'s.
        origins: for each parameter `"base"`, or the stage that trained it, or `"both"` where two stages agree, or
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
    """The model that the first or second stage begins with: its visual branch and one new adapter, on a base.

    Args:
        stage: the first or second stage.
        base: any LION; the vision tower and the language model are taken from it.
        reuse: parts of the stage that are taken from the base too; by default all that it has. `()` starts all of them
            anew. (A Q-Former that starts anew is far from one that was pre-trained.)
        dtype: to load the base in, if it is a folder; `"auto"` is the folder's own. For training, `"float32"`.

    Raises:
        ValueError: if it is another stage, or if a part to reuse is none of the stage's or not in the base.
    """
    stage = get_stage(stage)
    if stage.num_adapters > 1:
        raise ValueError(
            f"Stage {stage.number} ({stage.name}) does not start from a base: combine_stages makes the third stage's "
            "model, and the fourth goes on from the third's."
        )
    source = load(base, dtype)
    present = {part_of(name) for name, _ in source.named_parameters()}
    reusable = [part for part in stage.parts if part in present and part != ADAPTERS]
    for part in reuse or ():
        if part not in reusable:
            raise ValueError(f"Stage {stage.number} cannot reuse {part!r} of this base, but only {reusable}.")
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
    """The model that the third stage begins with: both visual branches, and both adapters under a new router.

    The Q-Former's side is the first stage's, the aggregator's side the second's. The second's adapter becomes adapter
    0, the first's adapter 1; the router starts with each alone on its own task, so that for region-level samples the
    language model computes exactly what the second stage's does, and for image-level ones what the first's does (but
    for the soft prompt, of which there is only one).

    Args:
        stage1, stage2: the models that the first and the second stage trained, on one base.
        output_dir: where to save model, configurations, and of the two folders the first processor and tagger there is.
        soft_prompt: `"image_level"` for the first stage's, `"region_level"` for the second's, or their `"mean"`. What
            the reference does here is not known. The default leaves the image-level tasks, which tags were made for,
            with what they were trained with; the mean of two is what neither was trained with.
        dtype: to load folders in; `"auto"` is their own.

    Raises:
        ValueError: if a model is not of its stage; if the two differ in vision tower or language model; if there is no
            such soft prompt; if the output is one of the sources.
    """
    if soft_prompt not in SOFT_PROMPTS:
        raise ValueError(f"soft_prompt is {soft_prompt!r}, but must be one of {SOFT_PROMPTS}.")
    folders = [Path(source) for source in (stage1, stage2) if not isinstance(source, LionForConditionalGeneration)]
    if output_dir is not None and Path(output_dir).resolve() in [folder.resolve() for folder in folders]:
        raise ValueError(f"output_dir {str(output_dir)!r} is the folder of one of the stages, which would be lost.")
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
        result.model.save_pretrained(output_dir)  # nothing of an older model there stays
        for folder in folders:
            if (folder / "processor_config.json").exists():
                LionProcessor.from_pretrained(folder).save_pretrained(output_dir)
                break
        tagger = tagger_of(*(folder / TAGGER for folder in folders))
        if tagger is not None:
            shutil.copytree(tagger, Path(output_dir) / TAGGER, dirs_exist_ok=True)
    return result


def tagger_of(*folders: str | os.PathLike) -> Path | None:
    """The first of several folders that holds a tagger."""
    return next((Path(folder) for folder in folders if (Path(folder) / "config.json").exists()), None)


def _mix(
    first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], soft_prompt: str
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors of the mixture under its names, and their origins, from those of the first two stages."""
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
    """The model, loaded if it is not one yet."""
    if isinstance(source, LionForConditionalGeneration):
        return source
    return LionForConditionalGeneration.from_pretrained(source, dtype=dtype)


def _tensors_of(model: LionForConditionalGeneration, source: ModelSource) -> dict[str, torch.Tensor]:
    """The parameters of `model`, copied if it belongs to the caller."""
    return {name: value.detach().to("cpu", copy=model is source) for name, value in model.named_parameters()}


def _assemble(
    config: LionConfig,
    source: LionForConditionalGeneration,
    tensors: dict[str, torch.Tensor],
    origins: dict[str, str],
) -> StageModel:
    """A model of these tensors, with the rest initialized, and dtypes and generation settings as those of `source`."""
    with _quiet_loading():
        model, info = LionForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=dict(tensors), dtype=source.dtype, output_loading_info=True
        )
    assert not info["unexpected_keys"], info["unexpected_keys"]
    assert not info["mismatched_keys"], info["mismatched_keys"]
    adapter_dtype = next(value.dtype for name, value in source.named_parameters() if part_of(name) == ADAPTERS)
    for name, parameter in model.named_parameters():
        if name in tensors:
            parameter.data = tensors[name]  # in the source's dtype, where that differs from part to part
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
    """Raise `ValueError` naming the first of `names` on which two stages' fields differ."""
    for name in sorted(names):
        if first.get(name) != second.get(name):
            raise ValueError(
                f"{where}{name} is {first.get(name)!r} in stage 1, but {second.get(name)!r} in stage 2. Both must be "
                "trained on one base."
            )


def _check_same_base(first: LionForConditionalGeneration, second: LionForConditionalGeneration) -> None:
    """Raise `ValueError` unless two stages' vision towers and language models are the same tensor by tensor."""
    others = dict(second.named_parameters())
    for name, ours in first.named_parameters():
        if part_of(name) not in BASE_PARTS:
            continue
        theirs = others[name]
        if ours.dtype != theirs.dtype:
            raise ValueError(
                f"{name} is {ours.dtype} in stage 1, but {theirs.dtype} in stage 2; dtype= loads both alike."
            )
        if not torch.equal(ours, theirs):
            difference = (ours.double() - theirs.double()).abs()
            raise ValueError(
                f"{name} differs between stage 1 and stage 2, in {int(difference.count_nonzero())} of {ours.numel()} "
                f"numbers and by up to {difference.max().item():.3g}. Both must be trained on one base, which no stage "
                "changes."
            )


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' report of parameters that are missing in what is loaded: they are meant to be."""
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
