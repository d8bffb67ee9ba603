"""Training LION: its stages, their initial models, the recipe, and checkpoints of the trained parameters.

Training requires the extra `train`.
"""

try:
    from .answer_metrics import AnswerMetrics
    from .augmentation import ImageAugmentation
    from .collator import CollatorEpochCallback, LionDataCollator
    from .data import load_records, mix_datasets, stream_records
    from .feature_cache import FeatureCache
    from .optimizer import parameter_groups
    from .precision import train_in_float32
    from .recipe import make_trainer, training_arguments
    from .records import RecordError
    from .report import RecordReport
    from .resuming import last_checkpoint, train
    from .stage_models import StageModel, combine_stages, start_stage
    from .stages import STAGES, Stage, StageReport, apply_stage, get_stage
    from .streams import FileSource, RecordStream, StreamCollator, TableSource
    from .trainable_checkpoints import load_trainable, save_trainable
except ModuleNotFoundError as error:
    if str(error.name).partition(".")[0] not in ("accelerate", "datasets", "peft"):
        raise
    raise ImportError(
        f'Training needs {error.name}, which is not installed: pip install "transformers-lion[train]".'
    ) from error


__all__ = [
    "STAGES",
    "AnswerMetrics",
    "CollatorEpochCallback",
    "FeatureCache",
    "FileSource",
    "ImageAugmentation",
    "LionDataCollator",
    "RecordError",
    "RecordReport",
    "RecordStream",
    "Stage",
    "StageModel",
    "StageReport",
    "StreamCollator",
    "TableSource",
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
    "stream_records",
    "train",
    "train_in_float32",
    "training_arguments",
]
