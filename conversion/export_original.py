"""Export a converted or fine-tuned folder to the reference's layout.

    python conversion/export_original.py DIR --output lion.pth [--full]

By default, the file has the released layout without an optimizer: `{"model": ...}` with the weights that LION trains in
float32, and the two aliases of the embedding table in bfloat16. With `--full`, it has every key of the reference model,
in the dtype of the folder.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from command import run_command
from key_map import revert
from lion_folder import open_lion_folder
from lion_keys import EMBEDDING, EMBEDDING_ALIASES, LANGUAGE_MODEL_PREFIX, LION_KEYS, VISION_PREFIX
from sources import check_weight, count_nonfinite, reason_of
from targets import TargetError, check_room, replacing

POSITION_IDS = "Qformer.bert.embeddings.position_ids"


def _original_tensors(folder: Path, full: bool) -> dict[str, torch.Tensor]:
    """Convert the tensors of a folder to the reference's names.

    Args:
        folder: Converted or fine-tuned folder, with or without shards.
        full: Include all tensors, not only those that LION trains.

    Raises:
        ValueError: If the folder is not a complete LION checkpoint, or a tensor contains NaN or has a dtype that
            weights cannot have.
    """
    config, reader = open_lion_folder(folder)
    entries = [entry for entry in LION_KEYS.from_converted(reader.files) if full or _is_trained(entry.originals[0])]

    def load(name: str) -> torch.Tensor:
        tensor = reader[name]
        check_weight(name, tensor)
        if count_nonfinite(tensor):
            raise ValueError(f"{name} contains {count_nonfinite(tensor)} NaN or infinite values.")
        return tensor

    tensors = {key: tensor.contiguous() for key, tensor in revert(entries, load)}
    table = load("language_model.shared.weight")
    if full:
        tensors.update(dict.fromkeys(EMBEDDING_ALIASES, tensors[EMBEDDING]))
    else:
        tensors = {key: tensor.float() for key, tensor in tensors.items()}
        tensors.update(dict.fromkeys(EMBEDDING_ALIASES, table.bfloat16()))
    if config.uses_qformer:
        tensors[POSITION_IDS] = torch.arange(config.qformer_config.max_position_embeddings).unsqueeze(0)
    return tensors


def _is_trained(key: str) -> bool:
    """Whether LION's training changes a key: all but the vision tower and FlanT5 itself."""
    return not key.startswith((VISION_PREFIX, LANGUAGE_MODEL_PREFIX)) or ".adapter." in key


def export(folder: Path, output: Path, full: bool = False) -> None:
    """Write the file, which appears only when it is complete.

    Raises:
        ValueError: If `output` exists, or the tensors of the folder are not LION's.
    """
    if os.path.lexists(output):
        raise TargetError(f"{output} already exists.")
    with replacing(output) as unfinished:
        tensors = _original_tensors(folder, full)
        check_room(output, sum(tensor.nbytes for tensor in tensors.values()))
        try:
            torch.save({"model": tensors}, unfinished)
        except RuntimeError as error:  # raised by PyTorch if the disk is full or read-only
            raise TargetError(f"{output}: cannot be written ({reason_of(error)}).") from error


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description="Export a folder to the reference's layout.")
    parser.add_argument("folder", type=Path, help="converted or fine-tuned folder")
    parser.add_argument("--output", type=Path, required=True, help=".pth file to write; must not exist")
    parser.add_argument(
        "--full", action="store_true", help="write every key of the model, not only those that LION trains"
    )
    arguments = parser.parse_args(argv)

    def action() -> bool:
        export(arguments.folder, arguments.output, arguments.full)
        print(f"{arguments.output}: written.")
        return True

    return run_command(action)


if __name__ == "__main__":
    sys.exit(main())
