"""Training LION: its stages, the models that they begin with, the recipe, and checkpoints of what was trained.

All of it needs the extra `train`, but for the scenes of the small world.
"""

from typing import Any

try:
    from .answer_metrics import AnswerMetrics
    from .augmentation import ImageAugmentation
    from .collator import CollatorEpochCallback, LionDataCollator
    from .data import load_records, mix_datasets
    from .precision import train_in_float32
    from .recipe import make_trainer, parameter_groups, training_arguments
    from .records import RecordError
    from .report import RecordReport
    from .resuming import last_checkpoint, train
    from .stage_models import StageModel, combine_stages, start_stage
    from .stages import STAGES, Stage, StageReport, apply_stage, get_stage
    from .trainable_checkpoints import load_trainable, save_trainable
except ModuleNotFoundError as error:
    if str(error.name).partition(".")[0] not in ("accelerate", "datasets", "peft"):
        raise
    missing = error.name

    def __getattr__(name: str) -> Any:
        if name in __all__:
            raise ImportError(
                f'Training needs {missing}, which is not installed: pip install "transformers-lion[train]".'
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "STAGES",
    "AnswerMetrics",
    "CollatorEpochCallback",
    "ImageAugmentation",
    "LionDataCollator",
    "RecordError",
    "RecordReport",
    "Stage",
    "StageModel",
    "StageReport",
    "apply_stage",
    "combine_stages",
    "get_stage",
    "last_checkpoint",
    "load_records",
    "load_trainable",
    "make_trainer",
    "mix_datasets",
    "parameter_groups",
    "save_trainable",
    "start_stage",
    "train",
    "train_in_float32",
    "training_arguments",
]
