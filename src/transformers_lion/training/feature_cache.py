"""Cache for the outputs of the frozen vision tower, so that a training step does not run the tower again.

Only outputs that do not change during training are cached: those of the tower's blocks, before the final layer norm,
the Q-Former and the aggregator. A section holds the outputs for one combination of weights, dtypes and device, so that
outputs of other weights are never used. The key of an image is a digest of its preprocessed pixel values.

Each image has its own safetensors file, which is written atomically. Any number of processes can therefore share a
folder, and an interrupted or resumed run continues with the existing files.

Shape letters: N images, S cached blocks, P patches and CLS, V vision width.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from ..modeling_lion import LionModel, LionVisionStates
from ..ram.tag_cache import digest_weights
from .distributed import find_lion, is_whole

logger = logging.getLogger(__name__)

ABOUT = "about.json"
"""File in the folder of a section that lists what its outputs depend on."""

VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
"""Configuration entries that do not affect the outputs, or that follow from the weights."""

TRAINED_NORM = "post_layernorm."
"""Prefix of the norm after the tower's last block, which is trained with the Q-Former."""


class FeatureCache:
    """Cached outputs of the frozen vision tower.

    `make_trainer` and `lion train` use it if `feature_cache` is set. In your own training loop, call `apply` on each
    batch, inside autocast if you use it.

    Args:
        folder: Folder for the files. It is created if it does not exist. Models with different towers can share it.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self._state: tuple[Any, ...] | None = None
        self._section = self.folder

    def apply(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the `pixel_values` (N, 3, H, W) of a batch with `image_features`, which the model accepts instead.

        The tower only runs for images that are not cached yet, and its outputs are then cached.

        Args:
            model: LION, which may be wrapped by PEFT.
            batch: Batch from `LionDataCollator`, without augmentation. A batch without pixel values is returned
                unchanged.

        Raises:
            ValueError: If the tower is trained, sharded or offloaded.
            OSError: If outputs cannot be stored, for example because the disk is full.
        """
        if batch.get("pixel_values") is None:
            return dict(batch)
        check_tower(model)
        lion, pixels = find_lion(model), batch["pixel_values"]
        section = self._find_section(lion, pixels)
        names = [_digest_pixels(image) for image in pixels]
        found = {name: _read(section / f"{name}.safetensors") for name in names}
        missing = [name for name in found if found[name] is None]
        if missing:
            found.update(self._encode(lion, pixels, names, missing, section))
        maps = tuple(
            torch.stack([found[name][f"block_{layer}"].to(pixels.device) for name in names])  # type: ignore[index]
            for layer in lion.vision_state_layers
        )
        rest = {name: value for name, value in batch.items() if name != "pixel_values"}
        return {**rest, "image_features": LionVisionStates(feature_maps=maps)}

    def describe(self, model: nn.Module, num_images: int) -> str:
        """Return a one-line estimate of the disk space that images need, with the free space."""
        size, place = image_bytes(model), self.folder.absolute()
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        return (
            f"Feature cache {self.folder}: {size / 1e6:,.1f} MB per image, at most {size * num_images / 1e9:,.1f} GB "
            f"for {num_images:,} images; {free / 1e9:,.1f} GB are free."
        )

    def _encode(
        self, lion: LionModel, pixels: torch.Tensor, names: list[str], missing: list[str], section: Path
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Run the tower for missing images, and store its outputs."""
        with torch.no_grad():
            states = lion.get_vision_states(pixels[[names.index(name) for name in missing]])
        assert states.feature_maps is not None
        found = {}
        for row, name in enumerate(missing):
            maps = zip(lion.vision_state_layers, states.feature_maps, strict=True)
            found[name] = {f"block_{layer}": feature_map[row] for layer, feature_map in maps}
            self._store(section / f"{name}.safetensors", save(_on_cpu(found[name])))
        return found

    def _store(self, path: Path, content: bytes) -> None:
        """Write a file atomically.

        Raises:
            OSError: If the file cannot be written. The error names the file and its size.
        """
        try:
            _write(path, content)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: the feature cache cannot store {len(content) / 1e6:,.1f} MB for another image. "
                "Free some space, choose another folder, or train without feature_cache",
                str(path),
            ) from error

    def _find_section(self, lion: LionModel, pixels: torch.Tensor) -> Path:
        """Return the folder for the current weights and settings."""
        tower, device = lion.vision_model, pixels.device.type
        weights = {name: value for name, value in tower.state_dict().items() if not name.startswith(TRAINED_NORM)}
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        settings = {
            "config": {name: value for name, value in tower.config.to_dict().items() if name not in VOLATILE},
            "attention": tower.config._attn_implementation,
            "blocks": lion.vision_state_layers,
            "pixels": [str(pixels.dtype), *pixels.shape[1:]],
            "autocast": str(dtype),
            "device": device,
        }
        versions = [0 if value.is_inference() else value._version for value in weights.values()]
        state = (settings, [value.data_ptr() for value in weights.values()], versions)
        if state != self._state:
            about = json.dumps(
                {"weights": digest_weights(weights.items()), **settings}, sort_keys=True, indent=1, default=str
            )
            self._section = self.folder / hashlib.sha256(about.encode()).hexdigest()[:32]
            self._section.mkdir(parents=True, exist_ok=True)
            self._store(self._section / ABOUT, about.encode())
            self._state = state
        return self._section


def check_tower(model: nn.Module) -> None:
    """Raise `ValueError` unless the vision tower is frozen, and neither sharded nor offloaded."""
    tower = find_lion(model).vision_model
    parameters = [entry for entry in tower.named_parameters() if not entry[0].startswith(TRAINED_NORM)]
    trained = [f"vision_model.{name}" for name, parameter in parameters if parameter.requires_grad]
    if trained:
        more = f" and {len(trained) - 3} more" if len(trained) > 3 else ""
        raise ValueError(
            f"feature_cache needs a frozen vision tower, but {len(trained)} of its parameters are trained: "
            f"{', '.join(trained[:3])}{more}."
        )
    if not all(is_whole(parameter) for _, parameter in parameters):
        raise ValueError(
            "feature_cache needs the whole vision tower in each process, but it is sharded or offloaded: train with "
            "DistributedDataParallel, or without feature_cache."
        )


def check_not_augmented(augments: bool, where: str = "") -> None:
    """Raise `ValueError` if images are augmented."""
    if augments:
        raise ValueError(
            f"{where}augmentation changes the images in each epoch, so feature_cache could never reuse an output. "
            "Use only one of the two."
        )


def image_bytes(model: nn.Module) -> int:
    """Return the size of the cached outputs of an image in bytes: S x P x V values in the dtype of the tower."""
    lion = find_lion(model)
    embeddings = lion.vision_model.embeddings
    num_positions, width = embeddings.position_embedding.shape[-2:]
    return len(lion.vision_state_layers) * num_positions * width * embeddings.position_embedding.element_size()


def _digest_pixels(image: torch.Tensor) -> str:
    """Return a digest of the pixel values of an image, (3, H, W)."""
    return hashlib.sha256(image.detach().cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """Return the tensors of a file, or `None` if the file does not exist or is damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        return None
    except SafetensorError as error:
        logger.warning("%s is damaged and will be replaced: %s", path, error)
        return None


def _write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name that no other process uses, and rename it."""
    descriptor, new = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".new", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.replace(new, path)
    finally:
        Path(new).unlink(missing_ok=True)


__all__ = ["FeatureCache", "check_not_augmented", "check_tower", "image_bytes"]
