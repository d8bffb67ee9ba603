"""`lion caption`, `lion ask` and `lion locate`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image

from ..example import example_checkpoint
from .answering import Job, Opened, Outcome, Prepared, run_job
from .checkpoints import load_lion
from .common import Debug, note, run_action
from .drawings import write_below
from .options import Columns, Images, Place, Settings, expand_settings

if TYPE_CHECKING:
    from ..inference import Answer, Lion, Request


@dataclass(frozen=True)
class Question:
    """A question about every image.

    Attributes:
        text: the prompt; `None` for the model's captioning prompt.
        about: the user's part of the prompt, shown with results.
    """

    text: str | None = None
    about: str | None = None
    task_type: str = "image_level"


class Answering(Job):
    """Answers questions about each image.

    Args:
        name: the key of `Question.about` in JSON records.
        describe: formats an answer as text.
        scores: whether to score each box.
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

    @property
    def num_results(self) -> int:
        """Number of results per image."""
        return len(self.questions)

    def identify(self) -> dict[str, Any]:
        """Return everything that the answers depend on."""
        from ..model_identity import identify_model

        settings = self.settings
        return {
            "model": identify_model(settings.model or example_checkpoint()),
            "questions": [question.text or "caption" for question in self.questions],
            "tags": settings.tags,
            "tag_source": settings.tag_source,
            "tagger": settings.tagger and identify_model(settings.tagger),
            "dtype": settings.dtype and settings.dtype.value,
            **settings.generation,
            "scores": self.scores,
        }

    def load(self) -> None:
        """Load the model, and tell the user if it has no tagger but prompts need one."""
        settings = self.settings
        dtype = settings.dtype and settings.dtype.value
        self.lion = load_lion(
            settings.model, settings.tagger_to_load, settings.device, dtype, settings.optimize, settings.compile
        )
        if self.lion.tagger is None and settings.tagger_to_load and settings.model is not None:
            if settings.tag_source == "tagger":
                raise ValueError(f"{settings.model} has no tagger for --tag-source tagger; specify one with --tagger.")
            note(f"{settings.model} has no tagger, so prompts have no tag sentence; see --tags and --tagger.")

    def prepare(self, opened: Opened, keep_images: bool) -> Prepared:
        """Preprocess each distinct image of a batch once."""
        images = list({id(image): image for _, image in opened}.values())
        prepared = dict(zip(map(id, images), self.lion.prepare(images, keep_images), strict=True))
        return [(name, prepared[id(image)]) for name, image in opened]

    def run(self, prepared: Prepared) -> list[Outcome]:
        """Answer the questions about a batch of images."""
        from ..inference import Request

        tags, tag_source = self.settings.tags, self.settings.tag_source
        prompt = self.lion.processor.caption_prompt
        requests = [
            Request(image, prompt if question.text is None else question.text, question.task_type, tags, tag_source)
            for _, image in prepared
            for question in self.questions
        ]
        answers = self.lion.answer(
            requests, batch_size=self.settings.batch_size, scores=self.scores, **self.settings.generation
        )
        count = len(self.questions)
        return [
            self.outcome(image, requests[start : start + count], answers[start : start + count])
            for start, (_, image) in zip(range(0, len(answers), count), prepared, strict=True)
        ]

    def outcome(self, prepared: Any, requests: "Sequence[Request]", answers: "Sequence[Answer]") -> Outcome:
        """Return the results for one image."""
        rows = []
        for question, request, answer in zip(self.questions, requests, answers, strict=True):
            about = {} if question.about is None else {self.name: question.about}
            shown = list(about.values()) if len(self.questions) > 1 else []
            rows.append(([*shown, self.describe(answer)], {**about, **to_record(request, answer)}))
        return Outcome(rows, partial(self.draw, prepared.rgb_image, answers))

    def draw(self, image: Image.Image, answers: "Sequence[Answer]") -> Image.Image:
        """Draw the boxes on an image, and answers without boxes below it."""
        from ..grounding.drawing import draw_entities

        entities = [
            (question.about or phrase, span, boxes)
            for question, answer in zip(self.questions, answers, strict=True)
            for phrase, span, boxes in answer.entities
        ]
        drawn = draw_entities(image, entities) if entities else image
        lines = [
            f"{question.about} {answer.text}" if question.about else answer.text
            for question, answer in zip(self.questions, answers, strict=True)
            if not answer.entities and question.task_type == "image_level"
        ]
        return write_below(drawn, lines) if lines else drawn


def to_record(request: "Request", answer: "Answer") -> dict[str, Any]:
    """Return the JSON record of an answer."""
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
    """Format an answer's boxes in whole pixels, with their scores if available."""
    boxes = [",".join(f"{value:.0f}" for value in box) for box in answer.boxes]
    if answer.scores is not None:
        boxes = [f"{box},{score:.3f}" for box, score in zip(boxes, answer.scores, strict=True)]
    return " ".join(boxes) or "no box"


def check_texts(option: str, texts: Sequence[str]) -> None:
    """Raise `typer.BadParameter` if a text is blank."""
    if not all(text.strip() for text in texts):
        raise typer.BadParameter("the text is blank.", param_hint=f"'{option}'")


def answer_all(job: Answering, images: Sequence[str], columns: Columns, place: Place, debug: bool) -> None:
    """Run a job on the images that the arguments name."""
    run_action(lambda: run_job(job, images, columns, job.settings.batch_size, place), debug)


@expand_settings
def caption(images: Images, columns: Columns, settings: Settings, place: Place, debug: Debug = False) -> None:
    """Describe each image in a short sentence."""
    answer_all(Answering(settings, [Question()]), images, columns, place, debug)


@expand_settings
def ask(
    images: Images,
    questions: Annotated[list[str], typer.Option("--question", "-q", help="Question about each image; repeatable.")],
    columns: Columns,
    settings: Settings,
    place: Place,
    debug: Debug = False,
) -> None:
    """Answer questions about each image."""
    check_texts("--question", questions)
    answer_all(
        Answering(settings, [Question(text, text) for text in questions], "question"), images, columns, place, debug
    )


@expand_settings
def locate(
    images: Images,
    phrases: Annotated[list[str], typer.Option("--phrase", "-p", help="What to find: 'the red cup'; repeatable.")],
    columns: Columns,
    settings: Settings,
    place: Place,
    scores: Annotated[bool, typer.Option("--scores", help="Also show the confidence of each box, 0 to 1.")] = False,
    debug: Debug = False,
) -> None:
    """Find things in each image, as boxes x1,y1,x2,y2 in pixels."""
    from ..inference import LOCATE_QUESTION

    check_texts("--phrase", phrases)
    questions = [
        Question(LOCATE_QUESTION.format(phrase=phrase.strip()), phrase.strip(), "region_level") for phrase in phrases
    ]
    answer_all(Answering(settings, questions, "phrase", boxes_of, scores), images, columns, place, debug)
