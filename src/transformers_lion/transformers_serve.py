"""`transformers serve` for LION: chat completions about an image in OpenAI's form.

    python -m transformers_lion.transformers_serve lion-flant5-xl --port 8000

accepts the arguments of `transformers serve` (5.18 to 5.24, installed with `transformers[serving]`). That server looks
up model classes in transformers, adds no tags to prompts, cannot stream with beam search, and removes as many tokens
from the start of an answer as the prompt has, unless it is streamed, because decoder-only models repeat the prompt. The
classes here adapt LION to that server. Importing this module has no side effects; call `register_served` to register
them.
"""

import copy
import sys
from typing import Any

import torch
import transformers
from transformers import AutoProcessor, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from .configuration_lion import LionConfig
from .images import load_rgb_images
from .modeling_lion import LionForConditionalGeneration
from .pipelines import find_tagger
from .processing_lion import LionProcessor
from .ram import ImageTagger
from .tag_source import Tags, TagSource, check_tags, resolve_tag_source


class ServedLion(LionForConditionalGeneration):
    """LION with answers that start with the prompt."""

    def generate(  # type: ignore[override]
        self,
        *,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig | None = None,
        streamer: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return prompts and answers, (B, T + L). With a `streamer`, beam search is disabled."""
        if streamer is not None:
            generation_config = copy.deepcopy(generation_config or self.generation_config)
            generation_config.num_beams = 1
            kwargs["streamer"] = streamer
        outputs = super().generate(input_ids=input_ids, generation_config=generation_config, **kwargs)
        return torch.cat([input_ids, outputs], dim=1)


class ServedProcessor(LionProcessor):
    """A processor with a tagger, because the server only handles models and processors.

    The `chat_template_kwargs` of a request may contain `task_type`, `tags` and `tag_source`.
    """

    tagger: ImageTagger | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a processor as `LionProcessor` does, with the tagger in the checkpoint's `tagger/`, if there is one."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor.tagger = find_tagger(str(pretrained_model_name_or_path), torch.device("cpu"), kwargs.get("revision"))
        return processor

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Apply the chat template as `LionProcessor` does, and report invalid requests to the client.

        Raises:
            HTTPException: with status 400 and the error message as its detail, if the request is invalid.
        """
        from fastapi import HTTPException

        try:
            check_addresses(conversation)
            return super().apply_chat_template(conversation, *args, **kwargs)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error

    def __call__(  # type: ignore[override]
        self,
        images: Any = None,
        text: Any = None,
        tags: Tags = None,
        tag_source: TagSource | None = None,
        **kwargs: Any,
    ) -> Any:
        """Process inputs as `LionProcessor` does, with tags from `tag_source`.

        Raises:
            ValueError: if there is not exactly one image, the tags and their source conflict, or `LionProcessor` raises
                an error.
        """
        if images is None:
            raise ValueError("LION answers questions about an image, but the messages contain none.")
        check_tags(tags, tag_source)
        source = resolve_tag_source(tags, tag_source, self.tagger is not None)
        if source == "tagger" and self.tagger is not None:
            return super().__call__(images, text, self.tagger(load_rgb_images(images)), **kwargs)
        return super().__call__(images, text, None if source == "none" else tags, **kwargs)


def check_addresses(conversation: Any) -> None:
    """Raise `ValueError` if an image is a file on the server, which requests may not access."""
    for message in conversation:
        for part in message["content"] if isinstance(message.get("content"), list) else ():
            address = str(part.get("url", ""))
            if part.get("type") == "image" and not address.startswith(("http://", "https://", "data:")):
                raise ValueError(f"image_url is {address[:80]!r}, but must begin with http://, https:// or data:.")


ServedProcessor.__name__ = LionProcessor.__name__  # the name in saved checkpoints


def register_served() -> None:
    """Make `transformers serve` in this process use these classes for LION checkpoints."""
    transformers.LionForConditionalGeneration = ServedLion
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[LionConfig.model_type] = ServedLion.__name__
    AutoProcessor.register(LionConfig, ServedProcessor, exist_ok=True)


def main() -> None:
    """Run `transformers serve` with the arguments of this process."""
    from transformers.cli.transformers import app

    register_served()
    sys.argv = ["transformers", "serve", *sys.argv[1:]]
    app()


if __name__ == "__main__":
    main()
