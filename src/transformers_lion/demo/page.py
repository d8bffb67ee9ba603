"""The page of the demo: an image, its tags, four tasks, and answers with boxes.

Everything that belongs to one user is a `gr.State`: the encoded image, the available tags, and the corners of a region.
Handlers report user errors in one sentence.
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
"""Number of requests that the model processes at the same time. Others are queued."""
QUEUE_LENGTH = 32
KEEP_SECONDS = 3600
"""How long to keep the image of an inactive user, and the minimum time to keep uploaded files."""

NO_IMAGE = "Drop an image here, choose one, or select an example."
ASK_FIRST = "Choose an image first."
BROKEN = "Something went wrong in the demo. See its log for details."
CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
#image img { cursor: crosshair; }
#status p { margin: 0; }
#answer textarea { font-size: 1.15em; }
#examples .caption-label { display: none; }
"""


class Handlers:
    """Event handlers of the page, independent of the page itself.

    Args:
        lion: The model.
        examples: Examples on the page.
    """

    def __init__(self, lion: Lion, examples: Examples):
        self.lion = lion
        self.examples = examples
        # A single thread keeps at most one image in memory at full size. Memory that a thread frees may stay reserved
        # for it, so several threads would need more.
        self.opening = ThreadPoolExecutor(max_workers=1, thread_name_prefix="image")

    # Outputs: the encoded image, the image field, the status, available tags, their checkboxes, corners, the box as
    # text, and the values of `_cleared`.

    def on_upload(self, file: dict[str, Any] | None) -> tuple[Any, ...]:
        """Handle an upload. The server has checked that the path is that of an uploaded file."""
        if file is None:
            return self.on_clear()
        return self.show_seen(self.opening.submit(self.see_upload, file["path"]).result())

    def on_example(self, event: gr.SelectData) -> tuple[Any, ...]:
        """Handle a click on an example."""
        return self.show_seen(self.see(self.examples.images[event.index][0]))

    def see_upload(self, file: str) -> Seen | str:
        """Encode an uploaded image, or return the reason why it cannot be used."""
        try:
            image = open_upload(file)
        except ValueError as error:
            return str(error)
        return self.see(image)

    def see(self, image: Image.Image) -> Seen | str:
        """Encode an image, or return a message if that fails."""
        try:
            return see(self.lion, image)
        except Exception:
            logger.exception("Could not encode an image of %s pixels.", image.size)
            return BROKEN

    def show_seen(self, seen: Seen | str) -> tuple[Any, ...]:
        """Show an encoded image, or the reason why there is none."""
        if isinstance(seen, str):
            return self.refuse(seen)
        tags = seen.tags or []
        return seen, seen.shown, _describe_seen(seen), tags, _offer_tags(tags, tags), (), "", *_cleared()

    def refuse(self, reason: str) -> tuple[Any, ...]:
        """Report that an image cannot be used."""
        gr.Warning(reason, title="No image")
        return None, None, f"⚠️ {reason}", [], _offer_tags([], []), (), "", *_cleared()

    def on_clear(self) -> tuple[Any, ...]:
        """Handle the removal of the image."""
        return None, None, NO_IMAGE, [], _offer_tags([], []), (), "", *_cleared()

    def on_tags(self, text: str, known: Sequence[str], ticked: Sequence[str]) -> tuple[Any, ...]:
        """Handle typed tags: add them to the available tags and select them."""
        try:
            new = read_tags(text, known)
        except ValueError as error:
            raise gr.Error(str(error), title="Tags", print_exception=False) from error
        again = [name for name in read_tags(text) if name in known]
        choices = [*known, *new]
        return choices, _offer_tags(choices, [name for name in choices if name in {*ticked, *again, *new}]), ""

    def on_click(self, seen: Seen | None, corners: Sequence[Point], event: gr.SelectData) -> tuple[Any, ...]:
        """Handle a click on the image, which selects a corner of a region. A third click starts a new region."""
        if seen is None:
            return (), gr.skip(), "", gr.skip()
        point = (round(event.index[0]), round(event.index[1]))
        chosen = (*(corners if len(corners) == 1 else ()), point)
        if len(chosen) == 2 and (chosen[0][0] == point[0] or chosen[0][1] == point[1]):
            chosen = (point,)  # a double click does not select a region
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
        """Handle a question. Yields the encoded image, the image field, the status, and the results."""
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
            logger.exception("Could not answer a question: %s", question)
            raise gr.Error(BROKEN, print_exception=False) from error

    @staticmethod
    def show(seen: Seen, question: Question, progress: Progress) -> tuple[Any, ...]:
        """Return the values of the page for an answer in progress."""
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
    """List the questions, most recent first."""
    return [[row.task, row.about, row.answer, f"{row.seconds:.2f}"] for row in reversed(seen.asked)]


def _cleared() -> tuple[Any, ...]:
    """Empty results: answer, time, details, and list of questions."""
    return "", "", None, gr.Dataframe(value=[], visible=False)


def _offer_tags(choices: Sequence[str], ticked: Sequence[str]) -> Any:
    return gr.CheckboxGroup(choices=list(choices), value=list(ticked))


def _describe_seen(seen: Seen) -> str:
    """Describe the state below the image."""
    count = len(seen.asked)
    questions = "1 question" if count == 1 else f"{count} questions"
    return (
        f"{seen.size[0]} x {seen.size[1]} pixels · image encoded **once** ({seen.seconds:.2f} s), **{questions}** since"
    )


def _describe_time(progress: Progress) -> str:
    first = "" if progress.first is None else f", first word after {progress.first:.2f} s"
    return f"{progress.seconds:.2f} s{first}"


def _for_people(question: Question, progress: Progress) -> str:
    """Format an answer for display, with boxes in pixels for the task "locate"."""
    assert progress.answer is not None
    if question.task != "locate":
        return progress.text
    boxes = progress.answer.boxes
    if not boxes:
        return f"No box: {progress.text}"
    return f"{question.about}: " + "; ".join(box_as_text(box) for box in boxes)


def _details(question: Question, progress: Progress) -> dict[str, Any]:
    """Return all details of an answer."""
    found = progress.answer
    assert found is not None
    return {
        "answer": found.text,
        "boxes": [", ".join(f"{value:.1f}" for value in box) for box in found.boxes],
        "image": f"{found.image_size[0]} x {found.image_size[1]}",
        "prompt": found.prompt,
        "tags": None if found.tags is None else ", ".join(found.tags),
        "task_type": question.task_type,
        "seconds": round(progress.seconds, 3),
        "seconds_to_first_word": None if progress.first is None else round(progress.first, 3),
    }


def build_page(lion: Lion, examples: Examples, name: str = "") -> gr.Blocks:
    """Build the page.

    Args:
        lion: The model.
        examples: Images and questions to offer.
        name: A sentence about the model.
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
                    label="Image", show_label=False, format="png", sources=["upload", "clipboard"], height=440,
                    elem_id="image", buttons=["download", "fullscreen"], type="filepath",
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
                        info="Recognized by the tagger. Clear wrong tags and add missing ones."
                        if lion.tagger else "This model has no tagger. Add your own tags.",
                    )  # fmt: skip
                    new_tags = gr.Textbox(
                        placeholder="Type tags, separated by commas, and press Enter", label="Add tags",
                        max_length=MAX_CHARACTERS, max_lines=1, elem_id="new-tags",
                    )  # fmt: skip
                    tell_tags = gr.Checkbox(True, label="Use the selected tags", elem_id="tell-tags")
                with gr.Tabs(elem_id="tasks") as tabs:
                    with gr.Tab("Caption", id="caption"):
                        caption = gr.Button("Describe the image", variant="primary", elem_id="caption-button")
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
            headers=["task", "about", "answer", "seconds"], label="Questions about this image", interactive=False,
            visible=False, wrap=True, elem_id="asked", buttons=[], column_widths=["12%", "35%", "43%", "10%"],
        )  # fmt: skip
        with gr.Accordion("Raw answer and generation settings", open=False, elem_id="details"):
            with gr.Row():
                beams = gr.Slider(
                    1, MAX_BEAMS, 1, step=1, label="Beams", elem_id="beams",
                    info="1 streams word by word. More beams search longer and show the answer at the end.",
                )  # fmt: skip
                longest = longest_answer(lion)
                length = gr.Slider(
                    1, longest, longest, step=1, label="Maximum answer length, in tokens", elem_id="length"
                )
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
        # without preprocessing, in which Gradio would open the file and report invalid ones with its own messages
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
    """Create a text field, a button, and suggestions for the text."""
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
