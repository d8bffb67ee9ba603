"""Write a converted or fine-tuned folder back in the reference's layout.

    python conversion/export_original.py DIR --output lion.pth [--full]

By default the released layout, without an optimizer: `{"model": ...}` with what LION trains in float32, and the
embedding table's two aliases in bfloat16. `--full` writes every key of the reference model, in the folder's dtype.
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
    """A folder's tensors in the reference's names.

    Args:
        folder: converted or fine-tuned, in any of the two forms that `save_pretrained` writes.
        full: all of them, not only what LION trains.

    Raises:
        ValueError: if the folder does not hold the whole of a LION, or NaN, or nothing that a weight can be.
    """
    config, reader = open_lion_folder(folder)
    entries = [entry for entry in LION_KEYS.from_converted(reader.files) if full or _is_trained(entry.originals[0])]

    def load(name: str) -> torch.Tensor:
        tensor = reader[name]
        check_weight(name, tensor)
        if count_nonfinite(tensor):
            raise ValueError(f"{name} holds {count_nonfinite(tensor)} NaN or infinite values.")
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
    """Whether LION's training changes a key of the reference model: all but the vision tower and FlanT5 itself."""
    return not key.startswith((VISION_PREFIX, LANGUAGE_MODEL_PREFIX)) or ".adapter." in key


def export(folder: Path, output: Path, full: bool = False) -> None:
    """Write the file; it appears when all of it is written.

    Raises:
        ValueError: if `output` exists, or the folder's tensors are not LION's.
    """
    if os.path.lexists(output):
        raise TargetError(f"{output}: exists already.")
    with replacing(output) as unfinished:
        tensors = _original_tensors(folder, full)
        check_room(output, sum(tensor.nbytes for tensor in tensors.values()))
        try:
            torch.save({"model": tensors}, unfinished)
        except RuntimeError as error:  # PyTorch's way of saying that the disk refuses
            raise TargetError(f"{output}: cannot be written ({reason_of(error)}).") from error


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit code."""
    parser = argparse.ArgumentParser(description="Write a folder back in the reference's layout.")
    parser.add_argument("folder", type=Path, help="converted or fine-tuned folder")
    parser.add_argument("--output", type=Path, required=True, help=".pth to write; may not exist")
    parser.add_argument("--full", action="store_true", help="every key of the model, not only what LION trains")
    arguments = parser.parse_args(argv)

    def action() -> bool:
        export(arguments.folder, arguments.output, arguments.full)
        print(f"{arguments.output}: written.")
        return True

    return run_command(action)


if __name__ == "__main__":
    sys.exit(main())
