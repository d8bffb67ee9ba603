"""Default optimization of the models that `Lion`, the pipeline and the commands load."""

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from .exchange import optimize_for_inference
from .plan import inference_plan

logger = logging.get_logger(__name__)

OPTIMIZED_DTYPES = (None, "auto", "float32", torch.float32)
"""Values of `dtype` that are compatible with an optimized model, which computes in float32."""


def optimize_by_default(model: PreTrainedModel, dtype: torch.dtype | str | None = None, compile: bool = False) -> None:
    """Call `optimize_for_inference` if it is worthwhile, and log the choice.

    Args:
        model: Model as loaded. It is changed in place.
        dtype: Dtype that the user requested. With any dtype other than float32, the model is left unchanged.
        compile: See `optimize_for_inference`.

    Raises:
        ValueError: If `compile` is set, but the model is left unchanged.
        RuntimeError: If `compile` is set, but there is no compiler.
    """
    if compile and dtype not in OPTIMIZED_DTYPES:
        raise ValueError(f"compile=True requires float32, but dtype is {str(dtype).removeprefix('torch.')}.")
    if compile or (dtype in OPTIMIZED_DTYPES and inference_plan(model).weights is not None):
        optimize_for_inference(model, compile=compile)
    logger.info("%s: %s", model.name_or_path, describe_inference(model))


def describe_inference(model: PreTrainedModel) -> str:
    """Return a one-line description of how a model runs on its device."""
    form = getattr(model, "_inference_form", None)
    if form is not None:
        return form.description
    dtype = str(model.dtype).removeprefix("torch.")
    return f"{dtype}, weights as loaded (on {model.device.type})"


def is_packed(model: PreTrainedModel) -> bool:
    """Whether some weights of a model are packed."""
    form = getattr(model, "_inference_form", None)
    return form is not None and bool(form.layers)


__all__ = ["describe_inference", "is_packed", "optimize_by_default"]
