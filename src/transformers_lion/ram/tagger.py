"""Tagging images: the model and its image processor in one object, in batches, each image once.

`tagger(images)` gives the names alone; `tagger.tag(images)` gives scores too, and the reason where an image could not
be read.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from ..images import ImageSource, is_batch, to_rgb
from .image_processing_ram import HUB_ARGUMENTS, RamImageProcessor
from .modeling_ram import RamForImageTagging
from .tag_cache import KEPT, TagCache, Tags, digest_image
from .tags import list_names

logger = logging.getLogger(__name__)

LONG_LIST = 64
"""More images than this get a progress bar."""


@dataclass(frozen=True)
class TaggedImage:
    """What became of one image.

    Attributes:
        tags: `{"label", "score"}` for each tag; `None` if the image could not be read.
        error: why it could not be read, with the image's name.
    """

    tags: Tags | None = None
    error: str | None = None

    @property
    def names(self) -> list[str] | None:
        """The tag names alone; `None` if the image could not be read."""
        return None if self.tags is None else [tag["label"] for tag in self.tags]


@dataclass
class Pending:
    """An image that waits for its batch, and where it stands in the list."""

    pixel_values: torch.Tensor
    positions: list[int] = field(default_factory=list)


class ImageTagger:
    """Turns images into lists of tags.

    Args:
        model: in eval mode; `ImageTagger` puts it there once.
        image_processor: its image processor.
        batch_size: images in a forward pass.
        tag_cache_dir: folder where tags are kept across runs; in memory only by default.
        tag_cache_size: images whose tags stay in memory, where the least recently used are forgotten; 0 for none.
            What a folder holds is found there again, at some 0.2 KB of memory for each image.
    """

    def __init__(
        self,
        model: RamForImageTagging,
        image_processor: RamImageProcessor,
        batch_size: int = 8,
        tag_cache_dir: str | os.PathLike | None = None,
        tag_cache_size: int = KEPT,
    ):
        self.model = model.eval()
        self.image_processor = image_processor
        self.batch_size = batch_size
        self.cache = TagCache(tag_cache_dir if tag_cache_dir is None else Path(tag_cache_dir), tag_cache_size)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        batch_size: int = 8,
        tag_cache_dir: str | os.PathLike | None = None,
        tag_cache_size: int = KEPT,
        **kwargs: Any,
    ) -> "ImageTagger":
        """Load a converted tagger.

        Args:
            pretrained_model_name_or_path: folder or repository.
            device: where to put the model.
            dtype: of the weights; as saved by default.
            batch_size, tag_cache_dir, tag_cache_size: as of the class.
            **kwargs: anything that the model's `from_pretrained` takes (`subfolder`, `device_map`, `revision`...).
        """
        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        image_processor = RamImageProcessor.from_pretrained(pretrained_model_name_or_path, **hub_arguments)
        if dtype is not None:
            kwargs["dtype"] = dtype
        model = RamForImageTagging.from_pretrained(pretrained_model_name_or_path, **kwargs)
        if device is not None:
            model.to(device)
        return cls(
            model,
            image_processor,
            batch_size=batch_size,
            tag_cache_dir=tag_cache_dir,
            tag_cache_size=tag_cache_size,
        )

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Save the model and its image processor in one folder."""
        self.model.save_pretrained(save_directory)
        self.image_processor.save_pretrained(save_directory)

    def __call__(self, images: Any, **kwargs: Any) -> list[list[str] | None]:
        """The tag names of each image, `None` for one that could not be read; it takes the arguments of `tag`."""
        return [image.names for image in self.tag(images, **kwargs)]

    @torch.no_grad()
    def tag(
        self,
        images: Any,
        batch_size: int | None = None,
        threshold: float | None = None,
        top_k: int | None = None,
        sort_by_score: bool = False,
        allow: Iterable[str] | None = None,
        drop: Iterable[str] | None = None,
        show_progress: bool | None = None,
    ) -> list[TaggedImage]:
        """Tag images.

        An image that cannot be read does not stop the others: it is named in a warning and in its result. Images of
        the same content are tagged once.

        Args:
            images: a path, URL, bytes of an image file, PIL image, array or tensor, or any iterable of these, read one
                at a time.
            batch_size: images in a forward pass, instead of the tagger's own.
            threshold, top_k, sort_by_score, allow, drop: see `select_tags`.
            show_progress: whether to show a progress bar; for more than 64 images by default.

        Raises:
            ValueError: if the model is in training mode, and as `select_tags` does.
            SelfCheckError: if transformers or torch is newer than those tested with, and computes something else.
        """
        from ..self_check import ensure_checked  # which makes a tagger's model

        ensure_checked()
        if self.model.training:
            raise ValueError("The tagger's model is in training mode, where tags are random; call model.eval() first.")
        selection = {
            "threshold": threshold,
            "top_k": top_k,
            "sort_by_score": sort_by_score,
            "allow": list_names(allow),
            "drop": list_names(drop),
        }
        job = TaggingJob(self, self.batch_size if batch_size is None else batch_size, selection)
        for image in with_progress(as_images(images), show_progress):
            job.add(image)
            del image  # before the next one is opened
        return job.finish()


class TaggingJob:
    """One call of the tagger: images come in one at a time, and leave in batches."""

    def __init__(self, tagger: ImageTagger, batch_size: int, selection: dict[str, Any]):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1.")
        self.tagger = tagger
        self.batch_size = batch_size
        self.selection = selection
        settings = {
            "selection": selection,
            "model": {**tagger.model.config.to_diff_dict(), "transformers_version": None},
            "image_processor": tagger.image_processor.to_dict(),
        }
        self.known = tagger.cache.section(tagger.model, settings)
        self.results: list[TaggedImage] = []
        self.pending: dict[str, Pending] = {}

    def add(self, image: Any) -> None:
        """Take one image in; a full batch goes through the model."""
        position = len(self.results)
        self.results.append(TaggedImage())
        try:
            picture = to_rgb(image)
            key = digest_image(picture)
            known = self.known.get(key)
            if known is not None:
                self.results[position] = TaggedImage(copy_tags(known))
                return
            if key not in self.pending:
                self.pending[key] = Pending(self.tagger.image_processor(picture, return_tensors="pt")["pixel_values"])
            self.pending[key].positions.append(position)
        except Exception as error:  # whatever a decoder raises: the other images go on
            reason = f"{name_image(image, position)}: {str(error)[:300] or type(error).__name__}"
            self.results[position] = TaggedImage(error=reason)
        if len(self.pending) >= self.batch_size:
            self.run_batch()

    def run_batch(self) -> None:
        """Send the waiting images through the model."""
        model = self.tagger.model
        pixel_values = torch.cat([pending.pixel_values for pending in self.pending.values()])
        outputs = model(pixel_values=pixel_values.to(model.device))
        found = dict(zip(self.pending, model.post_process_tagging(outputs, **self.selection), strict=True))
        for key, pending in self.pending.items():
            for position in pending.positions:
                self.results[position] = TaggedImage(copy_tags(found[key]))
        self.known.store(found)
        self.pending = {}

    def finish(self) -> list[TaggedImage]:
        """The results in the order of the images."""
        if self.pending:
            self.run_batch()
        errors = [result.error for result in self.results if result.error]
        if errors:
            logger.warning(
                "%d of %d images could not be read and have no tags:\n%s",
                len(errors), len(self.results), "\n".join(errors),
            )  # fmt: skip
        return self.results


def copy_tags(tags: Tags) -> Tags:
    """Tags that the caller may change without changing what is kept."""
    return [dict(tag) for tag in tags]


def name_image(image: Any, position: int) -> str:
    """What an image is called in a report."""
    if isinstance(image, Mapping):
        image = image.get("path")
    name = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", None)
    return f"image {position} ({os.fspath(name)[:200]})" if name else f"image {position}"


def as_images(images: Any) -> Iterable[Any]:
    """The images to iterate over: one alone counts as a list of one."""
    is_one = (isinstance(images, ImageSource) or not isinstance(images, Iterable)) and not is_batch(images)
    return [images] if is_one else images


def with_progress(images: Iterable[Any], show_progress: bool | None) -> Iterator[Any]:
    """The images behind a progress bar, if one is wanted."""
    total = len(images) if isinstance(images, Sized) else None
    if show_progress is None:
        show_progress = total is None or total > LONG_LIST
    return iter(transformers_logging.tqdm(images, total=total, desc="Tagging") if show_progress else images)


__all__ = ["ImageTagger", "TaggedImage"]
