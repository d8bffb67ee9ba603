"""LION's original files as one state dict in the reference's names, memory-mapped, and the checks on it."""

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
"""Blocks of EVA-ViT-g that LION runs; its file may hold a 40th."""

PATCHES = f"{VISION_PREFIX}patch_embed.proj.weight"
"""A tensor that every vision tower has."""

TOWER = re.compile(r"(cls_token|pos_embed|(patch_embed|blocks|norm|fc_norm|head)\.)")
"""How the names in EVA's own file begin."""

WIDTHS = (
    ("vision tower", "visual_encoder.cls_token", 2, ("ln_vision.weight", "ln_adapter.weight")),
    ("language model", EMBEDDING, 1, ("soft_prompt_hint", "t5_proj.bias", "adapter_proj.2.bias")),
)
"""Part, the tensor and dimension that tell its width, and the LION file's own tensors of that width."""


@dataclass
class LionTensors:
    """A state dict in the reference's names.

    Attributes:
        tensors: what the converted model is made of.
        dropped: keys that have no place in it, with the reason.
    """

    tensors: dict[str, torch.Tensor]
    dropped: dict[str, str] = field(default_factory=dict)


def read_sources(
    lion: Path, vision: Path | None, language_model: Path, num_vision_blocks: int = NUM_VISION_BLOCKS
) -> LionTensors:
    """Map the files' tensors into memory, and sort out what has no place.

    Args:
        lion: LION's own file.
        vision: the vision tower's file; `None` if `lion` holds the tower.
        language_model: FlanT5's folder.
        num_vision_blocks: blocks of the vision tower to keep.

    Raises:
        SourceError: if a file cannot be read.
        ValueError: if the files belong to different models.
    """
    own = load_file(lion)
    tower = _load_tower(vision) if vision else {}
    if PATCHES not in tower and PATCHES not in own:
        raise SourceError(f"{lion}: holds no vision tower ({PATCHES}), so that --vision is needed.")
    found = LionTensors(
        {
            **tower,
            **{LANGUAGE_MODEL_PREFIX + name: tensor for name, tensor in load_folder(language_model).items()},
            **own,  # where files overlap, LION's own goes before the others
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
    """The vision tower's tensors in the reference's names.

    Raises:
        SourceError: if the file cannot be read, or is not a vision tower's.
    """
    tensors = load_file(path)
    if all(name.startswith(VISION_PREFIX) for name in tensors):
        tensors = {name.removeprefix(VISION_PREFIX): tensor for name, tensor in tensors.items()}
    foreign = [name for name in tensors if not TOWER.match(name)]
    if foreign:
        raise SourceError(f"{path}: holds {foreign[0]}, and so is not a vision tower's file.")
    return {VISION_PREFIX + name: tensor for name, tensor in tensors.items()}


def _drop_aliases(found: LionTensors) -> None:
    """Remove the embedding table's other names; the released file has them in another precision than the table.

    Raises:
        ValueError: if an alias holds other values than the table, so that one of the files belongs to another model.
    """
    for alias in EMBEDDING_ALIASES:
        tensor = found.tensors.pop(alias, None)
        if tensor is None:
            continue
        table = found.tensors.setdefault(EMBEDDING, tensor)
        if table.shape != tensor.shape or not _equal_in_chunks(table, tensor):
            raise ValueError(
                f"{alias} {tuple(tensor.shape)} is not the table of the language model's folder {tuple(table.shape)}: "
                "the LION file was trained on another language model."
            )
        found.dropped[alias] = "another name of the embedding table, with its values"


def _equal_in_chunks(table: torch.Tensor, alias: torch.Tensor, rows: int = 4096) -> bool:
    """Whether `alias` is `table` in its own dtype, looking at some rows at a time."""
    pairs = zip(table.split(rows), alias.split(rows), strict=True)
    return all(torch.equal(part.to(alias.dtype), other) for part, other in pairs)


def _droppable(name: str, num_vision_blocks: int) -> str | None:
    """Why a key has no place in the converted model, or `None` if it has one."""
    block = re.match(r"visual_encoder\.blocks\.(\d+)\.", name)
    if block and int(block.group(1)) >= num_vision_blocks:
        return f"a block of the vision tower behind the {num_vision_blocks} that LION runs"
    return next((reason for pattern, reason in DROPPABLE.items() if pattern.fullmatch(name)), None)


def _check_widths(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise `ValueError` if the LION file was trained on a vision tower or language model of another width."""
    for part, name, dimension, partners in WIDTHS:
        given = tensors.get(name)
        if given is None or given.dim() <= dimension:
            continue  # an error about the tensor itself follows
        for partner in partners:
            wanted = tensors.get(partner)
            if wanted is not None and wanted.dim() == 1 and given.shape[dimension] != len(wanted):
                raise ValueError(
                    f"The LION file is made for a {part} of width {len(wanted)} ({partner}), but the "
                    f"{part} given is {given.shape[dimension]} wide ({name})."
                )


def resolve_folder(name: str | Path, patterns: tuple[str, ...]) -> Path:
    """A folder as it is, or a Hub repository's files, downloaded.

    Args:
        name: a folder, or a repository such as `google/flan-t5-xl`.
        patterns: files of a repository to download.

    Raises:
        SourceError: if there is no such folder, and no such repository can be had.
    """
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)) or str(name).startswith("."):
        raise SourceError(f"{name}: there is no such folder.")
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise SourceError(f"{name}: no such folder, and not to be had from the Hub ({reason_of(error)}).") from error
