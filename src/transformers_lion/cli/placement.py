"""Where `device_map="auto"` would put a model's weights under memory limits, without loading any."""

import logging
import re
from collections.abc import Sequence
from typing import Any

import torch

from ..modeling_lion import LionForConditionalGeneration
from .common import require


def read_limits(words: Sequence[str]) -> dict[str | int, int]:
    """`0=20GB`, `cpu=30GiB`, or `30GB` alone, which is the CPU's, to bytes by device, GPUs first.

    Raises:
        ValueError: if a device or a size is none, or a device is there twice, or accelerate is not installed.
    """
    require("--max-memory", "train", ["accelerate"])
    from accelerate.utils import convert_file_size_to_int

    limits: dict[str | int, int] = {}
    for word in words:
        device, _, size = word.rpartition("=")
        if not re.fullmatch(r"|cpu|\d+", device):
            raise ValueError(f"--max-memory {word}: {device!r} is no device; it is cpu or the number of a GPU.")
        if not re.fullmatch(r"\d+ *[KMG]i?B", size, re.IGNORECASE):
            raise ValueError(f"--max-memory {word}: {size!r} is no size, such as 20GB, 20GiB or 500MB.")
        key: str | int = int(device) if device.isdecimal() else "cpu"
        if key in limits:
            raise ValueError(f"--max-memory names {key} twice.")
        limits[key] = convert_file_size_to_int(size.upper().replace(" ", "").replace("I", "i"))
    return dict(sorted(limits.items(), key=lambda item: (item[0] == "cpu", str(item[0]).zfill(3))))


def place(model: LionForConditionalGeneration, limits: dict[str | int, int], dtype: torch.dtype) -> dict[str, int]:
    """Bytes of the weights on each device, "disk" among them, in a dtype.

    Args:
        model: on the meta device.
        limits: from `read_limits`.
        dtype: of the weights; in float16 some stay in float32.
    """
    from accelerate import infer_auto_device_map

    special = dict.fromkeys(kept_in_float32(model), torch.float32) if dtype == torch.float16 else {}
    accelerates = logging.getLogger("accelerate.utils.modeling")
    level = accelerates.level
    accelerates.setLevel(logging.ERROR)  # it warns of GPUs that this machine has not
    try:
        placed = infer_auto_device_map(
            model,
            max_memory={"cpu": 0, **limits},
            no_split_module_classes=list(model._no_split_modules or ()),
            dtype=dtype,
            special_dtypes=special,
        )
    finally:
        accelerates.setLevel(level)
    sizes = {str(device): 0 for device in (*limits, "disk")}
    for name, tensor in model.named_parameters():
        owners = [place for place in placed if place == "" or name == place or name.startswith(f"{place}.")]
        where = str(placed[max(owners, key=len)])
        sizes[where] = sizes.get(where, 0) + tensor.numel() * special.get(name, dtype).itemsize
    return sizes


def kept_in_float32(model: LionForConditionalGeneration) -> list[str]:
    """Names of the parameters that stay in float32 when a model is loaded in float16."""
    patterns = model.language_model._keep_in_fp32_modules or ()
    return [name for name, _ in model.named_parameters() if any(re.match(pattern, name) for pattern in patterns)]


def describe_placement(model: LionForConditionalGeneration, words: Sequence[str]) -> dict[str, Any]:
    """The limits in bytes, and of each dtype the bytes on each device."""
    limits = read_limits(words)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return {
        "limits": {str(device): size for device, size in limits.items()},
        **{name: place(model, limits, dtype) for name, dtype in dtypes.items()},
    }


__all__ = ["describe_placement", "kept_in_float32"]
