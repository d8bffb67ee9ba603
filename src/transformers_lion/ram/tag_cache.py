"""Tags of pictures that were seen before: in memory, and in a folder if there is one.

Tags belong to the picture's content and to everything else they depend on: the weights, the configuration, the
preprocessing and how tags are selected. A section holds the pictures for one such state; in a folder it is a JSON Lines
file of its own, so a folder can serve any number of taggers, and a run that was stopped goes on where it was.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

logger = logging.getLogger(__name__)

Tags = list[dict[str, Any]]

SAMPLES = 4096
"""About so many numbers of a tensor are looked at to see whether it changed."""


class TagCache:
    """Sections of tags by picture.

    Args:
        directory: where sections are kept across runs; in memory only by default.
    """

    def __init__(self, directory: str | Path | None = None):
        self.directory = None if directory is None else Path(directory)
        self._lock = threading.Lock()
        self._weights: tuple | None = None
        self._digest = ""
        self._sections: dict[str, dict[str, Tags]] = {}

    def section(self, model: nn.Module, settings: Mapping[str, Any]) -> tuple[str, dict[str, Tags]]:
        """The name of a section, and its tags by picture; of no name if nothing may be kept.

        Args:
            model: the weights; the sections of others than the last are forgotten.
            settings: all else that tags depend on, in a form that JSON can hold.
        """
        weights = weights_state(model)
        if weights is None:
            return "", {}
        with self._lock:
            if weights != self._weights:
                self._weights, self._sections = weights, {}
                self._digest = digest_weights(model) if self.directory else ""
            text = json.dumps([self._digest, settings], sort_keys=True, default=str)
            name = hashlib.sha256(text.encode()).hexdigest()[:32]
            if name not in self._sections:
                self._sections[name] = self._read(name)
            return name, self._sections[name]

    def store(self, name: str, tags: Mapping[str, Tags]) -> None:
        """Keep `tags` by picture in the section `name`, and on disk if there is a folder."""
        if not name:
            return
        with self._lock:
            self._sections.setdefault(name, {}).update(tags)
            if self.directory:
                self.directory.mkdir(parents=True, exist_ok=True)
                lines = (json.dumps({"image": image, "tags": found}) + "\n" for image, found in tags.items())
                with self._file(name).open("a", encoding="utf-8") as file:
                    file.write("".join(lines))

    def clear(self) -> None:
        """Forget everything in memory; files stay."""
        with self._lock:
            self._weights, self._sections = None, {}

    def _file(self, name: str) -> Path:
        assert self.directory is not None
        return self.directory / f"{name}.jsonl"

    def _read(self, name: str) -> dict[str, Tags]:
        if self.directory is None or not self._file(name).is_file():
            return {}
        found: dict[str, Tags] = {}
        for line in self._file(name).read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
                found[record["image"]] = record["tags"]
            except (ValueError, KeyError, TypeError):  # a line that was cut off when a run was stopped
                logger.warning("%s: skipped a line that is no record.", self._file(name))
        return found


def digest_picture(picture: np.ndarray) -> str:
    """A digest of the pixels, with their layout."""
    digest = hashlib.sha256(f"{picture.dtype} {picture.shape}".encode())
    digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()


def digest_weights(model: nn.Module) -> str:
    """A digest of all weights and buffers; it is the same in another process."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def weights_state(model: nn.Module) -> tuple | None:
    """A value that changes when the weights do, quick to compute; `None` if not all are plain tensors at hand.

    It is made of torch's counters of changes, and of samples for what these do not see: writing to `weight.data`. (So
    who writes there to a few numbers of a large tensor only has to call `clear`.)
    """
    tensors = list(model.state_dict(keep_vars=True).values())
    if not all(type(tensor) in (nn.Parameter, torch.Tensor) and not tensor.is_meta for tensor in tensors):
        return None
    sums = torch.stack([sample(tensor.detach()).sum(dtype=torch.float32).cpu() for tensor in tensors]).tolist()
    return tuple(
        (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), 0 if tensor.is_inference() else tensor._version, total)
        for tensor, total in zip(tensors, sums, strict=True)
    )


def sample(tensor: torch.Tensor) -> torch.Tensor:
    """Some numbers of a tensor, spread over all of it."""
    return tensor.reshape(-1)[:: max(1, tensor.numel() // SAMPLES)]


__all__ = ["TagCache", "Tags"]
