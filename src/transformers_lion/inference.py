"""Captions, answers, boxes and tags from one object, with the right prompt and task for each by itself.

`Lion.answer` and `Lion.rank` take requests of any kind, many at a time; the other methods are short ways to them.
Each image of a call is opened, tagged and encoded once, however many requests are about it (LION, arXiv:2311.11860,
section 3: nothing before the Q-Former reads the question).

Shape letters: B requests, E encoder tokens, T prompt tokens, L label tokens, D language-model width.
"""

import copy
import os
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from .checkpoint_utils import MODEL_FILES, PROCESSOR_FILES, TAGGER_FILES, check_folder, local_folder
from .columns import to_plain
from .cpu_inference.default import optimize_by_default
from .example import example_checkpoint
from .grounding import Box, Entity, extract_entities, format_boxes, score_boxes, token_log_probs
from .grounding.boxes import check_pixels
from .images import flatten, image_key, is_batch, is_url, to_rgb, upright_size, warn_of_grey_batch
from .modeling_lion import (
    LionEncoderOutput,
    LionForConditionalGeneration,
    LionImageFeatures,
    concatenate_features,
    find_setting,
)
from .modeling_utils import check_finite
from .pipelines import find_tagger, heed_max_length
from .processing_lion import LionProcessor, check_strings
from .ram import ImageTagger
from .tag_source import Tags, TagSource, as_names, check_tags, resolve_tag_source

logger = logging.get_logger(__name__)

LOCATE_QUESTION = "How can I locate {phrase} in the image? Please provide the coordinates."
REGION_QUESTION = "Please describe the region {box} in the image."
MAX_NEW_TOKENS = 256
"""Where neither the call nor the checkpoint says it, as in the paper."""
OnError = Literal["raise", "skip"]
"""Whether an image that cannot be read stops everything, or only its own requests have no answer."""
OneImage = str | os.PathLike | bytes | bytearray | memoryview | Mapping[str, Any] | Image.Image
"""What is a single image to a type checker; an array may be one or a batch."""
Images = list[Any] | tuple[Any, ...]
Texts = list[str] | tuple[str, ...]
OneBox = Box | list[float]
Boxes = list[Box] | list[list[float]]
CANDIDATES_PER_REQUEST = 4
"""Rows of the decoder for each request of a batch when candidates are ranked: they are far smaller than an image."""


@dataclass(frozen=True)
class Request:
    """One question about one image.

    Attributes:
        image: a path, a URL, the bytes of an image file, a PIL image, an array or a tensor (see
            `images.ImageSource`). The same path or object is the same image.
        question: what the Q-Former and, behind the tag sentence, the language model read.
        task_type: "image_level" or "region_level".
        tags: names, or a text.
        tag_source: "data" for `tags`, "tagger" for those of the tagger, "none" for no tag sentence. If it is not set,
            `tags` where there are some, otherwise those of the tagger if there is one.

    Raises:
        ValueError: if there is no such source, or tags are given with `tag_source="tagger"`.
    """

    image: Any
    question: str
    task_type: str = "image_level"
    tags: Tags = None
    tag_source: TagSource | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", to_plain(self.tags))  # may come from a table
        check_tags(self.tags, self.tag_source)


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        text: what the model wrote, with its boxes.
        prompt: what the language model read, with the tag sentence and the soft prompt's marker.
        tags: those in the prompt; `None` without a tag sentence.
        entities: phrases, their spans in the text without boxes, and their boxes in pixels of the image.
        image_size: (width, height).
        scores: how sure the model was of each of `boxes`, where that was asked for.
        error: why the image could not be read, where `on_error="skip"` let the others go on. All else is then empty.
    """

    text: str
    prompt: str
    tags: list[str] | None
    entities: list[Entity]
    image_size: tuple[int, int]
    scores: list[float] | None = None
    error: str | None = None

    @property
    def boxes(self) -> list[Box]:
        """All boxes in their order, (x1, y1, x2, y2) in pixels."""
        return [box for _, _, boxes in self.entities for box in boxes]


@dataclass
class SeenImage:
    """What a call knows of an image until the last request about it is done.

    Attributes:
        size: (width, height), upright.
        features: of this image alone.
    """

    size: tuple[int, int]
    features: LionImageFeatures
    tags: list[str] | None = None


@dataclass
class OneByOne:
    """Images that are opened while somebody iterates over them.

    Attributes:
        images: not yet opened.
        count: of those, as far as they can be read.
    """

    pictures: Iterator[Image.Image]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Image.Image]:
        return self.pictures


class Lion:
    """LION with all that it takes to be asked.

    ```
    lion = Lion.from_pretrained("lion-flant5-xl")
    lion.caption("photo.jpg")
    lion.ask("photo.jpg", ["Is there a cat?", "What colour is it?"])   # the image is encoded once
    lion.locate("photo.jpg", "the cat").boxes                          # in pixels
    ```

    Nothing is kept from one call to the next, so that several threads may use one object.

    Args:
        model: `Lion` puts it into eval mode.
        processor: of the same checkpoint.
        tagger: makes the tags of requests that have none, see `Request`.
    """

    def __init__(
        self, model: LionForConditionalGeneration, processor: LionProcessor, tagger: ImageTagger | None = None
    ):
        self.model = model.eval()
        self.processor = processor
        self.tagger = tagger

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None = None,
        *,
        tagger: ImageTagger | Literal[False] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        optimize: bool = True,
    ) -> "Lion":
        """Load a checkpoint.

        Args:
            pretrained_model_name_or_path: folder or repository; the example checkpoint by default.
            tagger: by default the one in the checkpoint's folder `tagger/`, if there is one; `False` for none.
            device: where to put the model, and the tagger that comes with it.
            dtype: of the weights; as saved by default.
            optimize: whether to call `cpu_inference.optimize_for_inference` where that makes answers faster on this
                CPU. A model for which another `dtype` than float32 is given stays in that dtype.

        Raises:
            OSError: if a file is missing.
            ValueError: if files do not fit together, or weights are not finite.
        """
        name = os.fspath(pretrained_model_name_or_path or example_checkpoint())
        files = [*MODEL_FILES, *PROCESSOR_FILES, *(() if tagger is not None else TAGGER_FILES)]
        folder = local_folder(name, files)
        if os.path.isdir(folder):
            check_folder(Path(folder))
        model = LionForConditionalGeneration.from_pretrained(folder, dtype=dtype or "auto")
        model.name_or_path = model.config.name_or_path = name
        check_finite(model, name)
        if device is not None:
            model.to(device)
        if optimize:
            optimize_by_default(model, dtype)
        processor = LionProcessor.from_pretrained(folder)
        found = find_tagger(folder, model.device) if tagger is None else tagger or None
        if found is None and tagger is None and pretrained_model_name_or_path is not None:
            logger.warning_once(
                f"{name} holds no tagger, so that prompts without tags of their own have no tag sentence, with which "
                "LION was trained. Give tags, or Lion.from_pretrained(..., tagger=ImageTagger.from_pretrained(folder))."
            )
        return cls(model, processor, found)

    # --- requests of any kind ----------------------------------------------------------------------------------

    @torch.no_grad()
    def answer(
        self,
        requests: Sequence[Request],
        *,
        batch_size: int = 8,
        scores: bool = False,
        on_error: OnError = "raise",
        **generation: Any,
    ) -> list[Answer]:
        """Answer requests.

        Requests about the same image go through the model one after the other, whatever their order in the list, and
        an image is forgotten after the last of them.

        Args:
            requests: in any order.
            batch_size: requests, and at most so many images, that go through the model at a time.
            scores: also score each box, as `grounding.score_boxes` does.
            on_error: what happens if an image cannot be read: "raise" stops there; with "skip" the other requests are
                answered, a warning names the image, and its own answers have `error` and no text.
            **generation: anything that `generate` takes but several sequences for a request.

        Raises:
            ValueError: if an image cannot be read and `on_error` is "raise", or a request is none.
        """
        self._check(requests, batch_size, on_error)
        options = self._options(generation)
        answers: dict[int, Answer] = {}
        errors: dict[int, str] = {}
        for positions, images in self._batches(requests, batch_size, on_error, errors):
            inputs = self._inputs([requests[position] for position in positions], images)
            rows = zip(
                positions, images, self.read_prompts(inputs), self._generate(inputs, scores, options), strict=True
            )
            for position, image, prompt, (text, found) in rows:
                answers[position] = Answer(
                    text=text,
                    prompt=prompt,
                    tags=as_names(self._tags_of(requests[position], image)),
                    entities=extract_entities(text, image.size)[1],
                    image_size=image.size,
                    scores=found,
                )
        answers |= {position: Answer("", "", None, [], (0, 0), error=error) for position, error in errors.items()}
        return [answers[position] for position in range(len(requests))]

    @torch.no_grad()
    def rank(
        self,
        requests: Sequence[Request],
        candidates: Sequence[Sequence[str]],
        *,
        batch_size: int = 8,
        on_error: OnError = "raise",
    ) -> list[list[float]]:
        """How likely the model thinks each of some answers to be.

        Everything before the decoder runs once for a request, however many candidates it has.

        Args:
            requests: as of `answer`.
            candidates: for each request its candidates.
            batch_size, on_error: as of `answer`.

        Returns:
            For each request and each of its candidates the sum of the log-probabilities of its tokens, with the end
            token, as the model would have to write it. (Longer candidates are less likely; divide if you want to.)
            A request that `on_error="skip"` left out has an empty list.

        Raises:
            ValueError: if there are not as many lists of candidates as requests, and as of `answer`.
        """
        self._check(requests, batch_size, on_error)
        if len(candidates) != len(requests):
            raise ValueError(f"{len(candidates)} lists of candidates for {len(requests)} requests.")
        candidates = [to_plain(texts) for texts in candidates]
        for texts in candidates:
            check_strings("candidates", texts)
        scores: list[list[float]] = [[] for _ in requests]
        for positions, images in self._batches(requests, batch_size, on_error, {}):
            inputs = self._inputs([requests[position] for position in positions], images)
            rows = [(row, text) for row, position in enumerate(positions) for text in candidates[position]]
            if not rows:
                continue
            encoded = self.model.encode(**inputs, return_dict=True)
            step = batch_size * CANDIDATES_PER_REQUEST
            for start in range(0, len(rows), step):
                chunk = rows[start : start + step]
                for (row, _), score in zip(chunk, self._score(encoded, inputs["task_type_ids"], chunk), strict=True):
                    scores[positions[row]].append(score)
        return scores

    # --- short ways --------------------------------------------------------------------------------------------

    @overload
    def caption(self, images: OneImage, **options: Any) -> str | None: ...

    @overload
    def caption(self, images: Images, **options: Any) -> list[str | None]: ...

    @overload
    def caption(self, images: Any, **options: Any) -> Any: ...

    def caption(
        self,
        images: Any,
        *,
        tags: Tags = None,
        tag_source: TagSource | None = None,
        batch_size: int = 8,
        on_error: OnError = "raise",
        **generation: Any,
    ) -> Any:
        """Describe an image, or each of a list, in a short sentence.

        Args:
            images: one or a list.
            tags, tag_source: for all images; see `Request`.
            batch_size, on_error, **generation: as of `answer`.

        Returns:
            A text, or a list with `None` for each image that `on_error="skip"` left out.
        """
        pictures, _, is_single = pair(images, "questions", [self.processor.caption_prompt], True)
        prompt = self.processor.caption_prompt
        requests = [Request(picture, prompt, tags=tags, tag_source=tag_source) for picture in pictures]
        answers = self.answer(requests, batch_size=batch_size, on_error=on_error, **generation)
        return unpack(texts_of(answers), is_single)

    @overload
    def ask(self, images: OneImage, questions: str, **options: Any) -> str | None: ...

    @overload
    def ask(self, images: OneImage, questions: Texts, **options: Any) -> list[str | None]: ...

    @overload
    def ask(self, images: Images, questions: str | Texts, **options: Any) -> list[str | None]: ...

    @overload
    def ask(self, images: Any, questions: Any, **options: Any) -> Any: ...

    def ask(
        self,
        images: Any,
        questions: str | Sequence[str],
        *,
        tags: Tags = None,
        tag_source: TagSource | None = None,
        batch_size: int = 8,
        on_error: OnError = "raise",
        **generation: Any,
    ) -> Any:
        """Answer a question about an image, or a list of them: one image, one question, or as many of both.

        Args:
            images: one or a list.
            questions: one or a list.
            tags, tag_source: for all images; see `Request`.
            batch_size, on_error, **generation: as of `answer`.

        Returns:
            As of `caption`.
        """
        pictures, texts, is_single = pair_texts(images, "questions", questions)
        rows = zip(pictures, texts, strict=True)
        requests = [Request(picture, text, tags=tags, tag_source=tag_source) for picture, text in rows]
        answers = self.answer(requests, batch_size=batch_size, on_error=on_error, **generation)
        return unpack(texts_of(answers), is_single)

    @overload
    def locate(self, images: OneImage, phrases: str, **options: Any) -> Answer: ...

    @overload
    def locate(self, images: OneImage, phrases: Texts, **options: Any) -> list[Answer]: ...

    @overload
    def locate(self, images: Images, phrases: str | Texts, **options: Any) -> list[Answer]: ...

    @overload
    def locate(self, images: Any, phrases: Any, **options: Any) -> Any: ...

    def locate(
        self,
        images: Any,
        phrases: str | Sequence[str],
        *,
        tags: Tags = None,
        tag_source: TagSource | None = None,
        batch_size: int = 8,
        scores: bool = False,
        on_error: OnError = "raise",
        **generation: Any,
    ) -> Any:
        """Find what phrases such as "the red cup" speak of: one image, one phrase, or as many of both.

        Args:
            images: one or a list.
            phrases: one or a list.
            tags, tag_source: for all images; see `Request`.
            batch_size, scores, on_error, **generation: as of `answer`.

        Returns:
            An `Answer`, of which `boxes` are those found (none, where the model wrote none), or a list.
        """
        pictures, texts, is_single = pair_texts(images, "phrases", phrases)
        requests = [
            Request(picture, LOCATE_QUESTION.format(phrase=text.strip()), "region_level", tags, tag_source)
            for picture, text in zip(pictures, texts, strict=True)
        ]
        answers = self.answer(requests, batch_size=batch_size, scores=scores, on_error=on_error, **generation)
        return unpack(answers, is_single)

    @overload
    def describe_region(self, images: OneImage, boxes: OneBox, **options: Any) -> str | None: ...

    @overload
    def describe_region(self, images: OneImage, boxes: Boxes, **options: Any) -> list[str | None]: ...

    @overload
    def describe_region(self, images: Images, boxes: OneBox | Boxes, **options: Any) -> list[str | None]: ...

    @overload
    def describe_region(self, images: Any, boxes: Any, **options: Any) -> Any: ...

    def describe_region(
        self,
        images: Any,
        boxes: Any,
        *,
        tags: Tags = None,
        tag_source: TagSource | None = None,
        batch_size: int = 8,
        on_error: OnError = "raise",
        **generation: Any,
    ) -> Any:
        """Say what is in a box: one image, one box, or as many of both.

        Args:
            images: one or a list.
            boxes: (x1, y1, x2, y2) in pixels of the upright image, as `locate` finds them, or a list of such.
            tags, tag_source: for all images; see `Request`.
            batch_size, on_error, **generation: as of `answer`.

        Returns:
            As of `caption`.

        Raises:
            ValueError: if a box is none, not in its image, or may be fractions instead of pixels; and as of `answer`.
        """
        pictures, rows, is_single = pair(images, "boxes", as_boxes(boxes), np.ndim(boxes) == 1)
        measured: dict[Hashable, tuple[Any, tuple[int, int]] | None] = {}
        requests: list[Request | None] = []
        for source, box in zip(pictures, rows, strict=True):
            key = image_key(source)
            if key not in measured:
                measured[key] = measure_source(source, on_error)
            found = measured[key]
            if found is None:
                requests.append(None)
                continue
            question = REGION_QUESTION.format(box=format_boxes([to_fractions(box, found[1])]))
            requests.append(Request(found[0], question, "region_level", tags, tag_source))
        readable = [request for request in requests if request is not None]
        texts = iter(texts_of(self.answer(readable, batch_size=batch_size, on_error=on_error, **generation)))
        return unpack([None if request is None else next(texts) for request in requests], is_single)

    @overload
    def tag(self, images: OneImage, *, on_error: OnError = ...) -> list[str] | None: ...

    @overload
    def tag(self, images: Images, *, on_error: OnError = ...) -> list[list[str] | None]: ...

    @overload
    def tag(self, images: Any, *, on_error: OnError = ...) -> Any: ...

    def tag(self, images: Any, *, on_error: OnError = "raise") -> Any:
        """The tags of an image, a list of names, or such a list for each of a list of images.

        Args:
            images: one or a list.
            on_error: with "skip" the tags of an image that cannot be read are `None`, and a warning names it.

        Raises:
            ValueError: if there is no tagger, or an image cannot be read and `on_error` is "raise".
        """
        if self.tagger is None:
            raise ValueError(
                "There is no tagger: this checkpoint holds none. Give one, Lion.from_pretrained(..., "
                "tagger=ImageTagger.from_pretrained(folder))."
            )
        found = self.tagger.tag(list(flatten(images)))
        for image in found:
            if image.error is not None and on_error == "raise":
                raise ValueError(image.error)
        return unpack([image.names for image in found], not is_batch(images))

    # --- steps -------------------------------------------------------------------------------------------------

    def _check(self, requests: Sequence[Request], batch_size: int, on_error: OnError) -> None:
        """Raise `ValueError` if something is wrong that no image is needed to see."""
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error is {on_error!r}, but must be "raise" or "skip".')
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1.")
        for request in requests:
            if not isinstance(request, Request):
                raise ValueError(f"requests must hold Request, but holds {type(request).__name__}.")
            self._source_of(request)
        check_strings("questions", [request.question for request in requests])

    def _options(self, generation: dict[str, Any]) -> dict[str, Any]:
        """The options of generation, with a limit to the answer's length if nothing else has one.

        Raises:
            ValueError: if they ask for several sequences.
        """
        config = generation.get("generation_config")
        sequences = find_setting("num_return_sequences", generation, [config, self.model.generation_config])
        if sequences not in (None, 1):
            raise ValueError(f"num_return_sequences is {sequences}, but a request has 1 answer.")
        options = heed_max_length(generation)
        configs = [options.get("generation_config"), self.model.generation_config]
        if any(find_setting(name, options, configs) is not None for name in ("max_new_tokens", "max_length")):
            return options
        if config is None:
            return {**options, "max_new_tokens": MAX_NEW_TOKENS}
        limited = copy.deepcopy(config)
        limited.max_new_tokens = MAX_NEW_TOKENS
        return {**options, "generation_config": limited}

    def _batches(
        self, requests: Sequence[Request], batch_size: int, on_error: OnError, errors: dict[int, str]
    ) -> Iterator[tuple[list[int], list[SeenImage]]]:
        """Positions of requests that go together, those of one image one after the other, and the image of each.

        Args:
            requests, batch_size, on_error: as of `answer`.
            errors: gets the positions of requests whose images cannot be read, and the reasons.
        """
        keys = [image_key(request.image) for request in requests]
        first = {key: position for position, key in reversed(list(enumerate(keys)))}
        order = sorted(range(len(requests)), key=lambda position: first[keys[position]])
        untagged = {key for key, request in zip(keys, requests, strict=True) if self._source_of(request) == "tagger"}
        left = Counter(keys)
        seen: dict[Hashable, SeenImage] = {}
        unread: dict[Hashable, str] | None = {} if on_error == "skip" else None
        for start in range(0, len(order), batch_size):
            positions = order[start : start + batch_size]
            new = {
                keys[position]: requests[position].image
                for position in positions
                if keys[position] not in seen and keys[position] not in (unread or ())
            }
            seen.update(self._see(new, untagged, unread))
            errors.update({index: unread[keys[index]] for index in positions if unread and keys[index] in unread})
            readable = [position for position in positions if position not in errors]
            if readable:
                yield readable, [seen[keys[position]] for position in readable]
            left.subtract(keys[position] for position in positions)
            seen = {key: image for key, image in seen.items() if left[key]}
        if unread:
            warn_of_unread(list(unread.values()), len(first))

    def _see(
        self, images: dict[Hashable, Any], untagged: set[Hashable], unread: dict[Hashable, str] | None
    ) -> dict[Hashable, SeenImage]:
        """Open images one after the other, tag those that need it, and run what reads no question.

        Args:
            images: by their keys.
            untagged: keys of those that need tags.
            unread: gets the reasons why images cannot be read; without it the first raises.
        """
        sizes: dict[Hashable, tuple[int, int]] = {}
        pixels: list[torch.Tensor] = []
        tagged: list[Hashable] = []

        def open_all() -> Iterator[Image.Image]:
            for key, image in images.items():
                try:
                    picture = to_rgb(image)
                except ValueError as error:
                    if unread is None:
                        raise
                    unread[key] = str(error)
                    continue
                sizes[key] = picture.size
                pixels.append(self.processor(images=picture, return_tensors="pt")["pixel_values"])
                if wanted and key in untagged:
                    tagged.append(key)
                    yield picture
                del picture  # before the next one is opened

        wanted = len(untagged & images.keys())
        names = self._tag_all(open_all(), wanted)
        if not sizes:
            return {}
        features = self._encode(torch.cat(pixels))
        seen = {
            key: SeenImage(size, features.select(torch.tensor([row]))) for row, (key, size) in enumerate(sizes.items())
        }
        for key, found in zip(tagged, names, strict=True):
            seen[key].tags = list(found or [])
        return seen

    def _tag_all(self, pictures: Iterator[Image.Image], count: int) -> Sequence[Sequence[str] | None]:
        """The tagger's tags of so many images, of which it takes one at a time."""
        if self.tagger is None or not count:
            deque(pictures, maxlen=0)  # opens those that need no tags
            return []
        return self.tagger(OneByOne(pictures, count) if isinstance(self.tagger, ImageTagger) else list(pictures))

    @torch.no_grad()
    def encode(self, pictures: Sequence[Image.Image]) -> LionImageFeatures:
        """What the model knows of B images before any question, for `image_features=` of its `generate`."""
        return self._encode(self.processor(images=list(pictures), return_tensors="pt")["pixel_values"])

    def _encode(self, pixel_values: torch.Tensor) -> LionImageFeatures:
        """The same of pixel values, (B, 3, H, W)."""
        pixel_values = pixel_values.to(self.model.device, self.model.dtype)
        return self.model.get_image_features(pixel_values, return_dict=True)

    def _source_of(self, request: Request) -> TagSource:
        """Where the tags of a request come from."""
        return resolve_tag_source(request.tags, request.tag_source, self.tagger is not None)

    def _tags_of(self, request: Request, image: SeenImage) -> Tags:
        """The tags of a request's prompt, `None` for no tag sentence."""
        return {"data": request.tags, "tagger": image.tags, "none": None}[self._source_of(request)]

    def _inputs(self, requests: Sequence[Request], images: Sequence[SeenImage]) -> dict[str, Any]:
        """The model's inputs; each image's features are there once."""
        prompts = self.processor(
            text=[request.question for request in requests],
            tags=[self._tags_of(request, image) for request, image in zip(requests, images, strict=True)],
            task_type=[request.task_type for request in requests],
            return_tensors="pt",
        ).to(self.model.device)
        distinct = list({id(image): image for image in images}.values())
        rows = {id(image): row for row, image in enumerate(distinct)}
        return {
            **prompts,
            "image_features": concatenate_features([image.features for image in distinct]),
            "image_indices": torch.tensor([rows[id(image)] for image in images]),
        }

    def read_prompts(self, inputs: dict[str, Any]) -> list[str]:
        """What the language model reads, as text, without the end token."""
        rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)  # padded on either side
        return [self._prompt(ids[is_token].tolist()[:-1]) for ids, is_token in rows]

    def _prompt(self, ids: list[int]) -> str:
        """The text of a prompt's tokens, which know of no space beside the soft prompt's marker."""
        decode, marker = self.processor.tokenizer.decode, self.processor.soft_prompt_token_id
        if marker not in ids:
            return decode(ids, clean_up_tokenization_spaces=False)
        token, cut = self.processor.soft_prompt_token, ids.index(marker)
        before, _, after = self.processor.tag_prompt.partition(token)
        parts = [decode(part, clean_up_tokenization_spaces=False) for part in (ids[:cut], ids[cut + 1 :])]
        gaps = before[len(before.rstrip()) :], after[: len(after) - len(after.lstrip())]
        return f"{parts[0]}{gaps[0]}{token}{gaps[1]}{parts[1]}"

    def _generate(
        self, inputs: dict[str, Any], scores: bool, options: dict[str, Any]
    ) -> list[tuple[str, list[float] | None]]:
        """The texts that the model writes, and if wanted the score of each of their boxes."""
        if not scores:
            ids = self.model.generate(**inputs, **options)
            ids = ids if isinstance(ids, torch.Tensor) else ids.sequences
            return [(text, None) for text in self.processor.batch_decode(ids, skip_special_tokens=True)]
        generated = self.model.generate(**inputs, **{**options, "return_dict_in_generate": True, "output_logits": True})
        log_probs = token_log_probs(self.model, generated)  # (B, S), of the last S ids
        results: list[tuple[str, list[float] | None]] = []
        texts = self.processor.batch_decode(generated.sequences, skip_special_tokens=True)
        for text, ids, row in zip(texts, generated.sequences[:, -log_probs.shape[1] :], log_probs, strict=True):
            tokens = self.processor.tokenizer.convert_ids_to_tokens(ids.tolist())
            results.append((text, score_boxes(text, tokens, row.tolist())))
        return results

    def _score(
        self, encoded: LionEncoderOutput, task_type_ids: torch.Tensor, chunk: Sequence[tuple[int, str]]
    ) -> list[float]:
        """Log-probabilities of texts, each after the prompt in a row of `encoded`."""
        rows = torch.tensor([row for row, _ in chunk])
        texts = [text for _, text in chunk]
        labels = self.processor(text=[""] * len(texts), text_target=texts, return_tensors="pt")["labels"]
        labels = labels.to(encoded.last_hidden_state.device)  # (N, L)
        logits = self.model(
            encoder_outputs=encoded.select(rows),
            task_type_ids=task_type_ids[rows],
            labels=labels,
            use_cache=False,
        ).logits
        chosen = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return chosen.masked_fill(labels < 0, 0).sum(1).tolist()


def measure_source(source: Any, on_error: OnError) -> tuple[Any, tuple[int, int]] | None:
    """An image to ask about, and its size; `None` if it cannot be read and `on_error` is "skip"."""
    try:
        if isinstance(source, str) and is_url(source):
            source = to_rgb(source)  # downloaded once
        return source, upright_size(source)
    except ValueError as error:
        if on_error == "raise":
            raise
        warn_of_unread([str(error)], 1)
        return None


def warn_of_unread(errors: Sequence[str], count: int) -> None:
    """Warn of images that were left out, of so many."""
    logger.warning("%d of %d images could not be read:\n%s", len(errors), count, "\n".join(errors))


def texts_of(answers: Sequence[Answer]) -> list[str | None]:
    """The texts of answers; `None` where there is none."""
    return [answer.text if answer.error is None else None for answer in answers]


def pair(images: Any, name: str, values: list[Any], is_one: bool) -> tuple[list[Any], list[Any], bool]:
    """Images, and what goes with each: one image or one value serves all; and whether there is but one result.

    Args:
        images: one or a list.
        name: of the values, for errors.
        values: a list.
        is_one: whether that list is a single value, which was not given as a list.

    Raises:
        ValueError: if there are other numbers of both.
    """
    if not is_batch(images):
        warn_of_grey_batch(images, len(values))
        return [images] * len(values), values, is_one
    pictures = list(flatten(images))
    if is_one:
        return pictures, values * len(pictures), False
    if len(pictures) != len(values):
        raise ValueError(f"{len(pictures)} images for {len(values)} {name}: give as many of both, or one of either.")
    return pictures, values, False


def pair_texts(images: Any, name: str, texts: str | Sequence[str]) -> tuple[list[Any], list[str], bool]:
    """`pair` for texts.

    Raises:
        ValueError: if they are none, or one is blank, and as of `pair`.
    """
    is_one, values = isinstance(texts, str), to_plain(texts)
    values = [values] if is_one else values
    check_strings(name, values)
    if not all(text.strip() for text in values):
        raise ValueError(f"{name} holds a blank text.")
    return pair(images, name, list(values), is_one)


def unpack(results: list[Any], is_single: bool) -> Any:
    """The one result where one was asked for, else all."""
    return results[0] if is_single else results


def as_boxes(boxes: Any) -> list[Box]:
    """One box, or several, as a list.

    Raises:
        ValueError: if they are none.
    """
    try:
        rows = np.asarray(boxes, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"boxes must be four numbers, or a list of four numbers each, but is {boxes!r}.") from error
    if rows.ndim not in (1, 2) or rows.shape[-1] != 4:
        raise ValueError(f"boxes must have shape (4,) or (N, 4), but has {rows.shape}.")
    return [(row[0], row[1], row[2], row[3]) for row in rows.reshape(-1, 4).tolist()]


def to_fractions(box: Box, image_size: tuple[int, int]) -> Box:
    """Pixels of an image of (width, height) to fractions; what stands out a little is cut off.

    Raises:
        ValueError: if nothing of the box is in the image, or it may be fractions already.
    """
    width, height = image_size
    if image_size != (1, 1):
        check_pixels(box, f"an image of {width}x{height} pixels")
    x1, x2 = (min(max(value / width, 0.0), 1.0) for value in (box[0], box[2]))
    y1, y2 = (min(max(value / height, 0.0), 1.0) for value in (box[1], box[3]))
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"Box {box} has no area in an image of {width}x{height} pixels; it is (x1, y1, x2, y2).")
    return x1, y1, x2, y2


__all__ = ["Answer", "Lion", "Request"]
