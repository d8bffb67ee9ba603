"""Cache for the tags of images: the most recent ones in memory, and optionally all of them in a folder.

Tags depend on the content of the image, the weights, the configuration, the preprocessing and the selection of tags. A
section caches the tags for one combination of the latter four. In a folder, each section is a JSON Lines file, so that
a folder can be used by several taggers and an interrupted run can be resumed.
"""

import hashlib
import json
import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..modeling_utils import BasePreTrainedModel

logger = logging.getLogger(__name__)

Tags = list[dict[str, Any]]

KEPT = 10_000
"""Number of images whose tags are cached in memory. The tags of an image with twenty tags take about 3 KB."""

SAMPLES = 4096
"""Approximate number of values per tensor that are sampled to detect changes."""

ROWS = 256
"""Number of image rows to copy at a time for computing a digest."""


class TagCache:
    """Sections of cached tags.

    A copy of the cache, including one in another process, uses the same folder and starts with nothing in memory.

    Args:
        directory: Folder that stores sections across runs. By default, they are only kept in memory.
        size: Number of images per section whose tags are kept in memory.

    Raises:
        ValueError: If the size is negative.
    """

    def __init__(self, directory: str | Path | None = None, size: int = KEPT):
        if size < 0:
            raise ValueError(f"The size of the tag cache is {size}, but must be 0 or more.")
        self.directory = None if directory is None else Path(directory)
        self.size = size
        self._lock = threading.Lock()
        self._weights: tuple | None = None
        self._digest = ""
        self._sections: dict[str, Section] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.directory, self.size)

    def section(self, model: BasePreTrainedModel, settings: Mapping[str, Any]) -> "Section":
        """Return the section for the current state of a tagger. If changes of its weights cannot be detected, the
        section is not stored.

        Args:
            model: Model whose weights the tags depend on. Sections of previous weights are dropped from memory.
            settings: Everything else that the tags depend on, as JSON values.

        Raises:
            ValueError: If the file of the section is damaged.
        """
        weights = weights_state(model)
        if weights is None:
            return Section(self.size)
        with self._lock:
            if weights != self._weights:
                self._weights, self._sections = weights, {}
                self._digest = digest_weights(model.iterate_weights()) if self.directory else ""
            text = json.dumps([self._digest, settings], sort_keys=True, default=str)
            name = hashlib.sha256(text.encode()).hexdigest()[:32]
            if name not in self._sections:
                self._sections[name] = Section(self.size, self.directory and self.directory / f"{name}.jsonl")
            return self._sections[name]

    def clear(self) -> None:
        """Clear the memory. Files are kept."""
        with self._lock:
            self._weights, self._sections = None, {}


class Section:
    """Cached tags by image: the most recently used in memory, and all of them in a file if there is one.

    Args:
        size: Number of images to keep in memory.
        file: JSON Lines file, which may not exist yet.

    Raises:
        ValueError: If the file is damaged.
    """

    def __init__(self, size: int, file: Path | None = None):
        self.size = size
        self.file = file
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Tags] = OrderedDict()
        self._places = {} if file is None else _read_places(file)

    def get(self, image: str) -> Tags | None:
        """Return the tags of an image by its digest, or `None`."""
        with self._lock:
            found = self._kept.get(image)
            if found is None and _cache_key(image) in self._places:
                found = self._read(image)
            if found is not None:
                self._keep(image, found)
            return found

    def store(self, tags: Mapping[str, Tags]) -> None:
        """Store tags by the digests of their images."""
        with self._lock:
            for image, found in tags.items():
                self._keep(image, found)
            if self.file is not None:
                self._append(self.file, tags)

    def _keep(self, image: str, tags: Tags) -> None:
        """Mark tags as the most recently used in memory."""
        self._kept[image] = tags
        self._kept.move_to_end(image)
        while len(self._kept) > self.size:
            self._kept.popitem(last=False)

    def _read(self, image: str) -> Tags | None:
        """Read tags from the file. Return `None` if the line belongs to another image, for example after concurrent
        writes.
        """
        assert self.file is not None
        try:
            with self.file.open("rb") as file:
                file.seek(self._places[_cache_key(image)])
                found = _parse_line(file.readline())
        except (OSError, ValueError):
            return None
        return found[1] if found[0] == image else None

    def _append(self, path: Path, tags: Mapping[str, Tags]) -> None:
        """Append tags to the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            place = file.tell()
            content = b""
            if place:
                file.seek(place - 1)
                content = b"" if file.read(1) == b"\n" else b"\n"  # terminate an incomplete line
            for image, found in tags.items():
                self._places[_cache_key(image)] = place + len(content)
                content += json.dumps({"image": image, "tags": found}).encode() + b"\n"
            file.write(content)


def _cache_key(image: str) -> bytes:
    """Shorten a digest to the key that is kept in memory for each image in a file."""
    return image.encode()[:32]


def _read_places(path: Path) -> dict[bytes, int]:
    """Read the position of each image's line in a file.

    Raises:
        ValueError: If the file is not text.
    """
    places: dict[bytes, int] = {}
    skipped = place = 0
    for number, line in enumerate(_read_lines(path), 1):
        try:
            places[_cache_key(_parse_line(line)[0])] = place
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: this tag cache is damaged: {error.reason} at byte {place + error.start}. "
                "Delete the line or the file to tag its images again."
            ) from error
        except (ValueError, KeyError, TypeError):  # an incomplete line from an interrupted run
            skipped += 1
        place += len(line)
    if skipped:
        logger.warning("%s: skipped %d invalid lines; their images are tagged again.", path, skipped)
    return places


def _read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, or nothing if it does not exist."""
    if path.is_file():
        with path.open("rb") as file:
            yield from file


def _parse_line(line: bytes) -> tuple[str, Tags]:
    """Parse the digest and the tags of an image.

    Raises:
        ValueError, KeyError, TypeError: If the line is not a record. `UnicodeDecodeError` if it is not text.
    """
    record = json.loads(line.decode("utf-8"))
    image, tags = record["image"], record["tags"]
    is_tags = isinstance(tags, list) and all(isinstance(tag, dict) and {"label", "score"} <= tag.keys() for tag in tags)
    if not isinstance(image, str) or not is_tags:
        raise ValueError("not a record of tags")
    return image, tags


def digest_image(image: Image.Image) -> str:
    """Compute a digest of the pixels of an image and their layout."""
    channels = len(image.getbands())
    shape = (image.height, image.width) + ((channels,) if channels > 1 else ())
    digest = hashlib.sha256(f"uint8 {shape}".encode())
    for top in range(0, image.height, ROWS):
        digest.update(image.crop((0, top, image.width, min(top + ROWS, image.height))).tobytes())
    return digest.hexdigest()


def digest_weights(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Compute a digest of named weights and buffers, which is the same in all processes."""
    digest = hashlib.sha256()
    for name, tensor in weights:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_state(model: BasePreTrainedModel) -> tuple | None:
    """Return a value that changes when the weights change. It is fast to compute. Return `None` if any weight is not a
    plain tensor in memory.

    The value combines PyTorch's version counters with samples, because the counters miss writes to `weight.data`. After
    writing to a few values of a large tensor that way, call `clear`. Packed weights of an optimized model are not
    sampled, because they cannot be written to.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if not all(type(tensor) in (nn.Parameter, torch.Tensor) and not tensor.is_meta for tensor in tensors):
        return None
    sums = torch.stack([sample(tensor.detach()).sum(dtype=torch.float32).cpu() for tensor in tensors]).tolist()
    states = tuple(
        (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), 0 if tensor.is_inference() else tensor._version, total)
        for tensor, total in zip(tensors, sums, strict=True)
    )
    return states, tuple(weakref.ref(pack) for pack in model.list_packs())


def sample(tensor: torch.Tensor) -> torch.Tensor:
    """Return values that are spread evenly over a tensor."""
    return tensor.reshape(-1)[:: max(1, tensor.numel() // SAMPLES)]


__all__ = ["KEPT", "TagCache", "Tags", "digest_image", "digest_weights"]
