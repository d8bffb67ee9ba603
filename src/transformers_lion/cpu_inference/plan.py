"""Decides how to optimize a model for this CPU."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from .packs import can_pack

WEIGHTS = ("auto", "float32", "float16")
"""Values of `optimize_for_inference(weights=)`."""


@dataclass(frozen=True)
class CpuFeatures:
    """Features of a processor and a build of torch.

    Attributes:
        capability: Name of the instruction set in torch, such as "AVX2", "AVX512" or "DEFAULT".
        packs_float32, packs_float16: Whether this build of torch supports these packs.
        multiplies_bfloat16, multiplies_float16: Whether the processor has units for these dtypes.
    """

    capability: str
    packs_float32: bool
    packs_float16: bool
    multiplies_bfloat16: bool
    multiplies_float16: bool


@dataclass(frozen=True)
class InferencePlan:
    """How `optimize_for_inference` changes a model.

    Attributes:
        weights: "auto", "float32" or "float16", as in `packs.make_pack`, or `None` to leave the model unchanged.
        reason: Human-readable explanation in one line.
    """

    weights: str | None
    reason: str

    def __str__(self) -> str:
        """Return the explanation."""
        return self.reason


def detect_features() -> CpuFeatures:
    """Detect the features of this processor and this build of torch."""
    packs = can_pack()
    capability = torch.backends.cpu.get_cpu_capability()
    is_x86 = capability.startswith("AVX")
    return CpuFeatures(
        capability=capability,
        packs_float32=is_x86 and packs["float32"],
        packs_float16=is_x86 and packs["float16"],
        multiplies_bfloat16=_has_units("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
        multiplies_float16=_has_units("_is_amx_fp16_supported"),
    )


def inference_plan(model: PreTrainedModel, weights: str = "auto", features: CpuFeatures | None = None) -> InferencePlan:
    """Return what `optimize_for_inference(model, weights=weights)` would do. `str(plan)` explains it in one line.

    Args:
        model: Model that is not optimized yet.
        weights: See `optimize_for_inference`.
        features: Features of the processor. Defaults to those of this machine.

    Raises:
        ValueError: If `weights` is unknown.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights is {weights!r}, but must be one of {', '.join(map(repr, WEIGHTS))}.")
    devices = {parameter.device.type for parameter in model.parameters()}
    if devices != {"cpu"}:
        return InferencePlan(None, f"weights as loaded (on {' and '.join(sorted(devices))})")
    if getattr(model, "hf_quantizer", None) is not None:
        return InferencePlan(None, "weights as loaded (quantized)")
    return plan_for_dtype(_largest_dtype(model), weights, features)


def plan_for_dtype(dtype: torch.dtype, weights: str = "auto", features: CpuFeatures | None = None) -> InferencePlan:
    """Return the plan for a model that is on the CPU and not quantized.

    Args:
        dtype: Dtype of most weights.
        weights, features: See `inference_plan`.

    Raises:
        ValueError: For the reasons given in `inference_plan`.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights is {weights!r}, but must be one of {', '.join(map(repr, WEIGHTS))}.")
    features = detect_features() if features is None else features
    if not features.packs_float32:
        return InferencePlan(None, f"weights as loaded (no packed weights on a CPU with {features.capability})")
    if weights == "auto" and (
        (dtype == torch.bfloat16 and features.multiplies_bfloat16)
        or (dtype == torch.float16 and features.multiplies_float16)
    ):
        return InferencePlan(None, f"weights as loaded (the CPU has {str(dtype).removeprefix('torch.')} units)")
    if weights == "float16" and not features.packs_float16:
        raise ValueError("weights='float16' requires FBGEMM, which this build of torch does not include.")
    if weights == "float32" or not features.packs_float16:
        return InferencePlan("float32", "float32, weights packed in float32")
    if weights == "float16":
        return InferencePlan("float16", "float32, weights packed in float16 (rounded where they do not fit)")
    if dtype == torch.float32:
        return InferencePlan("auto", "float32, weights packed in float32, in float16 where that is exact")
    return InferencePlan("auto", "float32, weights packed in float16 (exact)")


def _largest_dtype(model: nn.Module) -> torch.dtype:
    """Return the most common dtype of the weights."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


def _has_units(*names: str) -> bool:
    """Whether any of these functions of `torch.cpu` exists and returns `True`."""
    return any(getattr(torch.cpu, name, bool)() for name in names)


__all__ = ["CpuFeatures", "InferencePlan", "detect_features", "inference_plan", "plan_for_dtype"]
