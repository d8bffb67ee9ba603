"""`transformers serve` for LION: chat completions about an image in OpenAI's form.

    python -m transformers_lion.transformers_serve lion-flant5-xl --port 8000

takes the arguments of `transformers serve` (5.18 to 5.24, installed with `transformers[serving]`). It looks for
a model's class in transformers, gives prompts no tags, cannot stream with beams, and cuts as many tokens off an answer
that is not streamed as the prompt has, since a decoder's answer begins with the prompt. The classes here are LION as
that server needs it; importing this module changes nothing, `register_served` does.
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
    """LION whose answers begin with the prompt."""

    def generate(  # type: ignore[override]
        self,
        *,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig | None = None,
        streamer: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Prompts and answers, (B, T + L). With a `streamer` there are no beams, which transformers cannot stream."""
        if streamer is not None:
            generation_config = copy.deepcopy(generation_config or self.generation_config)
            generation_config.num_beams = 1
            kwargs["streamer"] = streamer
        outputs = super().generate(input_ids=input_ids, generation_config=generation_config, **kwargs)
        return torch.cat([input_ids, outputs], dim=1)


class ServedProcessor(LionProcessor):
    """A processor with a tagger, since the server knows models and processors only.

    A request's `chat_template_kwargs` may hold `task_type`, `tags` and `tag_source`.
    """

    tagger: ImageTagger | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As of `LionProcessor`, with the tagger in the checkpoint's folder `tagger/`, if there is one."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor.tagger = find_tagger(str(pretrained_model_name_or_path), torch.device("cpu"), kwargs.get("revision"))
        return processor

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As of `LionProcessor`, where what is wrong with a request is the client's to know.

        Raises:
            HTTPException: of status 400, with what is wrong in its detail.
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
        """As of `LionProcessor`, with tags from `tag_source`.

        Raises:
            ValueError: if there is no image, or several, if the tags and their source do not go together, and as of
                `LionProcessor`.
        """
        if images is None:
            raise ValueError("LION answers questions about an image: the messages have none.")
        check_tags(tags, tag_source)
        source = resolve_tag_source(tags, tag_source, self.tagger is not None)
        if source == "tagger" and self.tagger is not None:
            return super().__call__(images, text, self.tagger(load_rgb_images(images)), **kwargs)
        return super().__call__(images, text, None if source == "none" else tags, **kwargs)


def check_addresses(conversation: Any) -> None:
    """Raise `ValueError` if an image is a file of the server's, which a request may not ask for."""
    for message in conversation:
        for part in message["content"] if isinstance(message.get("content"), list) else ():
            address = str(part.get("url", ""))
            if part.get("type") == "image" and not address.startswith(("http://", "https://", "data:")):
                raise ValueError(f"image_url is {address[:80]!r}, but must begin with http://, https:// or data:.")


ServedProcessor.__name__ = LionProcessor.__name__  # under which a folder names it


def register_served() -> None:
    """Have `transformers serve`, in this process, find these classes for LION's folders."""
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
