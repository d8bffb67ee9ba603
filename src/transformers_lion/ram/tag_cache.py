"""Tags of pictures that were seen before: the last ones in memory, and all of them in a folder if there is one.

Tags belong to the picture's content and to everything else they depend on: the weights, the configuration, the
preprocessing and how tags are selected. A section holds the pictures for one such state; in a folder it is a JSON Lines
file of its own, so a folder can serve any number of taggers, and a run that was stopped goes on where it was.
"""

import hashlib
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

logger = logging.getLogger(__name__)

Tags = list[dict[str, Any]]

KEPT = 10_000
"""Pictures whose tags stay in memory; those of a picture with twenty tags take some 3 KB."""

SAMPLES = 4096
"""About so many numbers of a tensor are looked at to see whether it changed."""

ROWS = 256
"""Of a picture, that are copied at a time for its digest."""


class TagCache:
    """Sections of tags by picture.

    A copy, also one in another process, has the same folder and begins with nothing in memory.

    Args:
        directory: where sections are kept across runs; in memory only by default.
        size: the number of pictures of a section whose tags stay in memory.

    Raises:
        ValueError: if the size is negative.
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

    def section(self, model: nn.Module, settings: Mapping[str, Any]) -> "Section":
        """The section of a tagger as it is now; one that is kept nowhere if it cannot be told when that changes.

        Args:
            model: the weights; the sections of others than the last are forgotten.
            settings: all else that tags depend on, in a form that JSON can hold.

        Raises:
            ValueError: if its file is damaged.
        """
        weights = weights_state(model)
        if weights is None:
            return Section(self.size)
        with self._lock:
            if weights != self._weights:
                self._weights, self._sections = weights, {}
                self._digest = digest_weights(model) if self.directory else ""
            text = json.dumps([self._digest, settings], sort_keys=True, default=str)
            name = hashlib.sha256(text.encode()).hexdigest()[:32]
            if name not in self._sections:
                self._sections[name] = Section(self.size, self.directory and self.directory / f"{name}.jsonl")
            return self._sections[name]

    def clear(self) -> None:
        """Forget everything in memory; files stay."""
        with self._lock:
            self._weights, self._sections = None, {}


class Section:
    """Tags by picture: the last that were used in memory, and all in a file if there is one.

    Args:
        size: pictures in memory.
        file: JSON Lines, which need not be there yet.

    Raises:
        ValueError: if the file is damaged.
    """

    def __init__(self, size: int, file: Path | None = None):
        self.size = size
        self.file = file
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Tags] = OrderedDict()
        self._places = {} if file is None else read_places(file)

    def get(self, image: str) -> Tags | None:
        """The tags of a picture, by its digest; `None` if they are not known."""
        with self._lock:
            found = self._kept.get(image)
            if found is None and cache_key(image) in self._places:
                found = self._read(image)
            if found is not None:
                self._keep(image, found)
            return found

    def store(self, tags: Mapping[str, Tags]) -> None:
        """Keep tags of pictures, by their digests."""
        with self._lock:
            for image, found in tags.items():
                self._keep(image, found)
            if self.file is not None:
                self._append(self.file, tags)

    def _keep(self, image: str, tags: Tags) -> None:
        """Have a picture's tags in memory as the last that were used."""
        self._kept[image] = tags
        self._kept.move_to_end(image)
        while len(self._kept) > self.size:
            self._kept.popitem(last=False)

    def _read(self, image: str) -> Tags | None:
        """A picture's tags from the file; `None` if another stands there, as where two runs wrote at once."""
        assert self.file is not None
        try:
            with self.file.open("rb") as file:
                file.seek(self._places[cache_key(image)])
                found = parse_line(file.readline())
        except (OSError, ValueError):
            return None
        return found[1] if found[0] == image else None

    def _append(self, path: Path, tags: Mapping[str, Tags]) -> None:
        """Write tags behind what is there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            place = file.tell()
            content = b""
            if place:
                file.seek(place - 1)
                content = b"" if file.read(1) == b"\n" else b"\n"  # behind a line that was cut off
            for image, found in tags.items():
                self._places[cache_key(image)] = place + len(content)
                content += json.dumps({"image": image, "tags": found}).encode() + b"\n"
            file.write(content)


def cache_key(image: str) -> bytes:
    """A digest as it is kept for each picture in a file."""
    return image.encode()[:32]


def read_places(path: Path) -> dict[bytes, int]:
    """Where each picture's line begins in a file.

    Raises:
        ValueError: if it is no text.
    """
    places: dict[bytes, int] = {}
    skipped = place = 0
    for number, line in enumerate(read_lines(path), 1):
        try:
            places[cache_key(parse_line(line)[0])] = place
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: this tag cache is damaged: {error.reason} at byte {place + error.start}. "
                "Delete the line or the file; its pictures are then tagged again."
            ) from error
        except (ValueError, KeyError, TypeError):  # a line that was cut off when a run was stopped
            skipped += 1
        place += len(line)
    if skipped:
        logger.warning("%s: skipped %d lines that are no records; their pictures are tagged again.", path, skipped)
    return places


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file; none if it is not there."""
    if path.is_file():
        with path.open("rb") as file:
            yield from file


def parse_line(line: bytes) -> tuple[str, Tags]:
    """A picture's digest and its tags.

    Raises:
        ValueError, KeyError, TypeError: if this is no record; `UnicodeDecodeError` if it is no text.
    """
    record = json.loads(line.decode("utf-8"))
    image, tags = record["image"], record["tags"]
    is_tags = isinstance(tags, list) and all(isinstance(tag, dict) and {"label", "score"} <= tag.keys() for tag in tags)
    if not isinstance(image, str) or not is_tags:
        raise ValueError("not a record of tags")
    return image, tags


def digest_picture(picture: Image.Image) -> str:
    """A digest of a picture's pixels, with their layout."""
    channels = len(picture.getbands())
    shape = (picture.height, picture.width) + ((channels,) if channels > 1 else ())
    digest = hashlib.sha256(f"uint8 {shape}".encode())
    for top in range(0, picture.height, ROWS):
        digest.update(picture.crop((0, top, picture.width, min(top + ROWS, picture.height))).tobytes())
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


__all__ = ["KEPT", "TagCache", "Tags", "digest_picture"]
