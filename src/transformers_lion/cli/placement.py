"""Predicts where `device_map="auto"` places a model's weights under memory limits, without loading them."""

import logging
import re
from collections.abc import Sequence
from typing import Any

import torch

from ..modeling_lion import LionForConditionalGeneration
from .common import require


def read_limits(words: Sequence[str]) -> dict[str | int, int]:
    """Parse limits such as `0=20GB`, `cpu=30GiB` or `30GB` (for the CPU) into bytes by device, GPUs first.

    Raises:
        ValueError: if a device or size is invalid, a device is listed twice, or accelerate is not installed.
    """
    require("--max-memory", "train", ["accelerate"])
    from accelerate.utils import convert_file_size_to_int

    limits: dict[str | int, int] = {}
    for word in words:
        device, _, size = word.rpartition("=")
        if not re.fullmatch(r"|cpu|\d+", device):
            raise ValueError(f"--max-memory {word}: {device!r} is not a device; use cpu or the number of a GPU.")
        if not re.fullmatch(r"\d+ *[KMG]i?B", size, re.IGNORECASE):
            raise ValueError(f"--max-memory {word}: {size!r} is not a size; use for example 20GB, 20GiB or 500MB.")
        key: str | int = int(device) if device.isdecimal() else "cpu"
        if key in limits:
            raise ValueError(f"--max-memory lists {key} twice.")
        limits[key] = convert_file_size_to_int(size.upper().replace(" ", "").replace("I", "i"))
    return dict(sorted(limits.items(), key=lambda item: (item[0] == "cpu", str(item[0]).zfill(3))))


def place(model: LionForConditionalGeneration, limits: dict[str | int, int], dtype: torch.dtype) -> dict[str, int]:
    """Return the bytes of weights placed on each device, including "disk".

    Args:
        model: a model on the meta device.
        limits: limits from `read_limits`.
        dtype: dtype of the weights; with float16, some stay in float32.
    """
    from accelerate import infer_auto_device_map

    special = dict.fromkeys(kept_in_float32(model), torch.float32) if dtype == torch.float16 else {}
    accelerate_logger = logging.getLogger("accelerate.utils.modeling")
    level = accelerate_logger.level
    accelerate_logger.setLevel(logging.ERROR)  # it warns about GPUs that this machine does not have
    try:
        placed = infer_auto_device_map(
            model,
            max_memory={"cpu": 0, **limits},
            no_split_module_classes=list(model._no_split_modules or ()),
            dtype=dtype,
            special_dtypes=special,
        )
    finally:
        accelerate_logger.setLevel(level)
    sizes = {str(device): 0 for device in (*limits, "disk")}
    for name, tensor in model.named_parameters():
        owners = [place for place in placed if place == "" or name == place or name.startswith(f"{place}.")]
        where = str(placed[max(owners, key=len)])
        sizes[where] = sizes.get(where, 0) + tensor.numel() * special.get(name, dtype).itemsize
    return sizes


def kept_in_float32(model: LionForConditionalGeneration) -> list[str]:
    """Return the names of the parameters that stay in float32 when a model is loaded in float16."""
    patterns = model.language_model._keep_in_fp32_modules or ()
    return [name for name, _ in model.named_parameters() if any(re.match(pattern, name) for pattern in patterns)]


def describe_placement(model: LionForConditionalGeneration, words: Sequence[str]) -> dict[str, Any]:
    """Return the limits in bytes, and the bytes on each device for each dtype."""
    limits = read_limits(words)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return {
        "limits": {str(device): size for device, size in limits.items()},
        **{name: place(model, limits, dtype) for name, dtype in dtypes.items()},
    }


__all__ = ["describe_placement", "kept_in_float32"]
