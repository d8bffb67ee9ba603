"""Training LION: its stages, the models that they begin with, and checkpoints of what was trained."""

from .stages import STAGES, Stage, StageReport, apply_stage, get_stage

__all__ = [
    "STAGES",
    "Stage",
    "StageReport",
    "apply_stage",
    "get_stage",
]
