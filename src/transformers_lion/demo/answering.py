"""The page's use of the model: an image is encoded once, then queried, and answers are streamed word by word.

No state is kept here: each user holds a `Seen`, so that any number of users can share one `Lion`.
"""

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation import BaseStreamer

from ..grounding import Box, extract_entities, format_boxes
from ..inference import LOCATE_QUESTION, MAX_NEW_TOKENS, REGION_QUESTION, Answer, Lion, to_fractions
from ..modeling_lion import LionImageFeatures
from .uploads import for_page

logger = logging.getLogger(__name__)

Task = Literal["caption", "ask", "locate", "region"]

MAX_CHARACTERS = 500
"""Maximum length of a question or phrase."""
MAX_TAGS = 100
MAX_TAG_CHARACTERS = 60
MAX_BEAMS = 8
HEARTBEAT = 0.5
"""Seconds after which an update is sent even without a new word, so that the user can stop the answer."""


@dataclass(frozen=True)
class Asked:
    """An answered question, for the history."""

    task: Task
    about: str
    answer: str
    seconds: float


@dataclass(frozen=True)
class Seen:
    """An encoded image.

    Attributes:
        shown: the image as shown on the page.
        size: (width, height) of the uploaded image.
        features: the image features.
        tags: tags from the tagger; `None` without a tagger.
        seconds: time that tagging and encoding took.
        asked: questions answered so far.
    """

    shown: Image.Image
    size: tuple[int, int]
    features: LionImageFeatures
    tags: list[str] | None
    seconds: float
    asked: tuple[Asked, ...] = ()


@dataclass(frozen=True)
class Question:
    """A question about an image.

    Attributes:
        task: the task.
        about: the user's words, or the box as text, for the history.
        text: the prompt.
        box: the box of a question about a region, in pixels of the uploaded image.
    """

    task: Task
    about: str
    text: str
    box: Box | None = None

    @property
    def task_type(self) -> str:
        """LION's task type."""
        return "image_level" if self.task in ("caption", "ask") else "region_level"


@dataclass(frozen=True)
class Options:
    """Generation options; with one beam the answer is streamed, with several it appears at the end."""

    num_beams: int = 1
    max_new_tokens: int = 64


@dataclass(frozen=True)
class Progress:
    """An answer in progress.

    Attributes:
        text: the text so far, with boxes.
        seconds: time since the question was asked.
        first: time until the first word; `None` before it, and if the answer is not streamed.
        answer: the complete answer, at the end.
    """

    text: str
    seconds: float
    first: float | None = None
    answer: Answer | None = None


@torch.no_grad()
def see(lion: Lion, image: Image.Image) -> Seen:
    """Tag and encode an image.

    Args:
        lion: the model.
        image: an upright RGB image.
    """
    start = time.perf_counter()
    tags = None if lion.tagger is None else lion.tag(image)
    kept = lion.encode([image]).select(torch.tensor([0]))  # drops outputs that no question needs
    return Seen(for_page(image), image.size, kept, tags, time.perf_counter() - start)


def make_question(lion: Lion, seen: Seen, task: Task, about: str) -> Question:
    """Build a question from a task and the user's words.

    Args:
        lion: the model, for its captioning prompt.
        seen: the image, for the size of boxes.
        task: the task.
        about: a question, a phrase, or a box "x1, y1, x2, y2" in pixels; ignored for captions.

    Raises:
        ValueError: if the text is empty, too long, or not a box in the image.
    """
    words = " ".join(about.split())
    if task == "caption":
        return Question(task, "", lion.processor.caption_prompt)
    if not words:
        missing = {"ask": "Type a question first.", "locate": "Type what to find first.",
                   "region": "Choose a region first: click two corners on the image."}  # fmt: skip
        raise ValueError(missing[task])
    if len(words) > MAX_CHARACTERS:
        raise ValueError(f"This text has {len(words)} characters; the maximum is {MAX_CHARACTERS}.")
    if task == "ask":
        return Question(task, words, words)
    if task == "locate":
        return Question(task, words, LOCATE_QUESTION.format(phrase=words))
    box = read_box(words)
    fractions = format_boxes([to_fractions(box, seen.size)])
    return Question(task, words, REGION_QUESTION.format(box=fractions), box)


def read_box(text: str) -> Box:
    """Parse four numbers, separated by commas or spaces, as a box, and sort its corners.

    Raises:
        ValueError: if the text is not four numbers.
    """
    try:
        x1, y1, x2, y2 = (float(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise ValueError(f"A region must be four numbers in pixels, x1, y1, x2, y2, not {text[:60]!r}.") from error
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def read_tags(text: str, known: Sequence[str] = ()) -> list[str]:
    """Parse comma-separated tags, leaving out known ones.

    Raises:
        ValueError: if there are too many tags, or a tag is too long.
    """
    names = [" ".join(part.split()) for part in text.split(",")]
    new = [name for name in dict.fromkeys(names) if name and name not in known]
    longest = max(new, key=len, default="")
    if len(longest) > MAX_TAG_CHARACTERS:
        raise ValueError(f"A tag has {len(longest)} characters; the maximum is {MAX_TAG_CHARACTERS}.")
    if len(known) + len(new) > MAX_TAGS:
        raise ValueError(f"There are {len(known) + len(new)} tags; the maximum is {MAX_TAGS}.")
    return new


def longest_answer(lion: Lion) -> int:
    """Return the maximum number of tokens of an answer in the model's generation config."""
    return lion.model.generation_config.max_new_tokens or MAX_NEW_TOKENS


def answer(
    lion: Lion, seen: Seen, question: Question, tags: Sequence[str] | None, options: Options
) -> Iterator[Progress]:
    """Answer a question about an encoded image, without encoding it again.

    Args:
        lion: the model.
        seen: the image.
        question: the question.
        tags: tags of the prompt; `None` for no tag sentence.
        options: generation options.

    Yields:
        The answer so far, at least twice a second; finally with the `Answer`, with boxes in pixels of the uploaded
        image. Closing the iterator stops the model.
    """
    start = time.perf_counter()
    inputs = lion.processor(
        text=[question.text],
        tags=None if tags is None else [list(tags)],
        task_type=[question.task_type],
        return_tensors="pt",
    ).to(lion.model.device)
    prompt = lion.read_prompts(inputs)[0]
    text, first = "", None
    for text in write(lion, {**inputs, "image_features": seen.features}, options):
        seconds = time.perf_counter() - start
        first = seconds if first is None and text and options.num_beams == 1 else first
        yield Progress(text, seconds, first)
    entities = extract_entities(text, seen.size)[1]
    found = Answer(text, prompt, None if tags is None else list(tags), entities, seen.size)
    yield Progress(text, time.perf_counter() - start, first, found)


def write(lion: Lion, inputs: dict[str, Any], options: Options) -> Iterator[str]:
    """Yield the generated text repeatedly as it grows; the last one is complete.

    The model runs in a separate thread until the text ends or the iterator is closed.
    """
    pieces: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
    stopped = threading.Event()
    thread = threading.Thread(target=run, args=(lion, inputs, options, pieces, stopped), daemon=True)
    thread.start()
    text = ""
    try:
        while True:
            try:
                piece = pieces.get(timeout=HEARTBEAT)
            except queue.Empty:
                piece = text
            if piece is None:
                return
            if isinstance(piece, Exception):
                raise piece
            text = piece
            yield text
    finally:
        stopped.set()


def run(
    lion: Lion,
    inputs: dict[str, Any],
    options: Options,
    pieces: "queue.SimpleQueue[str | Exception | None]",
    stopped: threading.Event,
) -> None:
    """Generate, and put the text so far into `pieces` at each token, then the whole text or an error, and `None`."""
    streamer = TextSoFar(lion.processor.tokenizer, pieces) if options.num_beams == 1 else None
    try:
        with torch.no_grad():
            ids = lion.model.generate(
                **inputs,
                num_beams=options.num_beams,
                max_new_tokens=options.max_new_tokens,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([StoppedByUser(stopped)]),
            )
        pieces.put(lion.processor.batch_decode(ids, skip_special_tokens=True)[0])
    except Exception as error:
        pieces.put(error)
    pieces.put(None)


class TextSoFar(BaseStreamer):
    """Decodes all tokens again at each new token, because some T5 tokens have no text of their own."""

    def __init__(self, tokenizer: Any, pieces: "queue.SimpleQueue[str | Exception | None]"):
        self.tokenizer = tokenizer
        self.pieces = pieces
        self.ids: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Add token ids; the first one is the decoder's start token."""
        self.ids += value.flatten().tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if text:
            self.pieces.put(text)

    def end(self) -> None:
        """Do nothing: the complete text follows."""


class StoppedByUser(StoppingCriteria):
    """Stops generation after an event is set."""

    def __init__(self, stopped: threading.Event):
        self.stopped = stopped

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Whether to stop, (B,)."""
        return torch.full((input_ids.shape[0],), self.stopped.is_set(), device=input_ids.device)  # type: ignore[return-value]


def with_answer(seen: Seen, question: Question, progress: Progress) -> Seen:
    """Return `seen` with an answered question added."""
    asked = Asked(question.task, question.about, progress.text, progress.seconds)
    return replace(seen, asked=(*seen.asked, asked))
