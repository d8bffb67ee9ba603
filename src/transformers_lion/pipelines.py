"""`pipeline("image-to-text")` and `pipeline("image-text-to-text")` for LION: captions, or answers to questions.

`pipeline_registration.py` registers the pipeline under both task names.
"""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig, ImageTextToTextPipeline, Pipeline
from transformers.utils import logging

from .checkpoint_utils import TAGGER_FILES, TAGGER_FOLDER, check_tagger_files, local_folder
from .columns import to_plain, unread_fields
from .cpu_inference import optimize_by_default
from .images import TIMEOUT, is_batch, is_stored_image, to_rgb, warn_about_gray_batch
from .modeling_utils import check_finite
from .processing_lion import broadcast, check_strings
from .ram import ImageTagger
from .tag_source import Tags, TagSource, as_names, check_tags, resolve_tag_source

logger = logging.get_logger(__name__)

ITEM_KEYS = {
    "image": "image",
    "images": "image",
    "text": "text",
    "question": "text",
    "prompt": "text",
    "tags": "tags",
    "tag_source": "tag_source",
    "task_type": "task_type",
}
"""Keys of an input dictionary, with the names that the pipeline uses for them."""

IMAGE_PARTS = ("image", "image_url")
"""Types of message parts that are images."""
IMAGE_PART_KEYS = ("image", "image_url", "url", "path", "base64")

NOT_LOADED = "as given"
"""Used in place of a dtype if the class is called directly. `pipeline` passes the dtype that it loaded the model in."""


class LionImageToTextPipeline(ImageTextToTextPipeline):
    """Generate captions, answers and boxes as text.

    ```
    pipe = pipeline("image-to-text", model=folder)
    pipe("photo.jpg")                                                    # a caption
    pipe("photo.jpg", text="Is there a cat in the image?")
    pipe(paths, text=questions, tags=tags, task_type="region_level", batch_size=8)
    ```

    Args:
        tagger (`ImageTagger`, *optional*): Tagger for images without tags, or `False` for no tagger. Defaults to the
            tagger in the `tagger/` folder of the checkpoint, if there is one, loaded on the pipeline's device.
        optimize (`bool`, *optional*, defaults to `True`): Whether to call `cpu_inference.optimize_for_inference` if it
            makes generation faster on this CPU. Not applied if you pass a `dtype` other than float32. A model object is
            changed in place.
    """

    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def __init__(
        self, *args: Any, tagger: ImageTagger | Literal[False] | None = None, optimize: bool = True, **kwargs: Any
    ):
        dtype = kwargs.get("dtype", NOT_LOADED)
        super().__init__(*args, **kwargs)
        name = self.model.name_or_path
        check_finite(self.model, name)
        if optimize:
            optimize_by_default(self.model, dtype)
        revision = getattr(self.model.config, "_commit_hash", None)
        self.tagger = find_tagger(name, self.device, revision, optimize) if tagger is None else tagger or None

    def _sanitize_parameters(
        self,
        text: str | None = None,
        prompt: str | None = None,
        question: str | None = None,
        tags: Tags = None,
        tag_source: TagSource | None = None,
        task_type: str | None = None,
        timeout: float | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        return_full_text: bool = False,
        return_tensors: bool = False,
        return_tags: bool = False,
        skip_special_tokens: bool = True,
        **generation: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if max_new_tokens is not None:
            generation["max_new_tokens"] = max_new_tokens
        twice = sorted(generation.keys() & (generate_kwargs or {}).keys())
        if twice:
            raise ValueError(f"{twice[0]} is passed twice: directly and in generate_kwargs.")
        generation.update(generate_kwargs or {})
        check_tags(tags, tag_source)
        inputs = {
            "text": resolve_aliases({"text": text, "question": question, "prompt": prompt}),
            "tags": tags,
            "tag_source": tag_source,
            "task_type": task_type,
            "timeout": timeout,
        }
        forward = {"generate_kwargs": generation} if generation else {}
        outputs = {
            "return_full_text": return_full_text or None,
            "return_tensors": return_tensors or None,
            "return_tags": return_tags or None,
            "skip_special_tokens": None if skip_special_tokens else False,
        }
        return drop_none(inputs), forward, drop_none(outputs)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Caption images, or answer questions about them.

        Args:
            images: One of the following:

                - an image: a path, a URL, a base64 string, the bytes of a file, a PIL image or an array;
                - a dictionary with `image` and optionally `text` (or `question` or `prompt`), `tags`, `tag_source`,
                  `task_type` and ids (such as `image_id`);
                - a conversation: a list of messages;
                - a list, generator or dataset of any of these.
            text: A question for all images, or a list or table column with one question per image. Several questions
                about a single image are allowed. `question` and `prompt` are aliases. Conversations can also be passed
                here. Defaults to the processor's `caption_prompt`.
            **kwargs: Options of the call. All other options are passed to `generate`.

                - `tags`: Tags of an image, or a list with the tags of each image.
                - `tag_source`: "data" to use these tags or those of the dictionaries, "tagger" to use the tagger, or
                  "none" for prompts without a tag sentence. By default, an image's own tags are used if it has any,
                  otherwise the tagger if there is one.
                - `task_type`: "image_level" or "region_level".
                - `batch_size`: Number of images per forward pass.
                - `generate_kwargs`, `max_new_tokens`: Options of `generate`.
                - `return_tags`: Whether to return the tags in the prompt.
                - `return_full_text`: Whether to prepend the question to the answer.
                - `return_tensors`: Whether to return token ids instead of text.
                - `timeout`: Timeout of each download in seconds.

        Returns:
            `[{"generated_text": answer}]` for one image, with one entry per returned sequence; a list of these for a
            list of images; an iterator for a generator or dataset. With `return_tags=True`, each entry also has
            `"tags"`, a list of names, or `None` if the prompt has no tag sentence.

        Raises:
            ValueError: If there is no image, lengths differ, a question is missing from a list, tags are combined with
                `tag_source="tagger"`, or a dictionary has unknown keys.
        """
        images = kwargs.pop("inputs", images)
        text = resolve_aliases({"text": text, **{name: kwargs.pop(name, None) for name in ("question", "prompt")}})
        if is_conversation(text) or is_conversation(images):
            if text is not None and images is not None:
                raise ValueError("Pass either messages or images with text, not both. Messages include their images.")
            images, text = images if text is None else text, None
            if is_message(images[0]):
                return self._run(as_input(images), kwargs)
        if images is None:
            raise ValueError("LION requires an image, but images is None.")
        columns = {
            "text": read_text(text),
            **{name: to_plain(kwargs.pop(name, None)) for name in ("tags", "tag_source", "task_type")},
        }
        check_tag_columns(columns["tags"], columns["tag_source"])
        if isinstance(columns["text"], list):
            check_strings("text", columns["text"])
        if hasattr(images, "ndim") and is_batch(images):
            images = list(images)
        if is_lazy(images):
            return self._run(add_columns(images, columns), kwargs)
        if not isinstance(images, list | tuple):
            if not isinstance(columns["text"], list):
                return self._run({**drop_none(columns), **as_input(images)}, kwargs)
            warn_about_gray_batch(images, len(columns["text"]))
            images = [images] * len(columns["text"])  # several questions about one image
        if not images:
            raise ValueError("images is empty.")
        for name, values in columns.items():
            broadcast(name, values, len(images))
        return self._run(list(add_columns(images, columns)), kwargs)

    def _run(self, items: Any, kwargs: dict[str, Any]) -> Any:
        return Pipeline.__call__(self, items, **kwargs)  # ImageTextToTextPipeline.__call__ requires text

    @property
    def preprocess(self) -> "ImagePreprocessing":
        """The preprocessing step. It holds no reference to the model, so dataloader workers don't copy the weights."""
        return ImagePreprocessing(self.processor, self.dtype, has_tagger=self.tagger is not None)

    def _forward(self, model_inputs: dict[str, Any], generate_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
        columns = [model_inputs[name] for name in ("text", "task_type", "image", "tags", "tag_source")]
        if isinstance(model_inputs["text"], str):  # transformers does not batch a single item
            columns = [[value] for value in columns]
        texts, tasks, images, own_tags, sources = columns
        tags = self._resolve_tags(images, own_tags, sources)
        prompts = self.processor(text=texts, tags=tags, task_type=tasks, return_tensors="pt").to(self.device)
        ids = self.model.generate(
            pixel_values=model_inputs["pixel_values"], **prompts, **generate_arguments(self, generate_kwargs or {})
        )
        ids = ids if isinstance(ids, torch.Tensor) else ids.sequences
        return {"sequences": ids.reshape(len(texts), -1, ids.shape[-1]), "text": texts, "tags": tags}

    def _resolve_tags(
        self, images: list[Image.Image | None], own: list[Tags], requested: list[TagSource | None]
    ) -> list[Tags]:
        """Return the tags of each image, or `None` for no tag sentence."""
        has_tagger = self.tagger is not None
        sources = [resolve_tag_source(tags, source, has_tagger) for tags, source in zip(own, requested, strict=True)]
        if not has_tagger and (None, None) in zip(own, requested, strict=True):
            logger.warning_once(
                "There are no tags and no tagger, so prompts have no tag sentence, although LION was trained with one. "
                "Pass tags=, or use pipeline(..., tagger=ImageTagger.from_pretrained(folder))."
            )
        untagged = [index for index, source in enumerate(sources) if source == "tagger"]
        found = self.tagger([images[index] for index in untagged]) if untagged and self.tagger else []
        by_tagger = dict(zip(untagged, found, strict=True))
        return [
            {"data": tags, "tagger": by_tagger.get(index), "none": None}[source]
            for index, (tags, source) in enumerate(zip(own, sources, strict=True))
        ]

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        return_full_text: bool = False,
        return_tensors: bool = False,
        return_tags: bool = False,
        skip_special_tokens: bool = True,
    ) -> list[dict[str, Any]]:
        """Decode the token ids of one item, (1, sequences, L)."""
        sequences = model_outputs["sequences"].flatten(0, 1)
        text, tags = model_outputs["text"], model_outputs["tags"]
        if not isinstance(text, str):  # transformers does not unbatch a batch of one
            (text,), (tags,) = text, tags
        extra = {"tags": as_names(tags)} if return_tags else {}
        if return_tensors:
            return [{"generated_token_ids": ids, **extra} for ids in sequences]
        answers = self.processor.batch_decode(sequences, skip_special_tokens=skip_special_tokens)
        return [{"generated_text": f"{text} {answer}" if return_full_text else answer, **extra} for answer in answers]

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save the model and, unlike other pipelines of transformers, the complete processor."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


@dataclass(frozen=True)
class ImagePreprocessing:
    """Opens images for the pipeline, in dataloader workers if `num_workers` is set."""

    processor: Any
    dtype: torch.dtype
    has_tagger: bool

    def __call__(
        self,
        inputs: Mapping[str, Any],
        text: str | None = None,
        tags: Tags = None,
        tag_source: TagSource | None = None,
        task_type: str = "image_level",
        timeout: float | None = TIMEOUT,
    ) -> dict[str, Any]:
        """Open one image. Prompts are built later, for the whole batch, once the tags are known."""
        if "messages" in inputs:
            text = self.processor.apply_chat_template(inputs["messages"], tokenize=False) or None
            inputs = {**inputs, "image": find_image(inputs["messages"])}
        tags, tag_source = inputs.get("tags", tags), inputs.get("tag_source", tag_source)
        source = resolve_tag_source(tags, tag_source, self.has_tagger)
        image = to_rgb(inputs["image"], timeout=timeout)
        return {
            **self.processor(images=image, return_tensors="pt").to(self.dtype),
            "image": image if source == "tagger" else None,
            "text": inputs.get("text", self.processor.caption_prompt if text is None else text),
            "tags": tags,
            "tag_source": tag_source,
            "task_type": inputs.get("task_type", task_type),
        }


def find_tagger(
    checkpoint: str, device: torch.device, revision: str | None = None, optimize: bool = True
) -> ImageTagger | None:
    """Load the tagger from the `tagger/` folder of a checkpoint, if there is one.

    Raises:
        OSError, ValueError: If the folder is incomplete.
    """
    if not checkpoint:
        return None
    folder = os.path.join(local_folder(checkpoint, TAGGER_FILES, revision=revision), TAGGER_FOLDER)
    if not os.path.isdir(folder):
        return None
    check_tagger_files(folder)
    tagger = ImageTagger.from_pretrained(folder, device=device, optimize=False)
    check_finite(tagger.model, folder)
    if optimize:
        optimize_by_default(tagger.model)
    return tagger


def check_tag_columns(tags: Any, sources: Any) -> None:
    """Check tags and tag sources. Each is a single value or a list with one value per image; see `check_tags`."""
    if not isinstance(sources, list):
        check_tags(tags, sources)
        return
    for index, source in enumerate(sources):
        check_tags(tags[index] if isinstance(tags, list) and index < len(tags) else tags, source)


def resolve_aliases(values: Mapping[str, Any]) -> Any:
    """Return the value of the only alias that is set, or `None`.

    Raises:
        ValueError: If several aliases are set.
    """
    found = drop_none(dict(values))
    if len(found) > 1:
        raise ValueError(f"Pass only one of {' and '.join(found)}: they are aliases.")
    return next(iter(found.values()), None)


def read_text(text: Any) -> Any:
    """Return a question, or a column of questions as a list.

    Raises:
        ValueError: If the question is an empty cell of a table.
    """
    found = to_plain(text)
    if found is None and text is not None:
        raise ValueError(f"text is {text!r}, but must be a question. Omit it to caption the image.")
    return found


def add_columns(images: Iterable[Any], columns: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield each image as a dictionary with its entry from each list in `columns`. Other values apply to all images.

    Raises:
        ValueError: If the number of images differs from the length of a list. Because images may be lazy, the error
            is raised when the shorter one ends.
    """
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    count = 0
    for count, image in enumerate(images, 1):
        for name, values in lists.items():
            if len(values) < count:
                raise ValueError(f"{name} has {len(values)} entries, but there are at least {count} images.")
        row = {name: lists[name][count - 1] if name in lists else value for name, value in columns.items()}
        yield {**drop_none(row), **as_input(image)}
    for name, values in lists.items():
        if len(values) > count:
            raise ValueError(f"{name} has {len(values)} entries, but there are {count} images.")


def drop_none(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are not `None`."""
    return {name: value for name, value in options.items() if value is not None}


def generate_arguments(pipe: Pipeline, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
    """Merge the options of the call with those of the pipeline, as transformers 5.20 and later do."""
    generate_kwargs = prefer_max_length(generate_kwargs)
    if hasattr(pipe, "_prepare_generate_kwargs"):
        return pipe._prepare_generate_kwargs(generate_kwargs)
    return {"generation_config": pipe.generation_config, **generate_kwargs}


def prefer_max_length(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return generation options in which a `max_length` set by the call takes effect.

    Otherwise transformers fills in `max_new_tokens` from the checkpoint, which overrides `max_length`.
    """
    options = dict(generation)
    config: Any = options.get("generation_config")
    if "max_new_tokens" in options or getattr(config, "max_new_tokens", None) is not None:
        return options
    if options.get("max_length") is not None:
        options["max_new_tokens"] = None
    elif getattr(config, "max_length", None) is not None:
        prompt = options.get("decoder_input_ids")
        options["generation_config"] = copy.deepcopy(config)
        options["generation_config"].max_length = None
        options["generation_config"].max_new_tokens = config.max_length - (1 if prompt is None else prompt.shape[1])
    return options


def as_input(image: Any) -> dict[str, Any]:
    """Return an input as a dictionary with `image` or `messages`.

    Raises:
        ValueError: If a dictionary has no image or has unknown keys, or the input has several images.
    """
    if is_conversation(image):
        return {"messages": list(image)}
    item = {"image": image}
    if isinstance(image, Mapping) and not is_stored_image(image):
        unread = unread_fields(image, ITEM_KEYS)
        if unread:
            raise ValueError(
                f"Unknown keys {', '.join(map(repr, unread))} in an input. The known keys are {', '.join(ITEM_KEYS)} "
                "and ids."
            )
        names = {name: [key for key in ITEM_KEYS if ITEM_KEYS[key] == name] for name in ITEM_KEYS.values()}
        item = drop_none({name: resolve_aliases({key: image.get(key) for key in keys}) for name, keys in names.items()})
        readers = {"text": read_text, "tags": to_plain, "tag_source": to_plain, "task_type": to_plain}
        item = drop_none({name: readers[name](value) if name in readers else value for name, value in item.items()})
        if "image" not in item:
            raise ValueError(f"An input has no image. Its keys are {', '.join(map(str, image))}.")
    if isinstance(item["image"], list | tuple):
        if len(item["image"]) != 1:
            raise ValueError(f"An input has {len(item['image'])} images, but LION accepts one.")
        item["image"] = item["image"][0]
    return item


def is_lazy(images: Any) -> bool:
    """Whether `images` is a generator or a dataset."""
    single = str | Path | bytes | bytearray | Image.Image | np.ndarray | torch.Tensor | Mapping | list | tuple
    return isinstance(images, Iterable | torch.utils.data.Dataset) and not isinstance(images, single)


def is_message(value: Any) -> bool:
    """Whether `value` is a message of a conversation."""
    return isinstance(value, Mapping) and "role" in value and "content" in value


def is_conversation(value: Any) -> bool:
    """Whether `value` is a conversation (a list of messages) or a list of conversations."""
    if not isinstance(value, list | tuple) or not value:
        return False
    first = value[0]
    return is_message(first) or (isinstance(first, list | tuple) and bool(first) and is_message(first[0]))


def iterate_images(messages: list[dict[str, Any]]) -> Iterator[Any]:
    """Yield the images in messages, from `image` parts and from the `image_url` parts of OpenAI's format."""
    for message in messages:
        for part in message["content"] if not isinstance(message["content"], str) else ():
            if part.get("type") in IMAGE_PARTS:
                found = next((part[key] for key in IMAGE_PART_KEYS if part.get(key) is not None), None)
                if isinstance(found, Mapping) and "url" in found:  # {"url": ..., "detail": ...}
                    found = found["url"]
                yield found


def find_image(messages: list[dict[str, Any]]) -> Any:
    """Return the only image of a conversation.

    Raises:
        ValueError: If the conversation does not have exactly one image.
    """
    images = [image for image in iterate_images(messages) if image is not None]
    if len(images) != 1:
        raise ValueError(f"The messages have {len(images)} images, but LION accepts one.")
    return images[0]


__all__ = ["LionImageToTextPipeline"]
