"""What the page does with the model: an image is seen once, then asked, and answers come word by word.

Nothing is kept here: a `Seen` belongs to who asks, so that any number of people may use one `Lion`.
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
"""Of a question or phrase."""
MAX_TAGS = 100
MAX_TAG_CHARACTERS = 60
MAX_BEAMS = 8
HEARTBEAT = 0.5
"""Seconds after which an answer reports even without a new word, so that it can be stopped."""


@dataclass(frozen=True)
class Asked:
    """A question that was answered, for the list of them."""

    task: Task
    about: str
    answer: str
    seconds: float


@dataclass(frozen=True)
class Seen:
    """An image that the model has seen.

    Attributes:
        shown: as it is on the page.
        size: (width, height) of the image as it was sent.
        features: of it alone.
        tags: the tagger's; `None` without a tagger.
        seconds: that tagging and encoding took.
        asked: what was answered from `features` since.
    """

    shown: Image.Image
    size: tuple[int, int]
    features: LionImageFeatures
    tags: list[str] | None
    seconds: float
    asked: tuple[Asked, ...] = ()


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        about: the user's words, or the box as text; for lists.
        text: the model's question.
        box: of a question about a region, in pixels of the image as it was sent.
    """

    task: Task
    about: str
    text: str
    box: Box | None = None

    @property
    def task_type(self) -> str:
        """LION's, of the task."""
        return "image_level" if self.task in ("caption", "ask") else "region_level"


@dataclass(frozen=True)
class Options:
    """How an answer is to be made: 1 beam writes word by word, several write at the end."""

    num_beams: int = 1
    max_new_tokens: int = 64


@dataclass(frozen=True)
class Progress:
    """An answer on its way.

    Attributes:
        text: so far, with boxes.
        seconds: since it was asked.
        first: seconds until the first word, `None` before it and where all words come at once.
        answer: at the end.
    """

    text: str
    seconds: float
    first: float | None = None
    answer: Answer | None = None


@torch.no_grad()
def see(lion: Lion, picture: Image.Image) -> Seen:
    """Tag and encode an image.

    Args:
        lion: the model.
        image: RGB and upright.
    """
    start = time.perf_counter()
    tags = None if lion.tagger is None else lion.tag(picture)
    kept = lion.encode([picture]).select(torch.tensor([0]))  # without what no question reads
    return Seen(for_page(picture), picture.size, kept, tags, time.perf_counter() - start)


def make_question(lion: Lion, seen: Seen, task: Task, about: str) -> Question:
    """A task and the user's words as a question.

    Args:
        lion: knows its prompt for captions.
        seen: the image, for boxes.
        task: what to do.
        about: a question, a phrase, or a box, "x1, y1, x2, y2" in pixels; of no use for captions.

    Raises:
        ValueError: if the words are none, too many, or no box in the image.
    """
    words = " ".join(about.split())
    if task == "caption":
        return Question(task, "", lion.processor.caption_prompt)
    if not words:
        missing = {"ask": "Type a question first.", "locate": "Type what to find first.",
                   "region": "Choose a region first: click two corners on the image."}  # fmt: skip
        raise ValueError(missing[task])
    if len(words) > MAX_CHARACTERS:
        raise ValueError(f"This text has {len(words)} characters; at most {MAX_CHARACTERS} are taken.")
    if task == "ask":
        return Question(task, words, words)
    if task == "locate":
        return Question(task, words, LOCATE_QUESTION.format(phrase=words))
    box = read_box(words)
    fractions = format_boxes([to_fractions(box, seen.size)])
    return Question(task, words, REGION_QUESTION.format(box=fractions), box)


def read_box(text: str) -> Box:
    """Four numbers with commas or spaces between them, as a box whose corners are in order.

    Raises:
        ValueError: if they are no four numbers.
    """
    try:
        x1, y1, x2, y2 = (float(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise ValueError(f"A region is four numbers of pixels, x1, y1, x2, y2, but this is {text[:60]!r}.") from error
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def read_tags(text: str, known: Sequence[str] = ()) -> list[str]:
    """Names that somebody typed, with commas between them, without those that are known.

    Raises:
        ValueError: if they are too many or too long.
    """
    names = [" ".join(part.split()) for part in text.split(",")]
    new = [name for name in dict.fromkeys(names) if name and name not in known]
    longest = max(new, key=len, default="")
    if len(longest) > MAX_TAG_CHARACTERS:
        raise ValueError(f"A tag has {len(longest)} characters; at most {MAX_TAG_CHARACTERS} are taken.")
    if len(known) + len(new) > MAX_TAGS:
        raise ValueError(f"These are {len(known) + len(new)} tags; at most {MAX_TAGS} are taken.")
    return new


def longest_answer(lion: Lion) -> int:
    """Tokens that the model's own settings allow an answer."""
    return lion.model.generation_config.max_new_tokens or MAX_NEW_TOKENS


def answer(
    lion: Lion, seen: Seen, question: Question, tags: Sequence[str] | None, options: Options
) -> Iterator[Progress]:
    """Ask an image that was seen; it is not encoded again.

    Args:
        lion: the model.
        seen: the image.
        question: about it.
        tags: of the prompt; `None` for no tag sentence.
        options: of generation.

    Yields:
        The answer so far, at least twice a second; in the end with the `Answer`, whose boxes are in pixels of the
        image as it was sent. Who closes the iterator stops the model.
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
    """The text that the model writes, again and again as it grows; the last one is complete.

    The model runs in a thread of its own until the text ends or the iterator is closed.
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
    """Generate; put the text so far into `pieces` at each word, then the whole text or an error, and `None`."""
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
    """Decodes all tokens anew at each one: a few tokens of T5 have no text of their own."""

    def __init__(self, tokenizer: Any, pieces: "queue.SimpleQueue[str | Exception | None]"):
        self.tokenizer = tokenizer
        self.pieces = pieces
        self.ids: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Take new token ids; the first are the decoder's start."""
        self.ids += value.flatten().tolist()
        text = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        if text:
            self.pieces.put(text)

    def end(self) -> None:
        """Nothing: the whole text follows."""


class StoppedByUser(StoppingCriteria):
    """Ends the text after the token at which somebody set the event."""

    def __init__(self, stopped: threading.Event):
        self.stopped = stopped

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Whether to end, (B,)."""
        return torch.full((input_ids.shape[0],), self.stopped.is_set(), device=input_ids.device)  # type: ignore[return-value]


def with_answer(seen: Seen, question: Question, progress: Progress) -> Seen:
    """The image with one more answered question."""
    asked = Asked(question.task, question.about, progress.text, progress.seconds)
    return replace(seen, asked=(*seen.asked, asked))
