"""Faster inference on a CPU: one step beside the model, undone by training and saving.

Reading order: `exchange` (the step), `plan` (when it pays), `packs` and `linear` (weights), `decoder` and `cache`.
"""

from .exchange import optimize_for_inference, restore_for_training
from .plan import InferencePlan, inference_plan

__all__ = ["InferencePlan", "inference_plan", "optimize_for_inference", "restore_for_training"]
