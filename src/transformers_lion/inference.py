"""High-level API: one object that captions, answers, locates and tags, and selects the prompt and the task type.

`Lion.answer` and `Lion.rank` process batches of mixed requests; the other methods are shortcuts. Each call opens, tags
and encodes an image once, no matter how many requests refer to it, because nothing before the Q-Former depends on the
question (LION, arXiv:2311.11860, section 3).

Shape letters: B requests, E encoder tokens, T prompt tokens, L label tokens, D language model width.
"""

import copy
import os
from collections import Counter
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from .checkpoint_utils import MODEL_FILES, PROCESSOR_FILES, TAGGER_FILES, check_folder, local_folder
from .columns import to_plain
from .cpu_inference import optimize_by_default
from .example import example_checkpoint
from .grounding import Box, Entity, extract_entities, format_boxes, score_boxes, token_log_probs
from .grounding.boxes import check_pixels
from .images import flatten, image_key, is_batch, is_url, to_rgb, upright_size, warn_about_gray_batch
from .modeling_lion import (
    LionEncoderOutput,
    LionForConditionalGeneration,
    LionImageFeatures,
    concatenate_features,
    find_setting,
)
from .modeling_utils import check_finite
from .pipelines import find_tagger, prefer_max_length
from .prefetching import prefetch
from .processing_lion import LionProcessor, check_strings
from .ram.tagger import ImageTagger, TaggerInput, TaggingJob
from .tag_source import Tags, TagSource, as_names, check_tags, resolve_tag_source

logger = logging.get_logger(__name__)

LOCATE_QUESTION = "How can I locate {phrase} in the image? Please provide the coordinates."
REGION_QUESTION = "Please describe the region {box} in the image."
MAX_NEW_TOKENS = 256
"""Default if neither the call nor the checkpoint sets a limit, as in the paper."""
OnError = Literal["raise", "skip"]
"""What to do with an image that cannot be read: raise an error, or skip its requests."""
OneImage = str | os.PathLike | bytes | bytearray | memoryview | Mapping[str, Any] | Image.Image
"""Types that are always a single image. An array can also be a batch."""
Images = list[Any] | tuple[Any, ...]
Texts = list[str] | tuple[str, ...]
OneBox = Box | list[float]
Boxes = list[Box] | list[list[float]]
SORTED_BATCHES = 16
"""Number of batches within which requests are sorted by length."""
CANDIDATES_PER_REQUEST = 4
"""Decoder rows per request of a batch when ranking candidates. A row needs far less memory than an image."""


@dataclass(frozen=True)
class Request:
    """One question about one image.

    Attributes:
        image: A path, a URL, the bytes of an image file, a PIL image, an array or a tensor (see
            `images.ImageSource`). Requests with the same path or object share the image.
        question: The question, which both the Q-Former and the language model read.
        task_type: "image_level" or "region_level".
        tags: Tags as a list of names or a string.
        tag_source: "data" to use `tags`, "tagger" to use the tagger, or "none" for a prompt without a tag sentence. By
            default, `tags` are used if set, otherwise the tagger if there is one.

    Raises:
        ValueError: If `tag_source` is unknown, or `tags` are combined with `tag_source="tagger"`.
    """

    image: Any
    question: str
    task_type: str = "image_level"
    tags: Tags = None
    tag_source: TagSource | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tags", to_plain(self.tags))  # may be a cell of a table
        check_tags(self.tags, self.tag_source)


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Attributes:
        text: Generated text, including boxes.
        prompt: Prompt of the language model, including the tag sentence and the soft prompt marker.
        tags: Tags in the prompt, or `None` if it has no tag sentence.
        entities: Phrases with their spans in the text without boxes, and their boxes in pixels.
        image_size: (width, height).
        scores: Confidence of each box in `boxes`, if scores were requested.
        error: Reason why the image could not be read, with `on_error="skip"`. All other fields are then empty.
        num_tokens: Number of generated tokens, including the end token; 0 if the image could not be read, and in the
            web demo, which does not count them.
        is_complete: Whether the answer ends with the end token. Otherwise the length limit has cut it off.
    """

    text: str
    prompt: str
    tags: list[str] | None
    entities: list[Entity]
    image_size: tuple[int, int]
    scores: list[float] | None = None
    error: str | None = None
    num_tokens: int = 0
    is_complete: bool = True

    @property
    def boxes(self) -> list[Box]:
        """All boxes in order, as (x1, y1, x2, y2) in pixels."""
        return [box for _, _, boxes in self.entities for box in boxes]


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An opened and preprocessed image, which `Request` accepts as an image. See `Lion.prepare`.

    Attributes:
        size: (width, height) of the upright image.
        pixel_values: Preprocessed pixels (1, 3, H, W).
        tagger_input: Input of the tagger, if there is one.
        rgb_image: The image itself, if it is still needed.
    """

    size: tuple[int, int]
    pixel_values: torch.Tensor
    tagger_input: TaggerInput | None = None
    rgb_image: Image.Image | None = None


@dataclass
class EncodedImage:
    """An encoded image, kept in memory until its last request is answered.

    Attributes:
        size: (width, height) of the upright image.
        features: Features of this image, with a batch size of 1.
        tags: Tags found by the tagger, if requested.
    """

    size: tuple[int, int]
    features: LionImageFeatures
    tags: list[str] | None = None


class _Generated(NamedTuple):
    """What the model generates for a request; see `Answer`."""

    text: str
    scores: list[float] | None
    num_tokens: int
    is_complete: bool


class Lion:
    """Bundles the model, processor and tagger.

    ```
    lion = Lion.from_pretrained("lion-flant5-xl")
    lion.caption("photo.jpg")
    lion.ask("photo.jpg", ["Is there a cat?", "What color is it?"])    # the image is encoded once
    lion.locate("photo.jpg", "the cat").boxes                          # in pixels
    ```

    Calls share no state, so multiple threads can use the same object.

    Args:
        model: The model. It is put in eval mode.
        processor: The processor of the same checkpoint.
        tagger: Tagger for requests without tags; see `Request`.
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
        compile: bool = False,
    ) -> "Lion":
        """Load a checkpoint.

        Args:
            pretrained_model_name_or_path: Local folder or Hub repository. Defaults to the example checkpoint.
            tagger: Tagger to use, or `False` for no tagger. Defaults to the tagger in the `tagger/` folder of the
                checkpoint, if there is one.
            device: Device of the model and of the checkpoint's tagger.
            dtype: Data type of the weights. Defaults to the data type they were saved in.
            optimize: Whether to call `cpu_inference.optimize_for_inference` on the model and on the checkpoint's tagger
                if it makes them faster on this CPU. With a `dtype` other than float32, the model stays in that data
                type and is not optimized.
            compile: Whether to also compile the decoder when the first answer is generated; see
                `cpu_inference.optimize_for_inference`.

        Raises:
            OSError: If a file is missing.
            ValueError: If the files are inconsistent, weights are not finite, or `compile` is set for a model that is
                not optimized.
            RuntimeError: If `compile` is set and there is no C++ compiler.
        """
        if compile and not optimize:
            raise ValueError("compile=True and optimize=False cannot be combined.")
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
            optimize_by_default(model, dtype, compile)
        processor = LionProcessor.from_pretrained(folder)
        found = find_tagger(folder, model.device, optimize=optimize) if tagger is None else tagger or None
        if found is None and tagger is None and pretrained_model_name_or_path is not None:
            logger.warning_once(
                f"{name} has no tagger, so prompts without tags have no tag sentence, although LION was trained with "
                "one. Pass tags, or use Lion.from_pretrained(..., tagger=ImageTagger.from_pretrained(folder))."
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

        Requests for the same image are grouped, regardless of their order in the list, and images with prompts of
        similar lengths share batches. Requests that fit into one batch stay in their order, so that a `streamer` can
        tell its rows apart. The features of an image are freed after its last request. Threads open and preprocess the
        images of the next batch while the model computes.

        Args:
            requests: Requests in any order.
            batch_size: Number of requests, and maximum number of images, per forward pass.
            scores: Whether to score each box; see `grounding.score_boxes`.
            on_error: What to do if an image cannot be read. "raise" raises an error. "skip" logs a warning, answers
                the other requests, and sets `error` in the answers for this image.
            **generation: Options of `generate`. Each request has one answer, so `num_return_sequences` must be 1.

        Returns:
            One answer per request, in the order of `requests`.

        Raises:
            ValueError: If an image cannot be read and `on_error` is "raise", or an element is not a `Request`.
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
            for position, image, prompt, generated in rows:
                answers[position] = Answer(
                    text=generated.text,
                    prompt=prompt,
                    tags=as_names(self._tags_of(requests[position], image)),
                    entities=extract_entities(generated.text, image.size)[1],
                    image_size=image.size,
                    scores=generated.scores,
                    num_tokens=generated.num_tokens,
                    is_complete=generated.is_complete,
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
        """Compute the log-probability of candidate answers.

        Everything before the decoder runs once per request, regardless of the number of candidates.

        Args:
            requests: Requests; see `answer`.
            candidates: List of candidate answers for each request.
            batch_size, on_error: See `answer`.

        Returns:
            The score of each candidate of each request: the sum of the log-probabilities of its tokens, including the
            end token. Longer candidates have lower scores; divide by the length to normalize. A request that
            `on_error="skip"` skipped has an empty list.

        Raises:
            ValueError: If the numbers of requests and lists of candidates differ, or for the reasons given in
                `answer`.
        """
        self._check(requests, batch_size, on_error)
        if len(candidates) != len(requests):
            raise ValueError(f"Got {len(candidates)} lists of candidates for {len(requests)} requests.")
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

    # --- shortcuts ---------------------------------------------------------------------------------------------

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
        """Describe one or more images in a short sentence.

        Args:
            images: An image or a list of images.
            tags, tag_source: Tags for all images; see `Request`.
            batch_size, on_error, **generation: See `answer`.

        Returns:
            The caption, or a list of captions for a list of images. With `on_error="skip"`, the caption of an image
            that cannot be read is `None`.
        """
        sources, _, is_single = pair(images, "questions", [self.processor.caption_prompt], True)
        prompt = self.processor.caption_prompt
        requests = [Request(source, prompt, tags=tags, tag_source=tag_source) for source in sources]
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
        """Answer questions about images.

        Args:
            images: An image or a list of images. A single image is used for all questions.
            questions: A question or a list of questions. A single question is asked about all images.
            tags, tag_source: Tags for all images; see `Request`.
            batch_size, on_error, **generation: See `answer`.

        Returns:
            The answer, or a list of answers if `images` or `questions` is a list. With `on_error="skip"`, the answer
            for an image that cannot be read is `None`.

        Raises:
            ValueError: If the numbers of images and questions differ, a question is blank, or for the reasons given in
                `answer`.
        """
        sources, texts, is_single = pair_texts(images, "questions", questions)
        rows = zip(sources, texts, strict=True)
        requests = [Request(source, text, tags=tags, tag_source=tag_source) for source, text in rows]
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
        """Locate the objects that phrases such as "the red cup" refer to.

        Args:
            images: An image or a list of images. A single image is used for all phrases.
            phrases: A phrase or a list of phrases. A single phrase is located in all images.
            tags, tag_source: Tags for all images; see `Request`.
            batch_size, scores, on_error, **generation: See `answer`.

        Returns:
            An `Answer` with the boxes in `boxes`, or a list of answers if `images` or `phrases` is a list. `boxes` is
            empty if the model generates no box.

        Raises:
            ValueError: If the numbers of images and phrases differ, a phrase is blank, or for the reasons given in
                `answer`.
        """
        sources, texts, is_single = pair_texts(images, "phrases", phrases)
        requests = [
            Request(source, LOCATE_QUESTION.format(phrase=text.strip()), "region_level", tags, tag_source)
            for source, text in zip(sources, texts, strict=True)
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
        """Describe the content of boxes.

        Args:
            images: An image or a list of images. A single image is used for all boxes.
            boxes: A box (x1, y1, x2, y2) in pixels of the upright image, as `locate` returns it, or a list of boxes. A
                single box is used for all images.
            tags, tag_source: Tags for all images; see `Request`.
            batch_size, on_error, **generation: See `answer`.

        Returns:
            The description, or a list of descriptions if `images` or `boxes` is a list. With `on_error="skip"`, the
            description for an image that cannot be read is `None`.

        Raises:
            ValueError: If the numbers of images and boxes differ, a box is invalid, is outside its image or seems to
                use fractions instead of pixels, or for the reasons given in `answer`.
        """
        sources, rows, is_single = pair(images, "boxes", as_boxes(boxes), np.ndim(boxes) == 1)
        measured: dict[Hashable, tuple[Any, tuple[int, int]] | None] = {}
        requests: list[Request | None] = []
        for source, box in zip(sources, rows, strict=True):
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
        """Tag one or more images.

        Args:
            images: An image or a list of images.
            on_error: What to do if an image cannot be read. "raise" raises an error. "skip" logs a warning, and the
                tags of the image are `None`.

        Returns:
            A list of tag names, or one such list per image for a list of images.

        Raises:
            ValueError: If there is no tagger, or an image cannot be read and `on_error` is "raise".
        """
        if self.tagger is None:
            raise ValueError(
                "This checkpoint has no tagger. Use Lion.from_pretrained(..., "
                "tagger=ImageTagger.from_pretrained(folder))."
            )
        found = self.tagger.tag(list(flatten(images)))
        for image in found:
            if image.error is not None and on_error == "raise":
                raise ValueError(image.error)
        return unpack([image.names for image in found], not is_batch(images))

    def prepare(self, images: Sequence[Any], keep_images: bool = False) -> list[PreparedImage]:
        """Open and preprocess images in advance, for example in another thread while the model computes.

        Args:
            images: Images in any form; see `Request`.
            keep_images: Whether to keep the full-size images in `rgb_image`.

        Returns:
            One image to pass to `Request` for each image.

        Raises:
            ValueError: If an image cannot be read.
        """
        job = self._start_tagging()
        return [self._prepare(image, job, keep_images) for image in images]

    # --- steps -------------------------------------------------------------------------------------------------

    def _check(self, requests: Sequence[Request], batch_size: int, on_error: OnError) -> None:
        """Raise `ValueError` for invalid arguments, before any image is opened."""
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error is {on_error!r}, but must be "raise" or "skip".')
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1.")
        for request in requests:
            if not isinstance(request, Request):
                raise ValueError(f"requests must contain `Request` objects, but contains {type(request).__name__}.")
            self._source_of(request)
        check_strings("questions", [request.question for request in requests])

    def _options(self, generation: dict[str, Any]) -> dict[str, Any]:
        """Return generation options. `MAX_NEW_TOKENS` applies if neither the options nor the model set a limit.

        Raises:
            ValueError: If the options request multiple sequences.
        """
        config = generation.get("generation_config")
        sequences = find_setting("num_return_sequences", generation, [config, self.model.generation_config])
        if sequences not in (None, 1):
            raise ValueError(f"num_return_sequences is {sequences}, but must be 1: each request has one answer.")
        options = prefer_max_length(generation)
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
    ) -> Iterator[tuple[list[int], list[EncodedImage]]]:
        """Yield batches of request positions, grouped by image, with the encoded image of each request.

        Args:
            requests, batch_size, on_error: See `answer`.
            errors: Filled with the positions of requests whose images cannot be read, and the reasons.
        """
        keys = [image_key(request.image) for request in requests]
        order = list(range(len(requests)))
        if len(order) > batch_size:
            order = sort_by_length(requests, keys, SORTED_BATCHES * batch_size)
        images = {keys[position]: requests[position].image for position in order}
        untagged = {key for key, request in zip(keys, requests, strict=True) if self._source_of(request) == "tagger"}
        left = Counter(keys)
        seen: dict[Hashable, EncodedImage] = {}
        unread: dict[Hashable, str] = {}
        with closing(self._prepare_ahead(images, untagged, batch_size, on_error)) as prepared:
            for start in range(0, len(order), batch_size):
                positions = order[start : start + batch_size]
                count = len({keys[position] for position in positions} - seen.keys() - unread.keys())
                new = dict(islice(prepared, count))
                unread.update({key: image for key, image in new.items() if isinstance(image, str)})
                seen.update(self._encode_images(new, untagged))
                errors.update({index: unread[keys[index]] for index in positions if keys[index] in unread})
                readable = [position for position in positions if position not in errors]
                if readable:
                    yield readable, [seen[keys[position]] for position in readable]
                left.subtract(keys[position] for position in positions)
                seen = {key: image for key, image in seen.items() if left[key]}
        if unread:
            warn_of_unread(list(unread.values()), len(images))

    def _prepare_ahead(
        self, images: dict[Hashable, Any], untagged: set[Hashable], batch_size: int, on_error: OnError
    ) -> Generator[tuple[Hashable, PreparedImage | str], None, None]:
        """Open and preprocess images in threads, at most `batch_size` images ahead.

        Args:
            images: Images by key, in the order in which they are needed.
            untagged: Keys of the images to tag.
            batch_size, on_error: See `answer`.

        Yields:
            The key of each image with the image, or with the reason why it cannot be read if `on_error` is "skip".
        """
        job = self._start_tagging() if untagged else None

        def prepare(item: tuple[Hashable, Any]) -> tuple[Hashable, PreparedImage | str]:
            key, image = item
            keep = key in untagged and job is None
            try:
                return key, self._prepare(image, job if key in untagged else None, keep)
            except ValueError as error:
                if on_error == "raise":
                    raise
                return key, str(error)

        yield from prefetch(prepare, images.items(), ahead=batch_size, waits=_is_download)

    def _prepare(self, image: Any, job: TaggingJob | None, keep_image: bool) -> PreparedImage:
        """Open and preprocess an image, also for the tagger if there is a `job`."""
        if isinstance(image, PreparedImage):
            return image
        rgb_image = to_rgb(image)
        return PreparedImage(
            size=rgb_image.size,
            pixel_values=self.processor(images=rgb_image, return_tensors="pt")["pixel_values"],
            tagger_input=None if job is None else job.prepare(rgb_image, 0),
            rgb_image=rgb_image if keep_image else None,
        )

    def _encode_images(
        self, images: dict[Hashable, PreparedImage | str], untagged: set[Hashable]
    ) -> dict[Hashable, EncodedImage]:
        """Tag and encode the images that could be read.

        Args:
            images: Images by key, or the reasons why they cannot be read.
            untagged: Keys of the images to tag.
        """
        read = {key: image for key, image in images.items() if isinstance(image, PreparedImage)}
        if not read:
            return {}
        tags = self._tag_all({key: image for key, image in read.items() if key in untagged})
        features = self._encode(torch.cat([image.pixel_values for image in read.values()]))
        return {
            key: EncodedImage(image.size, features.select(torch.tensor([row])), tags.get(key))
            for row, (key, image) in enumerate(read.items())
        }

    def _tag_all(self, images: dict[Hashable, PreparedImage]) -> dict[Hashable, list[str]]:
        """Tag images.

        Raises:
            ValueError: If an image was prepared without this tagger.
        """
        if self.tagger is None or not images:
            return {}
        if not isinstance(self.tagger, ImageTagger):
            found = self.tagger([image.rgb_image for image in images.values()])
            return {key: list(names or []) for key, names in zip(images, found, strict=True)}
        job = self.tagger.start()
        for image in images.values():
            if image.tagger_input is None:
                raise ValueError("An image was prepared by an object without this tagger. Prepare it again.")
            job.add(image.tagger_input)
        return {key: list(tagged.names or []) for key, tagged in zip(images, job.finish(), strict=True)}

    def _start_tagging(self) -> TaggingJob | None:
        """Return a job of the tagger, or `None` if there is no tagger or it is another kind of object."""
        return self.tagger.start() if isinstance(self.tagger, ImageTagger) else None

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> LionImageFeatures:
        """Encode images into features, which `model.generate` accepts as `image_features=`."""
        return self._encode(self.processor(images=list(images), return_tensors="pt")["pixel_values"])

    def _encode(self, pixel_values: torch.Tensor) -> LionImageFeatures:
        pixel_values = pixel_values.to(self.model.device, self.model.dtype)
        return self.model.get_image_features(pixel_values, return_dict=True)

    def _source_of(self, request: Request) -> TagSource:
        """Return the resolved `tag_source` of a request."""
        return resolve_tag_source(request.tags, request.tag_source, self.tagger is not None)

    def _tags_of(self, request: Request, image: EncodedImage) -> Tags:
        """Return the tags for the prompt of a request, or `None` for no tag sentence."""
        return {"data": request.tags, "tagger": image.tags, "none": None}[self._source_of(request)]

    def _inputs(self, requests: Sequence[Request], images: Sequence[EncodedImage]) -> dict[str, Any]:
        """Return the model inputs. Requests for the same image share its features through `image_indices`."""
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
        """Decode the prompts of the language model, without the end token."""
        rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)  # padding can be on either side
        return [self._prompt(ids[is_token].tolist()[:-1]) for ids, is_token in rows]

    def _prompt(self, ids: list[int]) -> str:
        """Decode a prompt and restore the spaces around the soft prompt marker, which tokenization drops."""
        decode, marker = self.processor.tokenizer.decode, self.processor.soft_prompt_token_id
        if marker not in ids:
            return decode(ids, clean_up_tokenization_spaces=False)
        token, cut = self.processor.soft_prompt_token, ids.index(marker)
        before, _, after = self.processor.tag_prompt.partition(token)
        parts = [decode(part, clean_up_tokenization_spaces=False) for part in (ids[:cut], ids[cut + 1 :])]
        gaps = before[len(before.rstrip()) :], after[: len(after) - len(after.lstrip())]
        return f"{parts[0]}{gaps[0]}{token}{gaps[1]}{parts[1]}"

    def _generate(self, inputs: dict[str, Any], scores: bool, options: dict[str, Any]) -> list[_Generated]:
        """Generate answers, and score their boxes if `scores` is set."""
        if not scores:
            ids = self.model.generate(**inputs, **options)
            ids = ids if isinstance(ids, torch.Tensor) else ids.sequences
            texts = self.processor.batch_decode(ids, skip_special_tokens=True)
            return [
                _Generated(text, None, *self._count_tokens(row, options)) for text, row in zip(texts, ids, strict=True)
            ]
        generated = self.model.generate(**inputs, **{**options, "return_dict_in_generate": True, "output_logits": True})
        log_probs = token_log_probs(self.model, generated)  # (B, S) for the last S ids
        results: list[_Generated] = []
        texts = self.processor.batch_decode(generated.sequences, skip_special_tokens=True)
        for text, ids, row in zip(texts, generated.sequences, log_probs, strict=True):
            tokens = self.processor.tokenizer.convert_ids_to_tokens(ids[-log_probs.shape[1] :].tolist())
            found = score_boxes(text, tokens, row.tolist())
            results.append(_Generated(text, found, *self._count_tokens(ids, options)))
        return results

    def _count_tokens(self, ids: torch.Tensor, options: dict[str, Any]) -> tuple[int, bool]:
        """Return the number of generated tokens in a row of ids, (L,), and whether they end with the end token."""
        configs = [options.get("generation_config"), self.model.generation_config]
        ends = find_setting("eos_token_id", options, configs)
        generated = ids[1:].tolist()  # without the decoder's start token
        for count, token in enumerate(generated, start=1):
            if ends is not None and token in (ends if isinstance(ends, list) else [ends]):
                return count, True
        padding = find_setting("pad_token_id", options, configs)
        return sum(token != padding for token in generated), False

    def _score(
        self, encoded: LionEncoderOutput, task_type_ids: torch.Tensor, chunk: Sequence[tuple[int, str]]
    ) -> list[float]:
        """Compute the log-probability of each text in `chunk`, given the prompt in its row of `encoded`."""
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


def sort_by_length(requests: Sequence[Request], keys: Sequence[Hashable], window: int) -> list[int]:
    """Return the positions of requests, grouped by image and sorted by the length of the prompt within windows.

    Args:
        requests: Requests.
        keys: Key of the image of each request.
        window: Approximate number of requests to sort at a time. Images are read in this order, so a window keeps it
            close to the order of the list.
    """
    groups: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    windows: list[list[list[int]]] = [[]]
    for group in groups.values():
        if sum(map(len, windows[-1])) >= window:
            windows.append([])
        windows[-1].append(sorted(group, key=lambda position: prompt_length(requests[position])))
    ordered = [sorted(groups, key=lambda group: prompt_length(requests[group[-1]])) for groups in windows]
    return [position for groups in ordered for group in groups for position in group]


def prompt_length(request: Request) -> int:
    """Return the number of characters of a question and its tags, for sorting."""
    return len(request.question) + sum(len(name) for name in as_names(request.tags) or [])


def _is_download(item: tuple[Hashable, Any]) -> bool:
    return isinstance(item[1], str) and is_url(item[1])


def measure_source(source: Any, on_error: OnError) -> tuple[Any, tuple[int, int]] | None:
    """Return an image and its size, or `None` if it cannot be read and `on_error` is "skip"."""
    try:
        if isinstance(source, str) and is_url(source):
            source = to_rgb(source)  # download it only once
        return source, upright_size(source)
    except ValueError as error:
        if on_error == "raise":
            raise
        warn_of_unread([str(error)], 1)
        return None


def warn_of_unread(errors: Sequence[str], count: int) -> None:
    """Log a warning with the errors of unreadable images, out of `count` images."""
    logger.warning("%d of %d images could not be read:\n%s", len(errors), count, "\n".join(errors))


def texts_of(answers: Sequence[Answer]) -> list[str | None]:
    """Return the text of each answer, or `None` if its image could not be read."""
    return [answer.text if answer.error is None else None for answer in answers]


def pair(images: Any, name: str, values: list[Any], is_one: bool) -> tuple[list[Any], list[Any], bool]:
    """Pair images with values, such as questions. A single image or a single value is repeated.

    Args:
        images: An image or a list of images.
        name: Name of the values for error messages.
        values: List of values.
        is_one: Whether the caller passed a single value instead of a list.

    Returns:
        The images, the same number of values, and whether the caller expects a single result.

    Raises:
        ValueError: If the numbers of images and values differ.
    """
    if not is_batch(images):
        warn_about_gray_batch(images, len(values))
        return [images] * len(values), values, is_one
    sources = list(flatten(images))
    if is_one:
        return sources, values * len(sources), False
    if len(sources) != len(values):
        raise ValueError(
            f"Got {len(sources)} images for {len(values)} {name}. Pass the same number of both, or one of either."
        )
    return sources, values, False


def pair_texts(images: Any, name: str, texts: str | Sequence[str]) -> tuple[list[Any], list[str], bool]:
    """Pair images with texts; see `pair`.

    Raises:
        ValueError: If the texts are not strings, one is blank, or the numbers of images and texts differ.
    """
    is_one, values = isinstance(texts, str), to_plain(texts)
    values = [values] if is_one else values
    check_strings(name, values)
    if not all(text.strip() for text in values):
        raise ValueError(f"{name} contains a blank string.")
    return pair(images, name, list(values), is_one)


def unpack(results: list[Any], is_single: bool) -> Any:
    """Return the only result if the caller expects a single one, otherwise all results."""
    return results[0] if is_single else results


def as_boxes(boxes: Any) -> list[Box]:
    """Return one or more boxes as a list of tuples.

    Raises:
        ValueError: If `boxes` is not of shape (4,) or (N, 4).
    """
    try:
        rows = np.asarray(boxes, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"boxes must be a box of four numbers or a list of boxes, but is {boxes!r}.") from error
    if rows.ndim not in (1, 2) or rows.shape[-1] != 4:
        raise ValueError(f"boxes must have shape (4,) or (N, 4), but has {rows.shape}.")
    return [(row[0], row[1], row[2], row[3]) for row in rows.reshape(-1, 4).tolist()]


def to_fractions(box: Box, image_size: tuple[int, int]) -> Box:
    """Convert a box from pixels to fractions of the image, clipping it to the image.

    Args:
        box: (x1, y1, x2, y2) in pixels.
        image_size: (width, height) in pixels.

    Raises:
        ValueError: If the box is outside the image, or seems to use fractions already.
    """
    width, height = image_size
    if image_size != (1, 1):
        check_pixels(box, f"an image of {width}x{height} pixels")
    x1, x2 = (min(max(value / width, 0.0), 1.0) for value in (box[0], box[2]))
    y1, y2 = (min(max(value / height, 0.0), 1.0) for value in (box[1], box[3]))
    if not (x1 < x2 and y1 < y2):
        raise ValueError(
            f"Box {box} has no area inside the image of {width}x{height} pixels. Boxes are (x1, y1, x2, y2)."
        )
    return x1, y1, x2, y2


__all__ = ["Answer", "Lion", "PreparedImage", "Request"]
