"""Runs `transformers serve` for LION: chat completions about images in OpenAI's format.

    python -m transformers_lion.transformers_serve lion-flant5-xl --port 8000

accepts the arguments of `transformers serve` (5.18 to 5.24, installed with `transformers[serving]`). That server only
finds model classes in transformers itself, does not pass tags, and cannot stream beam search. Without streaming, it
also removes the prompt from the generated tokens, which decoder-only models repeat. The classes here adapt LION to the
server. Importing this module has no effect until `register_served` is called.
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
    """LION with the prompt prepended to its answers."""

    def generate(  # type: ignore[override]
        self,
        *,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig | None = None,
        streamer: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Generate prompts followed by answers, (B, T + L). With a `streamer`, beam search is disabled."""
        if streamer is not None:
            generation_config = copy.deepcopy(generation_config or self.generation_config)
            generation_config.num_beams = 1
            kwargs["streamer"] = streamer
        outputs = super().generate(input_ids=input_ids, generation_config=generation_config, **kwargs)
        return torch.cat([input_ids, outputs], dim=1)


class ServedProcessor(LionProcessor):
    """Processor with a tagger, because the server only loads models and processors.

    The `chat_template_kwargs` of a request may contain `task_type`, `tags` and `tag_source`.
    """

    tagger: ImageTagger | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load the processor, and the tagger from the `tagger/` folder of the checkpoint if there is one."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor.tagger = find_tagger(str(pretrained_model_name_or_path), torch.device("cpu"), kwargs.get("revision"))
        return processor

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Apply the chat template, and report invalid requests to the client.

        Raises:
            HTTPException: If the request is invalid, with status 400 and the reason as the detail.
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
        """Prepare inputs like `LionProcessor`, with tags from `tag_source`.

        Raises:
            ValueError: If there is not exactly one image, `tags` and `tag_source` are not compatible, or for the
                reasons given in `LionProcessor`.
        """
        if images is None:
            raise ValueError("LION requires an image, but the messages have none.")
        check_tags(tags, tag_source)
        source = resolve_tag_source(tags, tag_source, self.tagger is not None)
        if source == "tagger" and self.tagger is not None:
            return super().__call__(images, text, self.tagger(load_rgb_images(images)), **kwargs)
        return super().__call__(images, text, None if source == "none" else tags, **kwargs)


def check_addresses(conversation: Any) -> None:
    """Raise `ValueError` if a request tries to read an image from the file system of the server."""
    for message in conversation:
        for part in message["content"] if isinstance(message.get("content"), list) else ():
            address = str(part.get("url", ""))
            if part.get("type") == "image" and not address.startswith(("http://", "https://", "data:")):
                raise ValueError(f"image_url is {address[:80]!r}, but must begin with http://, https:// or data:.")


ServedProcessor.__name__ = LionProcessor.__name__  # the name in saved processor configs


def register_served() -> None:
    """Make `transformers serve` in this process use these classes for LION's checkpoints."""
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
