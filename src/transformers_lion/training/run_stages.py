"""Implements `lion train`: runs the stages of a run one after the other and resumes interrupted ones.

Each stage has a subfolder of the output folder. It holds `settings.yaml`, the Trainer's checkpoints, `records.jsonl`
with the records that were left out and, once the stage is finished, `log.json`, `curves.png` and `model`. The model is
saved last and appears in one step, so that its presence marks the stage as finished. The folder `model` also holds the
processor and a copy of the tagger of the model that the stage started from.
"""

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, concatenate_datasets
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed
from transformers.integrations import unset_hf_deepspeed_config

from ..configuration_lion import LionConfig
from ..file_utils import LOCK, locked, write_text
from ..modeling_lion import LionForConditionalGeneration
from ..processing_lion import LionProcessor
from ..ram import ImageTagger
from .augmentation import ImageAugmentation
from .collator import LionDataCollator
from .curves import draw_curves
from .data import CheckImages, keep_task_types, load_records, mix_datasets, stream_records
from .distributed import check_processes, find_lion, fsdp_is_requested, gather_model
from .feature_cache import FeatureCache
from .preflight import MODEL, SETTINGS, check_run, folder_of, noted_settings
from .recipe import make_trainer, training_arguments
from .report import RecordReport
from .resuming import train
from .run_settings import DataSettings, RunSettings, StageSettings
from .stage_models import TAGGER, combine_stages, start_stage, tagger_of
from .stages import Stage, apply_stage, get_stage
from .streams import FileSource, RecordStream, TableSource

LOG, CURVES, RECORDS = "log.json", "curves.png", "records.jsonl"

IMAGES = "images.jsonl"
"""In the output folder, shared by all stages: the images that are known to open; see `CheckedImages`."""

Say = Callable[[str], None]
"""Prints a message."""


def run(settings: RunSettings, say: Say = print, progress_bar: bool = True) -> None:
    """Run all stages that are not finished.

    Args:
        settings: from `load_settings`.
        say: called with the messages of each stage.
        progress_bar: whether the Trainer shows a progress bar; otherwise it prints a line per log entry.

    Raises:
        ValueError: if a setting is invalid (checked before training where possible), or another run is writing to the
            output folder.
        OSError: if a file or folder is missing.
    """
    origins = check_run(settings)
    with _reserved(Path(settings.output)):
        for stage, origin in zip(settings.stages, origins, strict=True):
            if (folder_of(settings, stage) / MODEL).exists():
                say(f"{stage.name}: finished, in {folder_of(settings, stage) / MODEL}")
            else:
                run_stage(settings, stage, origin, say, progress_bar)
                _end_reports(settings.report_to)
                gc.collect()  # the Trainer and its model form a reference cycle


@contextmanager
def _reserved(output: Path) -> Iterator[None]:
    """Lock the output folder against other runs; of several processes of one run, the first holds the lock."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    output.mkdir(parents=True, exist_ok=True)
    with locked(output / LOCK, output):
        yield


def run_stage(
    settings: RunSettings, stage: StageSettings, origin: tuple[str, ...], say: Say, progress_bar: bool
) -> None:
    """Train one stage, and save it."""
    kind, folder = get_stage(stage.stage), folder_of(settings, stage)
    folder.mkdir(parents=True, exist_ok=True)
    set_seed(settings.seed)
    unset_hf_deepspeed_config()  # left over from the last stage: with ZeRO-3 set, models are loaded in shards only
    model = _begin_model(kind, origin, stage.reuse)
    arguments = _stage_arguments(settings, stage, folder, progress_bar)
    check_processes(arguments)
    with arguments.main_process_first(local=False, desc="settings"):
        if arguments.should_save:
            write_text(folder / SETTINGS, yaml.safe_dump(noted_settings(settings, stage, origin), sort_keys=False))
            if not any(folder.glob("checkpoint-*")):
                (folder / RECORDS).unlink(missing_ok=True)  # from an earlier attempt, maybe with other settings
    say(f"{stage.name}, from {' and '.join(origin)}\n{apply_stage(model, kind)}")
    processor = LionProcessor.from_pretrained(origin[0])
    report = RecordReport(folder / RECORDS)
    checked_images = folder.parent / IMAGES
    data = _load_data(settings, stage, kind, report, checked_images, arguments.world_size, say)
    evaluation = [_load_source(source, stage, kind, report, checked_images, say) for source in stage.evaluation]
    if settings.feature_cache is not None:
        drawn = (stage.steps or 0) * arguments.train_batch_size * arguments.gradient_accumulation_steps
        num_images = drawn * arguments.world_size if isinstance(data, RecordStream) else len(data)
        say(FeatureCache(settings.feature_cache).describe(model, num_images))
    trainer = make_trainer(
        model,
        processor,
        arguments,
        data,
        concatenate_datasets(evaluation) if evaluation else None,
        collator=_make_collator(processor, stage, settings.seed, report),
        stage=kind,
        trainable_only=stage.trainable_only,
        aggregator_lr_multiplier=stage.aggregator_lr_multiplier,
        feature_cache=settings.feature_cache,
    )
    train(trainer)
    tagger = _find_tagger_folder(origin, stage)
    _save_stage(trainer, folder, stage.name, tagger)
    say(f"{stage.name}: finished, in {folder / MODEL}{'' if tagger is None else f', with the tagger of {tagger}'}")


def _stage_arguments(
    settings: RunSettings, stage: StageSettings, folder: Path, progress_bar: bool
) -> Seq2SeqTrainingArguments:
    """Return the training arguments of a stage; `stage.arguments` override all others."""
    chosen: dict[str, Any] = {
        "max_steps": stage.steps or -1,
        "num_train_epochs": stage.epochs,
        "learning_rate": stage.learning_rate,
        "warmup_steps": stage.warmup_steps,
        "weight_decay": stage.weight_decay,
        "per_device_train_batch_size": stage.batch_size,
        "per_device_eval_batch_size": stage.batch_size,
        "gradient_accumulation_steps": stage.gradient_accumulation,
        "train_sampling_strategy": "sequential" if stage.one_source_per_batch else "random",
        "bf16": stage.bf16,
        "torch_compile": stage.compile,
        "save_steps": stage.save_steps,
        "eval_strategy": "steps" if stage.evaluation else "no",
        "eval_steps": stage.save_steps,
        "seed": settings.seed,
        "dataloader_num_workers": settings.num_workers,
        "report_to": settings.report_to,
        "run_name": f"{Path(settings.output).name}-{stage.name}",
        "disable_tqdm": not progress_bar,
        **stage.arguments,
    }
    return training_arguments(folder, activation_checkpointing=stage.activation_checkpointing, **chosen)


def _begin_model(kind: Stage, origin: tuple[str, ...], reuse: list[str] | None) -> LionForConditionalGeneration:
    """Return the model that a stage starts from: two combined, a base with new parts, or a model as it is."""
    if len(origin) == 2:
        return combine_stages(*origin, dtype="float32").model
    config = LionConfig.from_pretrained(origin[0])
    is_base = (config.visual_branch, config.text_config.num_adapters) != (kind.visual_branch, kind.num_adapters)
    if kind.num_adapters == 1 and (is_base or reuse is not None):
        return start_stage(kind, origin[0], reuse=reuse, dtype="float32").model
    return LionForConditionalGeneration.from_pretrained(origin[0], dtype="float32")


def _load_data(
    settings: RunSettings,
    stage: StageSettings,
    kind: Stage,
    report: RecordReport,
    checked_images: Path,
    world_size: int,
    say: Say,
) -> Dataset | RecordStream:
    """Return the training data of a stage: a mixture of its sources, or a stream if any of them is streamed."""
    ratios = [source.sample_ratio for source in stage.data]
    run_length = stage.batch_size if stage.one_source_per_batch else 1
    if not stage.is_stream:
        rows = [_load_source(source, stage, kind, report, checked_images, say) for source in stage.data]
        shared_length = run_length * world_size if stage.one_source_per_batch else 1
        return mix_datasets(rows, ratios, run_length=shared_length, seed=settings.seed)
    sources = [
        _open_stream(source, stage, kind, report, say)
        if source.is_stream
        else TableSource(
            ", ".join(source.paths),
            _load_source(source, stage, kind, report, checked_images, say),
            source.buffer_size,
        )
        for source in stage.data
    ]
    return RecordStream(sources, ratios, run_length=run_length, seed=settings.seed)


def _check_of_images(stage: StageSettings) -> CheckImages | None:
    """Return how to check images; unreadable ones that are left out later could leave an empty batch."""
    if stage.check_images is None:
        return "decode" if stage.on_error == "skip" else "exists"
    return None if stage.check_images == "none" else stage.check_images


def _open_stream(source: DataSettings, stage: StageSettings, kind: Stage, report: RecordReport, say: Say) -> FileSource:
    """Return a source whose records are read during training."""
    stream = stream_records(
        source.records,
        source.images,
        check_images=_check_of_images(stage),
        on_error=stage.on_error,
        report=report,
        task_types=kind.task_types,
        buffer_size=source.buffer_size,
    )
    say(f"{stream.name}: streamed, {len(stream.parts)} parts of {len(stream.files)} files")
    return stream


def _load_source(
    source: DataSettings, stage: StageSettings, kind: Stage, report: RecordReport, checked_images: Path, say: Say
) -> Dataset:
    """Return the records of a source that have the stage's task types.

    Raises:
        ValueError: if there are none.
    """
    records = load_records(
        source.records,
        source.images,
        check_images=_check_of_images(stage),
        on_error=stage.on_error,
        report=report,
        checked_images=checked_images,
    )
    assert isinstance(records, Dataset)
    chosen = keep_task_types(records, kind.task_types)
    name = ", ".join(source.paths)
    say(f"{name}: {len(chosen)} of {len(records)} records are {' or '.join(kind.task_types)}")
    if not len(chosen):
        raise ValueError(f"Stage {stage.name}: none of the {len(records)} records of {name} is {kind.task_types[0]}.")
    return chosen


def _make_collator(processor: LionProcessor, stage: StageSettings, seed: int, report: RecordReport) -> LionDataCollator:
    return LionDataCollator(
        processor,
        tag_source=stage.tag_source,
        tagger=None if stage.tagger is None else ImageTagger.from_pretrained(stage.tagger),
        augmentation=ImageAugmentation(seed=seed) if stage.augment else None,
        on_error=stage.on_error,
        report=report,
    )


def _find_tagger_folder(origin: tuple[str, ...], stage: StageSettings) -> Path | None:
    """Return the folder of the tagger to save with a stage: its own, or that of the model it starts from.

    It is `None` if the stage trains without tags, so that prompts at inference match those in training.
    """
    if stage.tag_source == "none":
        return None
    return tagger_of(*([] if stage.tagger is None else [stage.tagger]), *(Path(path) / TAGGER for path in origin))


def _save_stage(trainer: Seq2SeqTrainer, folder: Path, name: str, tagger: Path | None) -> None:
    """Write the log, its curves and the model with its tagger; the model's folder appears in one step."""
    unfinished = folder / f"{MODEL}.unfinished"
    if trainer.args.should_save:
        log = trainer.state.log_history
        write_text(folder / LOG, json.dumps(log, indent=1) + "\n")
        draw_curves(log, folder / CURVES, name)
        if unfinished.exists():
            shutil.rmtree(unfinished)
    trainer.accelerator.wait_for_everyone()
    if fsdp_is_requested(trainer.args):
        # with sharded checkpoints, the Trainer would not save a whole model
        model = gather_model(find_lion(trainer.model))
        if model is not None and trainer.args.should_save:
            model.save_pretrained(unfinished)
            trainer.processing_class.save_pretrained(unfinished)
    else:
        trainer.save_model(str(unfinished))
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        (unfinished / "training_args.bin").unlink(missing_ok=True)
        if tagger is not None:
            shutil.copytree(tagger, unfinished / TAGGER)
        unfinished.rename(folder / MODEL)
    trainer.accelerator.wait_for_everyone()


def _end_reports(names: Sequence[str]) -> None:
    """Finish tracking this stage, so that the next one starts a tracking run of its own."""
    if "wandb" in names:
        import wandb

        wandb.finish()


__all__ = ["run"]
