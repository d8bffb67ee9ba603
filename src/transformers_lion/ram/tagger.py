"""`ImageTagger` bundles the tagging model and its image processor, works in batches and caches tags.

`tagger(images)` returns tag names. `tagger.tag(images)` also returns scores, and errors for images that cannot be read.
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
"""Number of images above which a progress bar is shown by default."""


@dataclass(frozen=True)
class TaggedImage:
    """The tags of an image.

    Attributes:
        tags: `{"label", "score"}` for each tag, or `None` if the image could not be read.
        error: Reason why the image could not be read, including its name.
    """

    tags: Tags | None = None
    error: str | None = None

    @property
    def names(self) -> list[str] | None:
        """Names of the tags, or `None` if the image could not be read."""
        return None if self.tags is None else [tag["label"] for tag in self.tags]


@dataclass(frozen=True)
class TaggerInput:
    """An opened and preprocessed image.

    Attributes:
        key: Digest of the image.
        pixel_values: Preprocessed pixels (1, 3, H, W), unless the tags are known.
        tags: Tags, if they are in the cache.
        error: Reason why the image could not be read.
    """

    key: str = ""
    pixel_values: torch.Tensor | None = None
    tags: Tags | None = None
    error: str | None = None


@dataclass
class Pending:
    """An image in the next batch, with its positions in the list of images."""

    pixel_values: torch.Tensor
    positions: list[int] = field(default_factory=list)


class ImageTagger:
    """Tags images.

    Args:
        model: Tagging model. It is put in eval mode.
        image_processor: Image processor of the model.
        batch_size: Number of images per forward pass.
        tag_cache_dir: Folder that caches tags across runs. By default, tags are only cached in memory.
        tag_cache_size: Number of images whose tags are cached in memory. The least recently used ones are dropped
            first. With 0, none are cached in memory. Tags cached in a folder are still found; their index takes about
            0.2 KB of memory per image.
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
        optimize: bool = True,
        **kwargs: Any,
    ) -> "ImageTagger":
        """Load a converted tagger.

        Args:
            pretrained_model_name_or_path: Local folder or Hub repository.
            device: Device of the model.
            dtype: Data type of the weights. Defaults to the data type they were saved in.
            batch_size, tag_cache_dir, tag_cache_size: See the class.
            optimize: Whether to call `cpu_inference.optimize_for_inference` if it makes tagging faster on this CPU.
                With a `dtype` other than float32, the model stays in that data type and is not optimized.
            **kwargs: Options of the model's `from_pretrained`, such as `subfolder`, `device_map` or `revision`.
        """
        from ..cpu_inference import optimize_by_default  # imported here because it uses the tagging model

        hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        image_processor = RamImageProcessor.from_pretrained(pretrained_model_name_or_path, **hub_arguments)
        if dtype is not None:
            kwargs["dtype"] = dtype
        model = RamForImageTagging.from_pretrained(pretrained_model_name_or_path, **kwargs)
        if device is not None:
            model.to(device)
        if optimize:
            optimize_by_default(model, dtype)
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
        """Return the tag names of each image, or `None` for an image that could not be read. See `tag` for options."""
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

        If an image cannot be read, a warning is logged, its result has an `error`, and the other images are still
        tagged. Images with the same content are tagged only once.

        Args:
            images: A path, a URL, the bytes of an image file, a PIL image, an array or a tensor, or any iterable of
                these. Images are read one at a time.
            batch_size: Number of images per forward pass. Defaults to the batch size of the tagger.
            threshold, top_k, sort_by_score, allow, drop: See `select_tags`.
            show_progress: Whether to show a progress bar. By default, it is shown for more than 64 images.

        Returns:
            The tags of each image.

        Raises:
            ValueError: If the model is in training mode, or for the reasons given in `select_tags`.
            SelfCheckError: If transformers or torch is newer than the tested versions and gives different results.
        """
        job = self.start(batch_size, threshold, top_k, sort_by_score, allow, drop)
        for position, image in enumerate(with_progress(as_images(images), show_progress)):
            job.add(job.prepare(image, position))
            del image  # free it before opening the next one
        return job.finish()

    def start(
        self,
        batch_size: int | None = None,
        threshold: float | None = None,
        top_k: int | None = None,
        sort_by_score: bool = False,
        allow: Iterable[str] | None = None,
        drop: Iterable[str] | None = None,
    ) -> "TaggingJob":
        """Return a job that tags images in steps, for images that are opened in other threads.

        Args:
            batch_size, threshold, top_k, sort_by_score, allow, drop: See `tag`.

        Raises:
            ValueError, SelfCheckError: For the reasons given in `tag`.
        """
        from ..self_check import ensure_checked  # imported here because it uses the tagging model

        ensure_checked()
        if self.model.training:
            raise ValueError("The tagging model is in training mode, so its tags are random. Call model.eval() first.")
        selection = {
            "threshold": threshold,
            "top_k": top_k,
            "sort_by_score": sort_by_score,
            "allow": list_names(allow),
            "drop": list_names(drop),
        }
        return TaggingJob(self, self.batch_size if batch_size is None else batch_size, selection)


class TaggingJob:
    """A call of the tagger. It collects single images into batches.

    Threads may call `prepare` while the job runs. All other methods belong to one thread.
    """

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

    def prepare(self, image: Any, position: int) -> TaggerInput:
        """Open and preprocess an image, unless its tags are known.

        Args:
            image: Image in any form.
            position: Position of the image, for messages.
        """
        try:
            rgb_image = to_rgb(image)
            key = digest_image(rgb_image)
            known = self.known.get(key)
            if known is not None:
                return TaggerInput(key, tags=known)
            return TaggerInput(key, self.tagger.image_processor(rgb_image, return_tensors="pt")["pixel_values"])
        except Exception as error:  # decoders raise many types of errors
            return TaggerInput(error=f"{name_image(image, position)}: {str(error)[:300] or type(error).__name__}")

    def add(self, prepared: TaggerInput) -> None:
        """Add an image, and run the model when the batch is full."""
        tags = prepared.tags
        if prepared.pixel_values is not None and prepared.key not in self.pending:
            tags = self.known.get(prepared.key)  # may have been tagged in the meantime
        self.results.append(TaggedImage(None if tags is None else copy_tags(tags), prepared.error))
        if prepared.pixel_values is not None and tags is None:
            pending = self.pending.setdefault(prepared.key, Pending(prepared.pixel_values))
            pending.positions.append(len(self.results) - 1)
        if len(self.pending) >= self.batch_size:
            self.run_batch()

    def run_batch(self) -> None:
        """Tag the pending images."""
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
        """Tag the remaining images, and return the results of all images since the last call, in order."""
        if self.pending:
            self.run_batch()
        errors = [result.error for result in self.results if result.error]
        if errors:
            logger.warning(
                "%d of %d images could not be read and have no tags:\n%s",
                len(errors), len(self.results), "\n".join(errors),
            )  # fmt: skip
        results, self.results = self.results, []
        return results


def copy_tags(tags: Tags) -> Tags:
    """Copy tags, so that callers can change them without changing the cache."""
    return [dict(tag) for tag in tags]


def name_image(image: Any, position: int) -> str:
    """Return the name of an image for messages."""
    if isinstance(image, Mapping):
        image = image.get("path")
    name = image if isinstance(image, str | os.PathLike) else getattr(image, "filename", None)
    return f"image {position} ({os.fspath(name)[:200]})" if name else f"image {position}"


def as_images(images: Any) -> Iterable[Any]:
    """Return an iterable of images. A single image becomes a list of one."""
    is_one = (isinstance(images, ImageSource) or not isinstance(images, Iterable)) and not is_batch(images)
    return [images] if is_one else images


def with_progress(images: Iterable[Any], show_progress: bool | None) -> Iterator[Any]:
    """Iterate over images, with a progress bar if requested."""
    total = len(images) if isinstance(images, Sized) else None
    if show_progress is None:
        show_progress = total is None or total > LONG_LIST
    return iter(transformers_logging.tqdm(images, total=total, desc="Tagging") if show_progress else images)


__all__ = ["ImageTagger", "TaggedImage", "TaggerInput", "TaggingJob"]
