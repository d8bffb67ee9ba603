"""Faster inference on a CPU. `optimize_for_inference` replaces parts of a model; training and saving undo it.

Reading order: `exchange` (replaces modules), `plan` (decides what to do), `packs` and `linear` (weights), `layers`,
`decoder`, `cache` and `compiled`.
"""

from .default import optimize_by_default
from .exchange import optimize_for_inference, restore_for_training
from .plan import InferencePlan, inference_plan

__all__ = ["InferencePlan", "inference_plan", "optimize_by_default", "optimize_for_inference", "restore_for_training"]
