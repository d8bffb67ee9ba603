"""Packages trained models as the example checkpoint: `python -m examples.small_world.package_checkpoint FOLDER`.

Tensors are stored in float16 and loaded as float32 (the configuration's dtype). This halves the size of the files, and
changed none of the answers that were compared.
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from transformers_lion.example import FOLDER, TAGGER

MAX_BYTES = 12_000_000


def _halve(file: Path) -> None:
    """Store the floating-point tensors of a safetensors file in float16.

    Raises:
        ValueError: if a number is too large for float16.
    """
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.to(torch.float16)
            if not tensors[name].isfinite().all():
                raise ValueError(f"{name} has {tensor.abs().max().item():.3g}, which is too large for float16.")
    save_file(tensors, file, metadata={"format": "pt"})


def _export(folder: Path, output: Path = FOLDER) -> int:
    """Copy `folder/mixture` and `folder/tagger` to `output`, in float16.

    Returns:
        The total size of all files in bytes.

    Raises:
        ValueError: if the size exceeds `MAX_BYTES`.
    """
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(folder / "mixture", output)
    shutil.copytree(folder / "tagger", output / TAGGER)
    for file in output.rglob("*.safetensors"):
        _halve(file)
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    if size > MAX_BYTES:
        raise ValueError(f"The example checkpoint has {size:,} bytes, but the maximum is {MAX_BYTES:,}.")
    return size


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=FOLDER)
    options = parser.parse_args()
    print(f"{_export(options.folder, options.output):,} bytes in {options.output}")
