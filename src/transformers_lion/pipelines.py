"""`pipeline("image-to-text")` and `pipeline("image-text-to-text")` for LION: an image, and if wanted a question.

How the pipeline gets its two names in each version of transformers is in `pipeline_registration.py`.
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
from .cpu_inference.default import optimize_by_default
from .images import TIMEOUT, is_batch, is_stored_image, to_rgb, warn_of_grey_batch
from .modeling_utils import check_finite
from .processing_lion import check_strings, per_sample
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
"""Keys of an input dictionary, and what they are called from there on."""

IMAGE_PARTS = ("image", "image_url")
"""Types of parts of a message that are images."""
IMAGE_PART_KEYS = ("image", "image_url", "url", "path", "base64")

NOT_LOADED = "as given"
"""In place of a dtype, where the class is called without `pipeline`, which names the one it loaded the model in."""


class LionImageToTextPipeline(ImageTextToTextPipeline):
    """Captions, answers and boxes as text.

    ```
    pipe = pipeline("image-to-text", model=folder)
    pipe("photo.jpg")                                                    # a caption
    pipe("photo.jpg", text="Is there a cat in the image?")
    pipe(paths, text=questions, tags=tags, task_type="region_level", batch_size=8)
    ```

    Args:
        tagger (`ImageTagger`, *optional*): makes the tags where none are given. By default the one in the checkpoint's
            folder `tagger/`, if there is one, on the pipeline's device; `False` for none.
        optimize (`bool`, *optional*, defaults to `True`): call `cpu_inference.optimize_for_inference` where that makes
            answers faster on this CPU, unless `pipeline` is given a `dtype` other than float32. A model object is
            changed in place, until it is trained or saved.
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
        self.tagger = find_tagger(name, self.device, revision) if tagger is None else tagger or None

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
            raise ValueError(f"{twice[0]} is given twice: by itself and in generate_kwargs.")
        generation.update(generate_kwargs or {})
        check_tags(tags, tag_source)
        inputs = {
            "text": one_of({"text": text, "question": question, "prompt": prompt}),
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
        return given(inputs), forward, given(outputs)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Describe images, or answer questions about them.

        Args:
            images: an image (path, URL, base64 text, bytes, image, array), a list, a generator or a data set of them,
                or of dictionaries with `image` and, if wanted, `text` (or `question`, `prompt`), `tags`, `tag_source`
                and `task_type`; or messages, or a list or generator of conversations. A dictionary may have ids, too,
                but no other keys.
            text: a question for all images or, with several images, one for each: a list or a column of a table; or
                messages. `question` and `prompt` are other names for it. The processor's `caption_prompt` if it is
                left out.
            **kwargs: `tags` (of an image or, with several, of each), `tag_source` ("data" for these tags, "tagger" for
                the tagger's, also in place of tags in dictionaries, "none" for no tag sentence; if it is not set, the
                tags of an image that has some, otherwise the tagger's if there is one), `task_type` ("image_level" or
                "region_level"), `batch_size`, `generate_kwargs`,
                `max_new_tokens`, `return_tags` (what stood in the prompt), `return_full_text` (the question before the
                answer), `return_tensors` (token ids instead of text), `timeout` of downloads in seconds; anything else
                goes to `generate`.

        Returns:
            `[{"generated_text": answer}]` for one image, with an entry for each returned sequence; a list of these for
            a list; an iterator for a generator or data set. With `return_tags` also `"tags"`, a list of names, or
            `None` without a tag sentence.

        Raises:
            ValueError: if there is no image, if counts differ, if a question is missing among several, if tags are
                given although the tagger is to make them, or if a dictionary has keys that are not read.
        """
        images = kwargs.pop("inputs", images)
        text = one_of({"text": text, **{name: kwargs.pop(name, None) for name in ("question", "prompt")}})
        if is_conversation(text) or is_conversation(images):
            if text is not None and images is not None:
                raise ValueError("Images belong into the messages: give either messages or images with text.")
            images, text = images if text is None else text, None
            if is_message(images[0]):
                return self._run(as_item(images), kwargs)
        if images is None:
            raise ValueError("LION needs an image: none was given.")
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
                return self._run({**given(columns), **as_item(images)}, kwargs)
            warn_of_grey_batch(images, len(columns["text"]))
            images = [images] * len(columns["text"])  # several questions about one image
        if not images:
            raise ValueError("images is empty: there is nothing to do.")
        for name, values in columns.items():
            per_sample(name, values, len(images))
        return self._run(list(add_columns(images, columns)), kwargs)

    def _run(self, items: Any, kwargs: dict[str, Any]) -> Any:
        return Pipeline.__call__(self, items, **kwargs)  # ImageTextToTextPipeline's own insists on text

    @property
    def preprocess(self) -> "ImagePreprocessing":
        """What opens an image: no part of the model, so that worker processes get none of its weights."""
        return ImagePreprocessing(self.processor, self.dtype, has_tagger=self.tagger is not None)

    def _forward(self, model_inputs: dict[str, Any], generate_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
        columns = [model_inputs[name] for name in ("text", "task_type", "picture", "tags", "tag_source")]
        if isinstance(model_inputs["text"], str):  # one item, which transformers does not make a batch of
            columns = [[value] for value in columns]
        texts, tasks, pictures, own_tags, sources = columns
        tags = self._tags_of(pictures, own_tags, sources)
        prompts = self.processor(text=texts, tags=tags, task_type=tasks, return_tensors="pt").to(self.device)
        ids = self.model.generate(
            pixel_values=model_inputs["pixel_values"], **prompts, **generate_arguments(self, generate_kwargs or {})
        )
        ids = ids if isinstance(ids, torch.Tensor) else ids.sequences
        return {"sequences": ids.reshape(len(texts), -1, ids.shape[-1]), "text": texts, "tags": tags}

    def _tags_of(
        self, pictures: list[Image.Image | None], own: list[Tags], asked: list[TagSource | None]
    ) -> list[Tags]:
        """The tags of each image; `None` where there is to be no tag sentence."""
        has_tagger = self.tagger is not None
        sources = [resolve_tag_source(tags, source, has_tagger) for tags, source in zip(own, asked, strict=True)]
        if not has_tagger and (None, None) in zip(own, asked, strict=True):
            logger.warning_once(
                "There are no tags and no tagger, so that prompts have no tag sentence, with which LION was trained. "
                "Give tags=, or pipeline(..., tagger=ImageTagger.from_pretrained(folder))."
            )
        untagged = [index for index, source in enumerate(sources) if source == "tagger"]
        found = self.tagger([pictures[index] for index in untagged]) if untagged and self.tagger else []
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
        """Token ids of one item, (1, sequences, L), to its answers."""
        sequences = model_outputs["sequences"].flatten(0, 1)
        text, tags = model_outputs["text"], model_outputs["tags"]
        if not isinstance(text, str):  # one item is not taken out of its batch either
            (text,), (tags,) = text, tags
        extra = {"tags": as_names(tags)} if return_tags else {}
        if return_tensors:
            return [{"generated_token_ids": ids, **extra} for ids in sequences]
        answers = self.processor.batch_decode(sequences, skip_special_tokens=skip_special_tokens)
        return [{"generated_text": f"{text} {answer}" if return_full_text else answer, **extra} for answer in answers]

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save the model and, unlike transformers' pipelines, the whole processor."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


@dataclass(frozen=True)
class ImagePreprocessing:
    """Opens images for the pipeline, in worker processes with `num_workers`."""

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
        """Open one image. The prompt is made with those of the whole batch, when the tags are known."""
        if "messages" in inputs:
            text = self.processor.apply_chat_template(inputs["messages"], tokenize=False) or None
            inputs = {**inputs, "image": image_of(inputs["messages"])}
        tags, tag_source = inputs.get("tags", tags), inputs.get("tag_source", tag_source)
        source = resolve_tag_source(tags, tag_source, self.has_tagger)
        picture = to_rgb(inputs["image"], timeout=timeout)
        return {
            **self.processor(images=picture, return_tensors="pt").to(self.dtype),
            "picture": picture if source == "tagger" else None,
            "text": inputs.get("text", self.processor.caption_prompt if text is None else text),
            "tags": tags,
            "tag_source": tag_source,
            "task_type": inputs.get("task_type", task_type),
        }


def find_tagger(checkpoint: str, device: torch.device, revision: str | None = None) -> ImageTagger | None:
    """The tagger in a checkpoint's folder `tagger/`, if there is one.

    Raises:
        OSError, ValueError: if it is not whole.
    """
    if not checkpoint:
        return None
    folder = os.path.join(local_folder(checkpoint, TAGGER_FILES, revision=revision), TAGGER_FOLDER)
    if not os.path.isdir(folder):
        return None
    check_tagger_files(folder)
    tagger = ImageTagger.from_pretrained(folder, device=device)
    check_finite(tagger.model, folder)
    return tagger


def check_tag_columns(tags: Any, sources: Any) -> None:
    """Check the tags of a call and their sources, each one value for all or a list with one for each.

    Raises:
        ValueError: as `check_tags` does.
    """
    if not isinstance(sources, list):
        check_tags(tags, sources)
        return
    for index, source in enumerate(sources):
        check_tags(tags[index] if isinstance(tags, list) and index < len(tags) else tags, source)


def one_of(values: Mapping[str, Any]) -> Any:
    """The one of several names for the same thing that has a value, or `None`.

    Raises:
        ValueError: if several have.
    """
    found = given(dict(values))
    if len(found) > 1:
        raise ValueError(f"Give one of {' and '.join(found)}: they are names for the same thing.")
    return next(iter(found.values()), None)


def read_text(text: Any) -> Any:
    """A question, or a column of them as a list.

    Raises:
        ValueError: if it is an empty cell of a table.
    """
    found = to_plain(text)
    if found is None and text is not None:
        raise ValueError(f"text is {text!r}, which is no question; leave it out for a caption.")
    return found


def add_columns(images: Iterable[Any], columns: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Inputs as dictionaries, each with its entry of a column that is a list, or with the value for all.

    Raises:
        ValueError: if a list is not as long as there are images, which is seen at the end of the shorter.
    """
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    count = 0
    for count, image in enumerate(images, 1):
        for name, values in lists.items():
            if len(values) < count:
                raise ValueError(f"{name} has {len(values)} entries, but there are {count} images or more.")
        row = {name: lists[name][count - 1] if name in lists else value for name, value in columns.items()}
        yield {**given(row), **as_item(image)}
    for name, values in lists.items():
        if len(values) > count:
            raise ValueError(f"{name} has {len(values)} entries, but there are {count} images.")


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that have a value."""
    return {name: value for name, value in options.items() if value is not None}


def generate_arguments(pipe: Pipeline, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's generation options on top of the pipeline's, which transformers keeps elsewhere before 5.20."""
    generate_kwargs = heed_max_length(generate_kwargs)
    if hasattr(pipe, "_prepare_generate_kwargs"):
        return pipe._prepare_generate_kwargs(generate_kwargs)
    return {"generation_config": pipe.generation_config, **generate_kwargs}


def heed_max_length(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Options of generation in which a `max_length` of the call's own counts.

    transformers fills `max_new_tokens` in from the checkpoint and puts it above any `max_length`.
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


def as_item(image: Any) -> dict[str, Any]:
    """An input in the form of a dictionary with an `image`, or with `messages`.

    Raises:
        ValueError: if a dictionary holds no image, or something that is not read, or if there is a list of several
            images for one input.
    """
    if is_conversation(image):
        return {"messages": list(image)}
    item = {"image": image}
    if isinstance(image, Mapping) and not is_stored_image(image):
        unread = unread_fields(image, ITEM_KEYS)
        if unread:
            raise ValueError(
                f"An input has {', '.join(map(repr, unread))}, which is not read; the keys are {', '.join(ITEM_KEYS)}, "
                "and ids."
            )
        names = {name: [key for key in ITEM_KEYS if ITEM_KEYS[key] == name] for name in ITEM_KEYS.values()}
        item = given({name: one_of({key: image.get(key) for key in keys}) for name, keys in names.items()})
        readers = {"text": read_text, "tags": to_plain, "tag_source": to_plain, "task_type": to_plain}
        item = given({name: readers[name](value) if name in readers else value for name, value in item.items()})
        if "image" not in item:
            raise ValueError(f"An input has no image; its keys are {', '.join(map(str, image))}.")
    if isinstance(item["image"], list | tuple):
        if len(item["image"]) != 1:
            raise ValueError(f"An input holds {len(item['image'])} images; LION takes 1.")
        item["image"] = item["image"][0]
    return item


def is_lazy(images: Any) -> bool:
    """Whether `images` is a generator or a data set, to be read item by item."""
    single = str | Path | bytes | bytearray | Image.Image | np.ndarray | torch.Tensor | Mapping | list | tuple
    return isinstance(images, Iterable | torch.utils.data.Dataset) and not isinstance(images, single)


def is_message(value: Any) -> bool:
    """Whether `value` is one turn of a conversation."""
    return isinstance(value, Mapping) and "role" in value and "content" in value


def is_conversation(value: Any) -> bool:
    """Whether `value` is a list of messages, or a list of such lists."""
    if not isinstance(value, list | tuple) or not value:
        return False
    first = value[0]
    return is_message(first) or (isinstance(first, list | tuple) and bool(first) and is_message(first[0]))


def images_of(messages: list[dict[str, Any]]) -> Iterator[Any]:
    """The images in the messages' contents: parts `image`, and `image_url` as OpenAI's clients send it."""
    for message in messages:
        for part in message["content"] if not isinstance(message["content"], str) else ():
            if part.get("type") in IMAGE_PARTS:
                found = next((part[key] for key in IMAGE_PART_KEYS if part.get(key) is not None), None)
                if isinstance(found, Mapping) and "url" in found:  # {"url": address, "detail": how closely}
                    found = found["url"]
                yield found


def image_of(messages: list[dict[str, Any]]) -> Any:
    """The one image of a conversation.

    Raises:
        ValueError: if it has none or several.
    """
    images = [image for image in images_of(messages) if image is not None]
    if len(images) != 1:
        raise ValueError(f"The messages hold {len(images)} images; LION takes 1.")
    return images[0]


__all__ = ["LionImageToTextPipeline"]
