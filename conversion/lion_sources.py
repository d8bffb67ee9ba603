"""Read LION's original files, memory-mapped, into one state dict with the reference's names, and check them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from lion_keys import DROPPABLE, EMBEDDING, EMBEDDING_ALIASES, LANGUAGE_MODEL_PREFIX, VISION_PREFIX
from sources import SourceError, check_weight, load_file, load_folder, reason_of

NUM_VISION_BLOCKS = 39
"""Number of EVA-ViT-g blocks that LION runs. The original file may contain a 40th."""

PATCHES = f"{VISION_PREFIX}patch_embed.proj.weight"
"""A tensor that every vision tower has."""

TOWER = re.compile(r"(cls_token|pos_embed|(patch_embed|blocks|norm|fc_norm|head)\.)")
"""Pattern for the start of the names in EVA's own file."""

WIDTHS = (
    ("vision tower", "visual_encoder.cls_token", 2, ("ln_vision.weight", "ln_adapter.weight")),
    ("language model", EMBEDDING, 1, ("soft_prompt_hint", "t5_proj.bias", "adapter_proj.2.bias")),
)
"""For each part: the tensor and dimension that define its width, and tensors in the LION file of the same width."""


@dataclass
class LionTensors:
    """A state dict with the reference's names.

    Attributes:
        tensors: Tensors of the converted model.
        dropped: Keys that the converted model does not need, each with a reason.
    """

    tensors: dict[str, torch.Tensor]
    dropped: dict[str, str] = field(default_factory=dict)


def read_sources(
    lion: Path, vision: Path | None, language_model: Path, num_vision_blocks: int = NUM_VISION_BLOCKS
) -> LionTensors:
    """Memory-map the tensors of the files and drop those that are not needed.

    Args:
        lion: LION's own file.
        vision: File of the vision tower. `None` if `lion` contains it.
        language_model: FlanT5's folder.
        num_vision_blocks: Number of blocks of the vision tower to keep.

    Raises:
        SourceError: If a file cannot be read.
        ValueError: If the files belong to different models.
    """
    own = load_file(lion)
    tower = _load_tower(vision) if vision else {}
    if PATCHES not in tower and PATCHES not in own:
        raise SourceError(f"{lion}: does not contain a vision tower ({PATCHES}); pass --vision.")
    found = LionTensors(
        {
            **tower,
            **{LANGUAGE_MODEL_PREFIX + name: tensor for name, tensor in load_folder(language_model).items()},
            **own,  # LION's own file takes precedence
        }
    )
    _drop_aliases(found)
    for name in list(found.tensors):
        reason = _droppable(name, num_vision_blocks)
        if reason:
            found.dropped[name] = reason
            del found.tensors[name]
    for name, tensor in found.tensors.items():
        check_weight(name, tensor)
    _check_widths(found.tensors)
    return found


def _load_tower(path: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of the vision tower, with the reference's names.

    Raises:
        SourceError: If the file cannot be read or does not belong to a vision tower.
    """
    tensors = load_file(path)
    if all(name.startswith(VISION_PREFIX) for name in tensors):
        tensors = {name.removeprefix(VISION_PREFIX): tensor for name, tensor in tensors.items()}
    foreign = [name for name in tensors if not TOWER.match(name)]
    if foreign:
        raise SourceError(f"{path}: not the file of a vision tower, because it contains {foreign[0]}.")
    return {VISION_PREFIX + name: tensor for name, tensor in tensors.items()}


def _drop_aliases(found: LionTensors) -> None:
    """Remove the aliases of the embedding table. In the released file, their dtype differs from the table's.

    Raises:
        ValueError: If an alias has other values than the table, which means that the files belong to different models.
    """
    for alias in EMBEDDING_ALIASES:
        tensor = found.tensors.pop(alias, None)
        if tensor is None:
            continue
        table = found.tensors.setdefault(EMBEDDING, tensor)
        if table.shape != tensor.shape or not _equal_in_chunks(table, tensor):
            raise ValueError(
                f"{alias} {tuple(tensor.shape)} differs from the embedding table {tuple(table.shape)} of the "
                "language model: "
                "the LION file was trained with another language model."
            )
        found.dropped[alias] = "an alias of the embedding table with the same values"


def _equal_in_chunks(table: torch.Tensor, alias: torch.Tensor, rows: int = 4096) -> bool:
    """Whether `alias` equals `table` in its own dtype, compared a few rows at a time."""
    pairs = zip(table.split(rows), alias.split(rows), strict=True)
    return all(torch.equal(part.to(alias.dtype), other) for part, other in pairs)


def _droppable(name: str, num_vision_blocks: int) -> str | None:
    """Return the reason why the converted model does not need a key, or `None` if it does."""
    block = re.match(r"visual_encoder\.blocks\.(\d+)\.", name)
    if block and int(block.group(1)) >= num_vision_blocks:
        return f"a block of the vision tower after the {num_vision_blocks} that LION runs"
    return next((reason for pattern, reason in DROPPABLE.items() if pattern.fullmatch(name)), None)


def _check_widths(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise `ValueError` if the LION file was trained with a vision tower or language model of another width."""
    for part, name, dimension, partners in WIDTHS:
        given = tensors.get(name)
        if given is None or given.dim() <= dimension:
            continue  # a later check reports the tensor itself
        for partner in partners:
            wanted = tensors.get(partner)
            if wanted is not None and wanted.dim() == 1 and given.shape[dimension] != len(wanted):
                raise ValueError(
                    f"The LION file needs a {part} of width {len(wanted)} ({partner}), but the given one has width "
                    f"{given.shape[dimension]} ({name})."
                )


def resolve_folder(name: str | Path, patterns: tuple[str, ...]) -> Path:
    """Return a local folder, or download the files of a Hub repository.

    Args:
        name: A folder, or a repository such as `google/flan-t5-xl`.
        patterns: Files of the repository to download.

    Raises:
        SourceError: If the folder does not exist and the repository cannot be downloaded.
    """
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)) or str(name).startswith("."):
        raise SourceError(f"{name}: no such folder.")
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise SourceError(f"{name}: no such folder, and the Hub cannot provide it ({reason_of(error)}).") from error
