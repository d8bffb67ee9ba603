"""Training LION: its stages, the models that they begin with, and checkpoints of what was trained."""

from .augmentation import ImageAugmentation
from .collator import CollatorEpochCallback, LionDataCollator
from .data import load_records, mix_datasets
from .records import RecordError
from .report import RecordReport
from .stage_models import StageModel, combine_stages, start_stage
from .stages import STAGES, Stage, StageReport, apply_stage, get_stage
from .trainable_checkpoints import load_trainable, save_trainable

__all__ = [
    "STAGES",
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
    "load_records",
    "load_trainable",
    "mix_datasets",
    "save_trainable",
    "start_stage",
]
