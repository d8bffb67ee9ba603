"""`pipeline("image-to-text")` and `pipeline("image-text-to-text")` for LION: an image, and if wanted a question.

How the pipeline gets its two names in each version of transformers is in `pipeline_registration.py`.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig, ImageTextToTextPipeline, Pipeline

from .processing_lion import Tags, per_sample

ITEM_KEYS = {"image": "image", "images": "image", "text": "text", "tags": "tags", "task_type": "task_type"}
"""Keys of an input dictionary, and what they are called from there on."""


class LionImageToTextPipeline(ImageTextToTextPipeline):
    """Captions, answers and boxes as text.

    ```
    pipe = pipeline("image-to-text", model=folder)
    pipe("photo.jpg")                                                    # a caption
    pipe("photo.jpg", text="Is there a cat in the image?")
    pipe(paths, text=questions, tags=tags, task_type="region_level", batch_size=8)
    ```
    """

    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def _sanitize_parameters(
        self,
        text: str | None = None,
        prompt: str | None = None,
        tags: Tags = None,
        task_type: str | None = None,
        timeout: float | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        return_full_text: bool = False,
        return_tensors: bool = False,
        skip_special_tokens: bool = True,
        **generation: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if max_new_tokens is not None:
            generation["max_new_tokens"] = max_new_tokens
        twice = sorted(generation.keys() & (generate_kwargs or {}).keys())
        if twice:
            raise ValueError(f"{twice[0]} is given twice: by itself and in generate_kwargs.")
        generation.update(generate_kwargs or {})
        inputs = {"text": text if text is not None else prompt, "tags": tags, "task_type": task_type}
        forward = {"generate_kwargs": generation} if generation else {}
        outputs = {
            "return_full_text": return_full_text,
            "return_tensors": return_tensors,
            "skip_special_tokens": skip_special_tokens,
        }
        defaults = {"return_full_text": False, "return_tensors": False, "skip_special_tokens": True}
        return (
            {name: value for name, value in inputs.items() if value is not None},
            forward,
            {name: value for name, value in outputs.items() if value != defaults[name]},
        )

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Describe images, or answer questions about them.

        Args:
            images: an image (path, URL, base64 text, picture, array), a list, a generator or a data set of them, or of
                dictionaries with `image` and, if wanted, `text`, `tags` and `task_type`; or messages.
            text: a question for all images or, with a list of images, one for each; or messages. The processor's
                `caption_prompt` if it is left out.
            **kwargs: `tags` (of an image or, with a list, of each), `task_type` ("image_level" or "region_level"),
                `batch_size`, `generate_kwargs`, `max_new_tokens`, `return_full_text` (the question before the answer),
                `return_tensors` (token ids instead of text), `timeout` of downloads in seconds; anything else goes to
                `generate`.

        Returns:
            `[{"generated_text": answer}]` for one image, with an entry for each returned sequence; a list of these for
            a list; an iterator for a generator or data set.

        Raises:
            ValueError: if there is no image, or if counts differ.
        """
        images = kwargs.pop("inputs", images)
        if is_conversation(text) or is_conversation(images):
            if text is not None and images is not None:
                raise ValueError("Images belong into the messages: give either messages or images with text.")
            return self._run(to_conversations(images if text is None else text), kwargs)
        if images is None:
            raise ValueError("LION needs an image: none was given.")
        if is_lazy(images):
            return self._run((as_item(image) for image in images), {**kwargs, "text": text})
        if not isinstance(images, list | tuple):
            return self._run(as_item(images), {**kwargs, "text": text})
        if not images:
            raise ValueError("images is empty: there is nothing to do.")
        tags = kwargs.pop("tags", None)
        columns = {"text": text, "tags": tags, "task_type": kwargs.pop("task_type", None)}
        rows = zip(*(per_sample(name, values, len(images)) for name, values in columns.items()), strict=True)
        items = [
            {**{key: value for key, value in zip(columns, row, strict=True) if value is not None}, **as_item(image)}
            for image, row in zip(images, rows, strict=True)
        ]
        return self._run(items, kwargs)

    def _run(self, items: Any, kwargs: dict[str, Any]) -> Any:
        return Pipeline.__call__(self, items, **kwargs)  # ImageTextToTextPipeline's own insists on text

    def preprocess(
        self,
        inputs: Mapping[str, Any],
        text: str | None = None,
        tags: Tags = None,
        task_type: str = "image_level",
        timeout: float | None = None,
    ) -> Any:
        """One item, with the call's options where it has none of its own, to the model's inputs."""
        if "messages" in inputs:
            text = self.processor.apply_chat_template(inputs["messages"], tokenize=False)
            inputs = {"image": image_of(inputs["messages"])}
        elif text is None:
            text = self.processor.caption_prompt
        text = inputs.get("text", text)
        model_inputs = self.processor(
            images=inputs["image"],
            text=text,
            tags=inputs.get("tags", tags),
            task_type=inputs.get("task_type", task_type),
            return_tensors="pt",
        ).to(self.dtype)
        return {**model_inputs, "question": [text]}

    def _forward(self, model_inputs: dict[str, Any], generate_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
        questions = model_inputs.pop("question")
        batch_size = model_inputs["input_ids"].shape[0]
        ids = self.model.generate(**model_inputs, **generate_arguments(self, generate_kwargs or {}))
        return {"sequences": ids.reshape(batch_size, -1, ids.shape[-1]), "question": questions}

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        return_full_text: bool = False,
        return_tensors: bool = False,
        skip_special_tokens: bool = True,
    ) -> list[dict[str, Any]]:
        """Token ids of one item, (1, sequences, L), to its answers."""
        sequences = model_outputs["sequences"].flatten(0, 1)
        if return_tensors:
            return [{"generated_token_ids": ids} for ids in sequences]
        answers = self.processor.batch_decode(sequences, skip_special_tokens=skip_special_tokens)
        question = np.ravel(model_outputs["question"])[0]
        return [{"generated_text": f"{question} {answer}" if return_full_text else answer} for answer in answers]

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save the model and, unlike transformers' pipelines, the whole processor."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


def generate_arguments(pipe: Pipeline, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's generation options on top of the pipeline's, which transformers keeps elsewhere before 5.20."""
    if hasattr(pipe, "_prepare_generate_kwargs"):
        return pipe._prepare_generate_kwargs(generate_kwargs)
    return {"generation_config": pipe.generation_config, **generate_kwargs}


def as_item(image: Any) -> dict[str, Any]:
    """An input in the form of a dictionary with an `image`.

    Raises:
        ValueError: if a dictionary holds none.
    """
    if not isinstance(image, Mapping):
        return {"image": image}
    item = {ITEM_KEYS[key]: value for key, value in image.items() if key in ITEM_KEYS}
    if "image" not in item:
        raise ValueError(f"An input has no image; its keys are {', '.join(map(str, image))}.")
    return item


def is_lazy(images: Any) -> bool:
    """Whether `images` is a generator or a data set, to be read item by item."""
    single = str | Path | Image.Image | np.ndarray | torch.Tensor | Mapping | list | tuple
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


def to_conversations(value: Any) -> Any:
    """One conversation or a list of them as the pipeline's items."""
    if is_message(value[0]):
        return {"messages": list(value)}
    return [{"messages": list(messages)} for messages in value]


def images_of(messages: list[dict[str, Any]]) -> Iterator[Any]:
    """The images in the messages' contents."""
    for message in messages:
        for part in message["content"] if not isinstance(message["content"], str) else ():
            if part.get("type") == "image":
                yield next((part[key] for key in ("image", "url", "path", "base64") if key in part), None)


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
