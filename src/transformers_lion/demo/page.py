"""The page: an image, its tags, four tasks, and answers with their boxes.

Whatever belongs to one user is a `gr.State`: the image that was seen with its features, the tags that can be ticked,
and the corners of a region. Handlers answer errors of the user's with a sentence.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from ..inference import Lion
from .answering import (
    MAX_BEAMS,
    MAX_CHARACTERS,
    Options,
    Progress,
    Question,
    Seen,
    Task,
    answer,
    longest_answer,
    make_question,
    read_tags,
    see,
    with_answer,
)  # fmt: skip
from .examples import Examples
from .marks import Point, box_as_text, draw_answer, draw_corners, to_box
from .uploads import open_upload

logger = logging.getLogger(__name__)

AT_ONCE = 2
"""Requests that the model works on at a time; others wait."""
QUEUE_LENGTH = 32
KEEP_SECONDS = 3600
"""How long an image is kept for a user who does nothing, and files that were sent are kept at least."""

NO_IMAGE = "Drop an image on the field, choose one, or take an example."
ASK_FIRST = "Choose an image first."
BROKEN = "Something went wrong in the demo itself. Its log says what."
CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
#picture img { cursor: crosshair; }
#status p { margin: 0; }
#answer textarea { font-size: 1.15em; }
#examples .caption-label { display: none; }
"""


class Handlers:
    """What happens on the page's events, without the page.

    Args:
        lion: the model.
        examples: that the page offers.
    """

    def __init__(self, lion: Lion, examples: Examples):
        self.lion = lion
        self.examples = examples
        # One image at a time is in memory at its full size, and always in the same thread, since what a thread has
        # freed may stay with it.
        self.opening = ThreadPoolExecutor(max_workers=1, thread_name_prefix="picture")

    # Values of: the image seen, the field of the image, status, tags that can be ticked, their boxes, corners,
    # the box as text, and what `Results.cleared` has.

    def on_upload(self, file: dict[str, Any] | None) -> tuple[Any, ...]:
        """A file was sent. The server has checked that its path is that of an upload."""
        if file is None:
            return self.on_clear()
        return self.show_seen(self.opening.submit(self.see_upload, file["path"]).result())

    def on_example(self, event: gr.SelectData) -> tuple[Any, ...]:
        """An example was clicked."""
        return self.show_seen(self.see(self.examples.images[event.index][0]))

    def see_upload(self, file: str) -> Seen | str:
        """What the model sees in a file that was sent, or why it cannot be taken."""
        try:
            image = open_upload(file)
        except ValueError as error:
            return str(error)
        return self.see(image)

    def see(self, image: Image.Image) -> Seen | str:
        """What the model sees in an image, or a sentence if that fails."""
        try:
            return see(self.lion, image)
        except Exception:
            logger.exception("An image of %s pixels could not be seen.", image.size)
            return BROKEN

    def show_seen(self, seen: Seen | str) -> tuple[Any, ...]:
        """An image is there, or the reason why not."""
        if isinstance(seen, str):
            return self.refuse(seen)
        tags = seen.tags or []
        return seen, seen.shown, _describe_seen(seen), tags, _offer_tags(tags, tags), (), "", *_cleared()

    def refuse(self, reason: str) -> tuple[Any, ...]:
        """An image cannot be taken."""
        gr.Warning(reason, title="No picture")
        return None, None, f"⚠️ {reason}", [], _offer_tags([], []), (), "", *_cleared()

    def on_clear(self) -> tuple[Any, ...]:
        """The image was taken away."""
        return None, None, NO_IMAGE, [], _offer_tags([], []), (), "", *_cleared()

    def on_tags(self, text: str, known: Sequence[str], ticked: Sequence[str]) -> tuple[Any, ...]:
        """Tags were typed: they can be ticked, and are."""
        try:
            new = read_tags(text, known)
        except ValueError as error:
            raise gr.Error(str(error), title="Tags", print_exception=False) from error
        again = [name for name in read_tags(text) if name in known]
        choices = [*known, *new]
        return choices, _offer_tags(choices, [name for name in choices if name in {*ticked, *again, *new}]), ""

    def on_click(self, seen: Seen | None, corners: Sequence[Point], event: gr.SelectData) -> tuple[Any, ...]:
        """The image was clicked: a corner of a region. A third click begins anew."""
        if seen is None:
            return (), gr.skip(), "", gr.skip()
        point = (round(event.index[0]), round(event.index[1]))
        chosen = (*(corners if len(corners) == 1 else ()), point)
        if len(chosen) == 2 and (chosen[0][0] == point[0] or chosen[0][1] == point[1]):
            chosen = (point,)  # no region: a double click
        text = box_as_text(to_box(chosen, seen)) if len(chosen) == 2 else ""
        return chosen, draw_corners(seen, chosen), text, gr.Tabs(selected="region")

    def on_ask(
        self,
        task: Task,
        seen: Seen | None,
        tell_tags: bool,
        ticked: Sequence[str],
        beams: float,
        length: float,
        about: str = "",
    ) -> Iterator[tuple[Any, ...]]:
        """A question was asked. Values of: the image seen, the field of the image, status, and the results."""
        try:
            if seen is None:
                raise ValueError(ASK_FIRST)
            question = make_question(self.lion, seen, task, about)
        except ValueError as error:
            raise gr.Error(str(error), title="Not asked", print_exception=False) from error
        options = Options(int(beams), int(length))
        tags = list(ticked) if tell_tags and (ticked or self.lion.tagger is not None) else None
        try:
            for progress in answer(self.lion, seen, question, tags, options):
                yield self.show(seen, question, progress)
        except Exception as error:
            logger.exception("A question could not be answered: %s", question)
            raise gr.Error(BROKEN, print_exception=False) from error

    @staticmethod
    def show(seen: Seen, question: Question, progress: Progress) -> tuple[Any, ...]:
        """What the page shows of an answer so far."""
        if progress.answer is None:
            return gr.skip(), gr.skip(), gr.skip(), progress.text, f"{progress.seconds:.1f} s …", gr.skip(), gr.skip()
        seen = with_answer(seen, question, progress)
        drawn = draw_answer(seen, question, progress.answer)
        return (
            seen,
            drawn,
            _describe_seen(seen),
            _for_people(question, progress),
            _describe_time(progress),
            _details(question, progress),
            gr.Dataframe(value=_table(seen), visible=True),
        )


def _table(seen: Seen) -> list[list[str]]:
    """What was asked, the last first."""
    return [[row.task, row.about, row.answer, f"{row.seconds:.2f}"] for row in reversed(seen.asked)]


def _cleared() -> tuple[Any, ...]:
    """No results: answer, time, details, list of what was asked."""
    return "", "", None, gr.Dataframe(value=[], visible=False)


def _offer_tags(choices: Sequence[str], ticked: Sequence[str]) -> Any:
    """Tags to tick."""
    return gr.CheckboxGroup(choices=list(choices), value=list(ticked))


def _describe_seen(seen: Seen) -> str:
    """The line below the image."""
    count = len(seen.asked)
    questions = "1 question" if count == 1 else f"{count} questions"
    return (
        f"{seen.size[0]} x {seen.size[1]} pixels · image encoded **once** ({seen.seconds:.2f} s), **{questions}** since"
    )


def _describe_time(progress: Progress) -> str:
    """How long an answer took."""
    first = "" if progress.first is None else f", first word after {progress.first:.2f} s"
    return f"{progress.seconds:.2f} s{first}"


def _for_people(question: Question, progress: Progress) -> str:
    """An answer in the field of answers: boxes in pixels where boxes were asked for."""
    assert progress.answer is not None
    if question.task != "locate":
        return progress.text
    boxes = progress.answer.boxes
    if not boxes:
        return f"No box: {progress.text}"
    return f"{question.about}: " + "; ".join(box_as_text(box) for box in boxes)


def _details(question: Question, progress: Progress) -> dict[str, Any]:
    """All there is to say of an answer."""
    found = progress.answer
    assert found is not None
    return {
        "answer": found.text,
        "boxes": [", ".join(f"{value:.1f}" for value in box) for box in found.boxes],
        "picture": f"{found.image_size[0]} x {found.image_size[1]}",
        "prompt": found.prompt,
        "tags": None if found.tags is None else ", ".join(found.tags),
        "task_type": question.task_type,
        "seconds": round(progress.seconds, 3),
        "seconds_to_first_word": None if progress.first is None else round(progress.first, 3),
    }


def build_page(lion: Lion, examples: Examples, name: str = "") -> gr.Blocks:
    """The page.

    Args:
        lion: the model.
        examples: images and questions to offer.
        name: a sentence about the model.
    """
    handlers = Handlers(lion, examples)
    with gr.Blocks(title="LION", analytics_enabled=False, delete_cache=(KEEP_SECONDS, KEEP_SECONDS)) as page:
        seen = gr.State(None, time_to_live=KEEP_SECONDS)
        known_tags = gr.State([], time_to_live=KEEP_SECONDS)
        corners = gr.State((), time_to_live=KEEP_SECONDS)
        gr.Markdown(f"# LION\nCaptions, answers and boxes, with the tags of the image as a hint. {name}")
        with gr.Row():
            with gr.Column(scale=6, min_width=340):
                image = gr.Image(
                    label="Picture", show_label=False, format="png", sources=["upload", "clipboard"], height=440,
                    elem_id="picture", buttons=["download", "fullscreen"], type="filepath",
                    placeholder="Drop an image here\n- or -\nClick to choose one",
                )  # fmt: skip
                status = gr.Markdown(NO_IMAGE, elem_id="status")
                gallery = None
                if examples.images:
                    gallery = gr.Gallery(
                        list(examples.images), label="Examples", show_label=False, height=150,
                        columns=min(6, max(4, len(examples.images))), allow_preview=False, interactive=False,
                        object_fit="cover", buttons=[], elem_id="examples",
                    )  # fmt: skip
            with gr.Column(scale=5, min_width=340):
                with gr.Group():
                    tags = gr.CheckboxGroup(
                        [], label="Tags", elem_id="tags", interactive=True,
                        info="What the tagger sees. Untick what is wrong, add what is missing."
                        if lion.tagger else "This model has no tagger; add tags of your own.",
                    )  # fmt: skip
                    new_tags = gr.Textbox(
                        placeholder="Type, with commas between them, and press Enter", label="Add tags",
                        max_length=MAX_CHARACTERS, max_lines=1, elem_id="new-tags",
                    )  # fmt: skip
                    tell_tags = gr.Checkbox(True, label="Tell the model the ticked tags", elem_id="tell-tags")
                with gr.Tabs(elem_id="tasks") as tabs:
                    with gr.Tab("Caption", id="caption"):
                        caption = gr.Button("Describe the picture", variant="primary", elem_id="caption-button")
                    with gr.Tab("Ask", id="ask"):
                        question, ask = _text_task("Question", "What color is it?", "Ask", "ask", examples.questions)
                    with gr.Tab("Locate", id="locate"):
                        phrase, locate = _text_task(
                            "What to find", "the red circle", "Locate", "locate", examples.phrases
                        )
                    with gr.Tab("Describe a region", id="region"):
                        box, region = _text_task(
                            "Region", "Click two opposite corners on the image, or type x1, y1, x2, y2",
                            "Describe the region", "region",
                        )  # fmt: skip
                found = gr.Textbox(label="Answer", interactive=False, lines=2, buttons=["copy"], elem_id="answer")
                with gr.Row():
                    time = gr.Markdown(elem_id="time")
                    stop = gr.Button("Stop", size="sm", scale=0, min_width=80, elem_id="stop")
        asked = gr.Dataframe(
            headers=["task", "about", "answer", "seconds"], label="Asked about this picture", interactive=False,
            visible=False, wrap=True, elem_id="asked", buttons=[], column_widths=["12%", "35%", "43%", "10%"],
        )  # fmt: skip
        with gr.Accordion("The raw answer, and how it is made", open=False, elem_id="details"):
            with gr.Row():
                beams = gr.Slider(
                    1, MAX_BEAMS, 1, step=1, label="Beams", elem_id="beams",
                    info="1 writes word by word; more search longer and write at the end.",
                )  # fmt: skip
                longest = longest_answer(lion)
                length = gr.Slider(1, longest, longest, step=1, label="Longest answer, in tokens", elem_id="length")
            raw = gr.JSON(label="Raw answer", elem_id="raw")

        results = [found, time, raw, asked]
        shared = [seen, tell_tags, tags, beams, length]
        running = []
        tasks: tuple[tuple[Task, gr.Button, gr.Textbox | None], ...] = (
            ("caption", caption, None), ("ask", ask, question), ("locate", locate, phrase), ("region", region, box),
        )  # fmt: skip
        for task, button, about in tasks:
            running.append(gr.on(
                [button.click] if about is None else [button.click, about.submit],
                partial(handlers.on_ask, task),
                [*shared, *([] if about is None else [about])],
                [seen, image, status, *results],
                api_name=task, concurrency_id="model", concurrency_limit=AT_ONCE, show_progress="minimal",
                show_progress_on=[found],
            ))  # fmt: skip
        stop.click(lambda: "Stopped.", None, time, cancels=running, queue=False, api_visibility="private")

        new_image: dict[str, Any] = {
            "outputs": [seen, image, status, known_tags, tags, corners, box, *results],
            "cancels": running, "show_progress": "minimal", "show_progress_on": [status],
        }  # fmt: skip
        model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": AT_ONCE}
        # without preprocessing, in which Gradio would open the file, and have its own words for those that are none
        image.upload(handlers.on_upload, image, api_name="see", preprocess=False, **new_image, **model)
        image.clear(handlers.on_clear, None, api_visibility="private", queue=False, **new_image)
        if gallery is not None:
            gallery.select(handlers.on_example, None, api_visibility="private", **new_image, **model)
        new_tags.submit(
            handlers.on_tags,
            [new_tags, known_tags, tags],
            [known_tags, tags, new_tags],
            api_name="add_tags",
            queue=False,
        )
        image.select(
            handlers.on_click, [seen, corners], [corners, image, box, tabs], api_visibility="private",
            show_progress="hidden", trigger_mode="multiple",
        )  # fmt: skip
    return page.queue(max_size=QUEUE_LENGTH, default_concurrency_limit=8)


def _text_task(
    label: str, placeholder: str, action: str, name: str, suggestions: Sequence[str] = ()
) -> tuple[gr.Textbox, gr.Button]:
    """A field for words, a button, and words to put into the field."""
    text = gr.Textbox(
        label=label, placeholder=placeholder, max_length=MAX_CHARACTERS, max_lines=1, elem_id=f"{name}-text"
    )
    button = gr.Button(action, variant="primary", elem_id=f"{name}-button")
    if suggestions:
        with gr.Row():
            for suggestion in suggestions:
                put: Callable[[], str] = partial(str, suggestion)
                gr.Button(suggestion, size="sm", variant="secondary").click(
                    put, None, text, queue=False, show_progress="hidden", api_visibility="private"
                )
    return text, button
