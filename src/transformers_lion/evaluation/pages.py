"""Visualize the worst cases of an evaluation: a self-contained HTML page, and an image.

Boxes of answers are red and boxes of references are green. They also have labels, for readers who cannot tell the
colors apart.
"""

import base64
import io
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..file_utils import naming, write_text
from ..grounding import Box, Entity, extract_boxes, format_boxes, scale_box
from ..grounding.drawing import draw_entities
from .answering import open_image
from .missing import right_candidate
from .results import Result
from .settings import EvaluationSettings
from .task import Example, Prediction

PAGE, SHEET = "worst.html", "worst.png"
"""File names in the output folder."""

NUM_ON_PAGE, NUM_ON_SHEET = 48, 12
PAGE_SIDE = 480
"""Longer side of images on the page, in pixels."""
COLUMNS, TILE, MARGIN, LETTERS, NUM_LINES = 4, 320, 12, 13, 7
"""Layout of the sheet: tiles per row, their side, margin, font size, and number of text lines below an image."""
PAPER, INK, FAINT = "white", "#222222", "#dddddd"


@dataclass(frozen=True)
class Case:
    """An example with its answer.

    Attributes:
        score: Score of the answer. `None` if it is unknown.
        error: Reason why there is no answer.
    """

    example: Example
    answer: str
    score: float | None
    error: str | None = None

    @property
    def reference(self) -> str:
        """The right answer, as text."""
        return describe_reference(self.example)

    @property
    def entities(self) -> list[Entity]:
        """Boxes of the answer and of the reference, as fractions of the image."""
        own, right = extract_boxes(self.answer), _reference_box(self.example)
        return [("answer", (0, 0), own), ("reference", (0, 0), [right] if right else [])]

    def draw(self, folder: Path, side: int) -> Image.Image | None:
        """Draw the boxes on the image, resized so that its longer side has `side` pixels. Return `None` if it cannot be
        read.
        """
        try:
            image = open_image(self.example.image, folder)
        except ValueError:
            return None
        scale = side / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        return draw_entities(
            image,
            [(name, span, [scale_box(box, image.size) for box in boxes]) for name, span, boxes in self.entities],
        )


def find_worst(
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    scores: Mapping[str, float],
    errors: Mapping[str, str],
    count: int,
) -> list[Case]:
    """Find the examples with the lowest scores, in stable order. Examples without an answer come last."""
    answers = {prediction.id: prediction.answer for prediction in predictions}
    order = sorted(examples, key=lambda example: (example.id in errors, scores.get(example.id, 0.0)))
    return [Case(x, answers[x.id], scores.get(x.id), errors.get(x.id)) for x in order[:count]]


def _reference_box(example: Example) -> Box | None:
    """Return the reference as fractions of the image if it is a box, otherwise `None`."""
    value = example.references
    is_box = isinstance(value, list | tuple) and len(value) == 4 and all(isinstance(x, float | int) for x in value)
    return (value[0], value[1], value[2], value[3]) if is_box and not example.candidates else None


def describe_reference(example: Example) -> str:
    """Describe a reference: the right candidate, a box, or answers with the number of people who gave them."""
    box, value = _reference_box(example), example.references
    if box is not None:
        return format_boxes([box])
    if example.candidates:
        return example.candidates[right_candidate(example)]
    if isinstance(value, list | tuple):
        counts = Counter(map(str, value))
        return "; ".join(text if count == 1 else f"{text} (x{count})" for text, count in counts.most_common())
    return str(value)


def write_pages(
    settings: EvaluationSettings,
    result: Result,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    scores: Mapping[str, float],
    errors: Mapping[str, str],
) -> None:
    """Write the page and the image of the worst cases to the output folder."""
    cases = find_worst(examples, predictions, scores, errors, NUM_ON_PAGE)
    write_text(settings.output / PAGE, make_page(result, cases, settings.image_folder))
    with naming(settings.output / SHEET):
        make_sheet(cases[:NUM_ON_SHEET], settings.image_folder).save(settings.output / SHEET)


# --- the page -----------------------------------------------------------------------------------------------------

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: .2em .9em .2em 0; text-align: right; } td:first-child, th:first-child { text-align: left; }
th { border-bottom: 1px solid #999; }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1.4em; }
.case { border: 1px solid #ddd; border-radius: 6px; padding: .8em; overflow-wrap: anywhere; }
.case img { max-width: 100%; display: block; margin: 0 auto .6em; }
.unread { background: #eee; padding: 3em 1em; text-align: center; margin-bottom: .6em; }
dt { color: #666; font-size: 12px; } dd { margin: 0 0 .4em; white-space: pre-wrap; }
.answer { color: #b3123a; } .reference { color: #0b6e4f; }
"""

TEMPLATE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style></head><body>
<h1>{title}</h1><p>{about}</p>
{table}
<h2>The {count} worst cases</h2><p>The answer's box is red, the reference's green.</p>
<div class="cases">
{cases}
</div></body></html>
"""


def make_page(result: Result, cases: Sequence[Case], folder: Path) -> str:
    """Create the HTML page. All text from data, models and paths is escaped."""
    model = (result.model or {}).get("name") or result.predictions or ""
    title = f"{result.task}{f' on {result.dataset}' if result.dataset else ''}"
    return TEMPLATE.format(
        title=escape(title),
        style=STYLE,
        about=escape(f"{model} on {result.data['name']}: {result.to_sentence()}"),
        table=_make_table(result),
        count=len(cases),
        cases="\n".join(_make_card(case, folder) for case in cases),
    )


def _make_table(result: Result) -> str:
    """Create a table of the metrics and the paper's values."""
    rows = [result.columns(), *([name, value, *paper] for name, value, paper in result.rows())]
    lines = []
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        lines.append(f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _make_card(case: Case, folder: Path) -> str:
    image = case.draw(folder, PAGE_SIDE)
    shown = f'<div class="unread">{escape(case.error or "no image")}</div>' if image is None else embed(image)
    score = "unknown" if case.score is None else f"{case.score:.2f}"
    fields = [
        ("question", case.example.question, ""),
        ("answer", case.answer if case.error is None else "none", "answer"),
        ("reference", case.reference, "reference"),
        ("score", score, ""),
        ("id, image", f"{case.example.id}, {case.example.image}", ""),
    ]
    items = "".join(f'<dt>{name}</dt><dd class="{kind}">{escape(text)}</dd>' for name, text, kind in fields)
    return f'<div class="case">{shown}<dl>{items}</dl></div>'


def embed(image: Image.Image) -> str:
    """Embed an image in the page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


# --- the image --------------------------------------------------------------------------------------------------


def make_sheet(cases: Sequence[Case], folder: Path) -> Image.Image:
    """Draw the cases side by side, with question, answer and reference below each."""
    font: Any = ImageFont.load_default(size=LETTERS)
    height = TILE + NUM_LINES * (LETTERS + 4) + 2 * MARGIN
    columns = max(1, min(COLUMNS, len(cases)))
    rows = max(1, -(-len(cases) // columns))
    sheet = Image.new("RGB", (columns * (TILE + MARGIN) + MARGIN, rows * height + MARGIN), PAPER)
    for number, case in enumerate(cases):
        corner = MARGIN + number % columns * (TILE + MARGIN), MARGIN + number // columns * height
        _draw_tile(sheet, case, folder, corner, font)
    if not cases:
        ImageDraw.Draw(sheet).text((MARGIN, MARGIN), "There are no cases.", fill=INK, font=font)
    return sheet


def _draw_tile(sheet: Image.Image, case: Case, folder: Path, corner: tuple[int, int], font: Any) -> None:
    draw, (left, top) = ImageDraw.Draw(sheet), corner
    image = case.draw(folder, TILE)
    if image is None:
        draw.rectangle((left, top, left + TILE, top + TILE), fill=FAINT)
        _write_lines(draw, wrap(case.error or "no image", font, TILE - 2 * MARGIN), left + MARGIN, top + MARGIN, font)
    else:
        sheet.paste(image, (left + (TILE - image.width) // 2, top + (TILE - image.height) // 2))
    answer = case.answer if case.error is None else "none"
    score = "" if case.score is None else f" ({case.score:.1f})"
    lines = [
        *wrap(case.example.question, font, TILE)[:3],
        *wrap(f"answer: {answer}{score}", font, TILE)[:2],
        *wrap(f"reference: {case.reference}", font, TILE)[:2],
    ]
    _write_lines(draw, lines, left, top + TILE + 4, font)


def _write_lines(draw: ImageDraw.ImageDraw, lines: Sequence[str], left: int, top: int, font: Any) -> None:
    for number, line in enumerate(lines):
        draw.text((left, top + number * (LETTERS + 4)), line, fill=INK, font=font)


def wrap(text: str, font: Any, width: int) -> list[str]:
    """Wrap a text to approximately `width` pixels, based on its average character width."""
    text = " ".join(text.split())[:2000]
    length = max(1.0, font.getlength(text)) / max(1, len(text))
    return textwrap.wrap(text, max(8, int(width / length)))


__all__ = ["Case", "find_worst", "make_page", "make_sheet", "write_pages"]
