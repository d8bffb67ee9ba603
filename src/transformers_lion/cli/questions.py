"""`lion caption`, `lion ask` and `lion locate`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image

from .answering import Job, Opened, Outcome, run_job
from .checkpoints import load_lion
from .common import Debug, note, run_action
from .drawings import write_below
from .options import Images, Settings, expand_settings

if TYPE_CHECKING:
    from ..inference import Answer, Lion, Request


@dataclass(frozen=True)
class Question:
    """What every image is asked.

    Attributes:
        text: the model's question; `None` for its own captioning prompt.
        about: the user's words in it, for results.
    """

    text: str | None = None
    about: str | None = None
    task_type: str = "image_level"


class Answering(Job):
    """Asks each image some questions.

    Args:
        name: of what `Question.about` is, in records.
        describe: an answer for people.
        scores: also score each box.
    """

    def __init__(
        self,
        settings: Settings,
        questions: Sequence[Question],
        name: str = "",
        describe: "Callable[[Answer], str]" = lambda answer: answer.text,
        scores: bool = False,
    ):
        self.settings = settings
        self.questions = questions
        self.name = name
        self.describe = describe
        self.scores = scores
        self.lion: Lion

    def load(self) -> None:
        """Load the model, and say if it has no tagger where tags would be its."""
        settings = self.settings
        dtype = settings.dtype and settings.dtype.value
        self.lion = load_lion(settings.model, settings.tagger_to_load, settings.device, dtype, settings.optimize)
        if self.lion.tagger is None and settings.tagger_to_load and settings.model is not None:
            if settings.tag_source == "tagger":
                raise ValueError(f"{settings.model} holds no tagger for --tag-source tagger; name one with --tagger.")
            note(f"{settings.model} holds no tagger, so that prompts have no tag sentence; see --tags and --tagger.")

    def run(self, pictures: Opened) -> list[Outcome]:
        """Ask about some images."""
        from ..inference import Request

        tags, tag_source = self.settings.tags, self.settings.tag_source
        prompt = self.lion.processor.caption_prompt
        requests = [
            Request(picture, prompt if question.text is None else question.text, question.task_type, tags, tag_source)
            for _, picture in pictures
            for question in self.questions
        ]
        answers = self.lion.answer(
            requests, batch_size=self.settings.batch_size, scores=self.scores, **self.settings.generation
        )
        count = len(self.questions)
        return [
            self.outcome(picture, requests[start : start + count], answers[start : start + count])
            for start, (_, picture) in zip(range(0, len(answers), count), pictures, strict=True)
        ]

    def outcome(self, picture: Image.Image, requests: "Sequence[Request]", answers: "Sequence[Answer]") -> Outcome:
        """The results of one image."""
        rows = []
        for question, request, answer in zip(self.questions, requests, answers, strict=True):
            about = {} if question.about is None else {self.name: question.about}
            shown = list(about.values()) if len(self.questions) > 1 else []
            rows.append(([*shown, self.describe(answer)], {**about, **to_record(request, answer)}))
        return Outcome(rows, partial(self.draw, picture, answers))

    def draw(self, picture: Image.Image, answers: "Sequence[Answer]") -> Image.Image:
        """An image with its boxes, or else with its answers below."""
        from ..grounding.drawing import draw_entities

        entities = [
            (question.about or phrase, span, boxes)
            for question, answer in zip(self.questions, answers, strict=True)
            for phrase, span, boxes in answer.entities
        ]
        drawn = draw_entities(picture, entities) if entities else picture
        lines = [
            f"{question.about} {answer.text}" if question.about else answer.text
            for question, answer in zip(self.questions, answers, strict=True)
            if not answer.entities and question.task_type == "image_level"
        ]
        return write_below(drawn, lines) if lines else drawn


def to_record(request: "Request", answer: "Answer") -> dict[str, Any]:
    """All there is to say of an answer."""
    record = {
        "answer": answer.text,
        "boxes": [[round(value, 2) for value in box] for box in answer.boxes],
        "width": answer.image_size[0],
        "height": answer.image_size[1],
        "tags": answer.tags,
        "task_type": request.task_type,
        "prompt": answer.prompt,
    }
    if answer.scores is None:
        return record
    return {**record, "scores": [None if math.isnan(score) else round(score, 4) for score in answer.scores]}


def boxes_of(answer: "Answer") -> str:
    """An answer's boxes in whole pixels, with their scores if they have some."""
    boxes = [",".join(f"{value:.0f}" for value in box) for box in answer.boxes]
    if answer.scores is not None:
        boxes = [f"{box},{score:.3f}" for box, score in zip(boxes, answer.scores, strict=True)]
    return " ".join(boxes) or "no box"


def check_texts(option: str, texts: Sequence[str]) -> None:
    """Raise `typer.BadParameter` if a text is blank."""
    if not all(text.strip() for text in texts):
        raise typer.BadParameter("it is blank.", param_hint=f"'{option}'")


def answer_all(job: Answering, images: Sequence[str], debug: bool) -> None:
    """Run a command."""
    settings = job.settings
    places = settings.as_json, settings.output, settings.draw
    run_action(lambda: run_job(job, images, settings.batch_size, *places), debug)


@expand_settings
def caption(images: Images, settings: Settings, debug: Debug = False) -> None:
    """Describe each image in a short sentence."""
    answer_all(Answering(settings, [Question()]), images, debug)


@expand_settings
def ask(
    images: Images,
    questions: Annotated[
        list[str], typer.Option("--question", "-q", help="One for all images; may be given several times.")
    ],
    settings: Settings,
    debug: Debug = False,
) -> None:
    """Answer questions about each image."""
    check_texts("--question", questions)
    answer_all(Answering(settings, [Question(text, text) for text in questions], "question"), images, debug)


@expand_settings
def locate(
    images: Images,
    phrases: Annotated[
        list[str], typer.Option("--phrase", "-p", help="What to find, 'the red cup'; may be given several times.")
    ],
    settings: Settings,
    scores: Annotated[bool, typer.Option("--scores", help="Also how sure the model was of each box, 0 to 1.")] = False,
    debug: Debug = False,
) -> None:
    """Find things in each image: boxes x1,y1,x2,y2 in its pixels."""
    from ..inference import LOCATE_QUESTION

    check_texts("--phrase", phrases)
    questions = [
        Question(LOCATE_QUESTION.format(phrase=phrase.strip()), phrase.strip(), "region_level") for phrase in phrases
    ]
    answer_all(Answering(settings, questions, "phrase", boxes_of, scores), images, debug)
