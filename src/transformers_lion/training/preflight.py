"""Checks of a run before training: where models come from, and whether files and settings are valid."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from transformers.integrations import get_available_reporting_integrations

from ..configuration_lion import LionConfig
from .feature_cache import check_not_augmented
from .record_files import find_files, is_url
from .resuming import last_checkpoint
from .run_settings import RunSettings, StageSettings
from .stages import STAGES, check_fits, get_stage

MODEL, SETTINGS = "model", "settings.yaml"
"""In a stage's folder: the finished model, and the settings that training started with."""


def check_run(settings: RunSettings) -> list[tuple[str, ...]]:
    """Check the settings of a run, as far as possible before training.

    Returns:
        For each stage, the folder of its initial model, or the two folders to combine.

    Raises:
        ValueError: if a setting is invalid.
        FileNotFoundError: if a file or folder is missing.
    """
    _check_reporters(settings.report_to)
    origins = [_origin_of(settings, index) for index in range(len(settings.stages))]
    for stage, origin in zip(settings.stages, origins, strict=True):
        if settings.feature_cache is not None:
            check_not_augmented(stage.augment, f"Stage {stage.name}: ")
        _check_inputs(settings, stage, origin)
        _check_unchanged(settings, stage, origin)
    return origins


def folder_of(settings: RunSettings, stage: StageSettings) -> Path:
    """Return the folder of a stage."""
    return Path(settings.output) / stage.name


def _check_reporters(names: Sequence[str]) -> None:
    """Raise `ValueError` if the Trainer cannot use one of the reporting integrations."""
    available = get_available_reporting_integrations()
    for name in names:
        if name not in available:
            has = ", ".join(sorted(available)) or "none"
            raise ValueError(f"report_to has {name!r}, which is unknown or not installed; installed are: {has}.")


def _origin_of(settings: RunSettings, index: int) -> tuple[str, ...]:
    """Return the folder of a stage's initial model, or the two folders to combine.

    Raises:
        ValueError: if the settings do not specify it.
    """
    stage, kind = settings.stages[index], get_stage(settings.stages[index].stage)
    earlier = {other.name: other for other in settings.stages[:index]}
    last = {get_stage(other.stage).name: other.name for other in settings.stages[:index]}
    pair = (last.get("image_level"), last.get("region_level"))
    chosen: list[str | None]
    if stage.model is not None:
        chosen = list(stage.model) if isinstance(stage.model, list) else [stage.model]
    elif kind is STAGES["mixture"] and None not in pair:
        chosen = list(pair)
    else:
        before = last.get("released", last.get("mixture"))
        chosen = [before if kind is STAGES["released"] and before is not None else settings.model]
    if len(chosen) != 1 and (len(chosen) != 2 or kind is not STAGES["mixture"]):
        raise ValueError(f"Stage {stage.name}: model lists {len(chosen)} folders; only the mixture combines two.")
    if chosen[0] is None:
        raise ValueError(f"Stage {stage.name} has no model to start from: set model, for the run or for the stage.")
    return tuple(str(folder_of(settings, earlier[x]) / MODEL) if x in earlier else str(x) for x in chosen)


def _check_inputs(settings: RunSettings, stage: StageSettings, origin: tuple[str, ...]) -> None:
    """Check the inputs of a stage, as far as they exist already.

    Raises:
        FileNotFoundError: if a file of records or a folder does not exist.
        ValueError: if a folder holds no records, the initial model does not fit the stage, or settings conflict.
    """
    for source in (*stage.data, *stage.evaluation):
        for path in source.paths:
            if not is_url(path):
                find_files(path)
        if source.images:
            _check_exists(Path(source.images))
    made_here = {str(folder_of(settings, other) / MODEL): get_stage(other.stage) for other in settings.stages}
    kind, configs = get_stage(stage.stage), []
    for folder in origin:
        if folder in made_here:
            made = made_here[folder]
            fields = {"visual_branch": made.visual_branch, "text_config": {"num_adapters": made.num_adapters}}
            configs.append(LionConfig(**fields))
        else:
            for name in ("config.json", "processor_config.json"):
                _check_exists(Path(folder) / name)
            configs.append(LionConfig.from_pretrained(folder))
    if stage.tagger is not None:
        _check_exists(Path(stage.tagger) / "config.json")
    if len(configs) == 2:
        check_fits(configs[0], STAGES["image_level"])
        check_fits(configs[1], STAGES["region_level"])
    elif kind.num_adapters > 1:
        check_fits(configs[0], kind)
    if stage.reuse is not None and kind.num_adapters > 1:
        raise ValueError(f"Stage {stage.name}: reuse is for the first two stages, not for {kind.name}.")
    if stage.tag_source == "tagger" and stage.tagger is None:
        raise ValueError(
            f'Stage {stage.name}: tag_source is "tagger", but there is no tagger; set tagger to its folder.'
        )
    if stage.tagger is not None and stage.tag_source in ("data", "none"):
        raise ValueError(
            f"Stage {stage.name}: the tagger {stage.tagger} would not be used, because tag_source is "
            f'"{stage.tag_source}".'
        )


def _check_exists(path: Path) -> None:
    """Raise `FileNotFoundError` if there is no such file or folder."""
    if not path.exists():
        raise FileNotFoundError(2, os.strerror(2), str(path))


def noted_settings(settings: RunSettings, stage: StageSettings, origin: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings that a stage's result depends on."""
    return {**asdict(stage), "model": list(origin), "seed": settings.seed}


def _check_unchanged(settings: RunSettings, stage: StageSettings, origin: tuple[str, ...]) -> None:
    """Raise `ValueError` if a stage has trained with other settings. Stages without a checkpoint start again."""
    file = folder_of(settings, stage) / SETTINGS
    if not file.exists():
        return
    before, now = yaml.safe_load(file.read_text(encoding="utf-8")), noted_settings(settings, stage, origin)
    for key, value in now.items():
        if key in before and before[key] != value and _has_trained(file.parent):
            raise ValueError(
                f"Stage {stage.name} was started with {key} {before[key]!r}, but now it is {value!r}. Use the old "
                f"setting or another output, or delete {file.parent} to start the stage again."
            )


def _has_trained(folder: Path) -> bool:
    """Whether a stage's folder contains a finished model or a checkpoint to resume from."""
    return (folder / MODEL).exists() or last_checkpoint(folder) is not None


__all__ = ["MODEL", "SETTINGS", "check_run", "folder_of", "noted_settings"]
