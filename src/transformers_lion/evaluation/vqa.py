"""Questions with short answers: VQA accuracy, exact match, and multiple choice by likelihood.

Source: VQA accuracy and its normalization of answers follow VQA's own evaluation (arXiv:1505.00468, section 5;
vqaEval.py), including its quirks, which are marked. Prompts are those of InstructBLIP (arXiv:2305.06500, appendix C),
because LION's are not published. All metrics are percentages.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from .data_files import (
    IMAGE_NAMES,
    Row,
    describe,
    leave_out_training,
    list_rows,
    name_some,
    read_document,
    read_image,
    read_rows,
    require_unique,
)
from .predictions import candidate_scores, score_measures
from .task import Example, Prediction, Scores

logger = logging.getLogger(__name__)

PROMPT = "Question: {} Short answer:"
CHOICE_PROMPT = "Question: {} Options: {}. Short answer:"
STATEMENT_PROMPT = 'Based on the image, is this statement true or false? "{}" Answer:'
STATEMENT_CHOICES = ("false", "true")
"""Candidates by label, 0 or 1, for statements in the format of VSR."""

ID_NAMES = ("question_id", "id", "qid")
ANSWER_NAMES = ("answers", "direct_answers", "answer")
CHOICE_NAMES = ("choices", "options", "candidates")

TEXT_CHOICE = "choose_txt"
"""Type of IconQA's questions with text choices. Its other questions have image choices or no choices."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"

NUM_AGREEING = 3
"""Number of people who must give an answer for it to be fully correct."""
MIN_PEOPLE = NUM_AGREEING + 1
"""Minimum number of people: with fewer, no answer could be fully correct, because each person is left out once."""

CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're "
    "you've"
)
"""Contractions that are restored if one apostrophe is missing."""

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS)}}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")
NUM_PERIODS = 32
"""Maximum number of periods to remove: the official script passes `re.UNICODE`, which is 32, as the count."""
NUMBER_WITH_COMMA = re.compile(r"\d,\d")


def _list_repairs() -> Iterator[tuple[str, str]]:
    """Yield each contraction without one of its apostrophes, and the restored contraction."""
    for contraction in CONTRACTIONS.split():
        for place, letter in enumerate(contraction):
            if letter == "'":
                yield contraction[:place] + contraction[place + 1 :], contraction
    yield "somebody'd", "somebodyd"  # reversed in the official script


REPAIRS = dict(_list_repairs())


def normalize_answer(answer: str) -> str:
    """Lowercase an answer, drop punctuation and articles, convert number words to digits, and restore contractions."""
    words = [DIGITS.get(word, word) for word in _drop_punctuation(answer).lower().split()]
    return " ".join(REPAIRS.get(word, word) for word in words if word not in ARTICLES)


def _drop_punctuation(answer: str) -> str:
    """Remove punctuation, or replace it by a space where it joins two words.

    No space is inserted if the answer has a number like 1,000, or if the punctuation mark is next to a space anywhere
    in it.
    """
    text, has_number = answer, NUMBER_WITH_COMMA.search(answer) is not None
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or has_number else " ")
    return PERIOD.sub("", text, count=NUM_PERIODS)


def clean(answer: str) -> str:
    """Put an answer on one line."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def compute_vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Compute the VQA accuracy of an answer, from 0 to 1.

    It is the average of min(agreement / 3, 1) over all subsets that leave out one person.

    Args:
        answer: Answer of the model.
        references: Answers of all people, ten in VQA.
    """
    answer, given = clean(answer), [clean(reference) for reference in references]
    if len(set(given)) > 1:  # if all agree, the official script compares without normalizing
        answer, given = normalize_answer(answer), [normalize_answer(reference) for reference in given]
    agreeing = given.count(answer)
    without_agreeing = min(1.0, (agreeing - 1) / NUM_AGREEING)
    without_other = min(1.0, agreeing / NUM_AGREEING)
    return (agreeing * without_agreeing + (len(given) - agreeing) * without_other) / len(given)


def _compute_exact_match(answer: str, references: Sequence[str]) -> dict[str, float]:
    """Return 100 if an answer equals one of the references, with and without normalization, otherwise 0."""
    normalized = {normalize_answer(clean(reference)) for reference in references}
    return {
        "accuracy": 100.0 * (normalize_answer(clean(answer)) in normalized),
        "accuracy_verbatim": 100.0 * (answer in references),
    }


def score_vqa(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Scores:
    """Compute VQA accuracy. The references are the answers of all people."""
    return score_measures(
        examples,
        predictions,
        lambda example, found: {"accuracy": 100 * compute_vqa_accuracy(found.answer, example.references)},
    )


def score_exact_match(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Scores:
    """Compute the exact match with any of the references, which are lists of answers.

    `accuracy` compares normalized answers. `accuracy_verbatim` compares the unchanged text, as GQA's own script does.
    """
    return score_measures(
        examples, predictions, lambda example, found: _compute_exact_match(found.answer, example.references)
    )


def score_multiple_choice(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Scores:
    """Compute how often the right candidate is the most likely one. The reference is its index.

    If n candidates are equally likely, each counts 1/n, the expected value of choosing one of them at random.
    """
    return score_measures(examples, predictions, _judge_choice)


def _judge_choice(example: Example, prediction: Prediction) -> dict[str, float]:
    scores = candidate_scores(example, prediction)
    likeliest = [place for place, score in enumerate(scores) if score == max(scores)]
    return {"accuracy": 100.0 * (example.references in likeliest) / len(likeliest)}


def load_vqa(data: Path, images: Path | None = None) -> list[Example]:
    """Load questions that several people answered: VQAv2, OK-VQA, A-OKVQA (direct answers), or any records.

    Args:
        data: File of questions, file of annotations, folder with both, or file of records.
        images: Image folder.
    """
    rows, subset = _read_questions(data)
    asked = [row for row in rows if row.find("difficult_direct_answer") is not True]
    if len(asked) < len(rows):
        logger.info(
            "%s: skipped %d of %d questions marked as too difficult.",
            data,
            len(rows) - len(asked),
            len(rows),
        )
    return finish([_read_answered(row, images, subset, MIN_PEOPLE) for row in asked], data)


def load_exact_match(data: Path, images: Path | None = None) -> list[Example]:
    """Load questions with one or several right answers: GQA, a file as in `load_vqa`, or any records."""
    rows, subset = _read_questions(data)
    return finish([_read_answered(row, images, subset) for row in rows], data)


def load_multiple_choice(data: Path, images: Path | None = None) -> list[Example]:
    """Load questions with candidates: A-OKVQA, IconQA, VSR, or any records with `choices` and `answer`."""
    rows = read_rows(data)
    chosen = [row for row in rows if row.find("ques_type") in (None, TEXT_CHOICE)]
    if len(chosen) < len(rows):
        logger.info("%s: %d of %d questions have text choices.", data, len(chosen), len(rows))
    return finish(
        [_read_statement(row, images) if _is_statement(row) else _read_choice(row, images) for row in chosen], data
    )


def finish(examples: list[Example], data: Path) -> list[Example]:
    """Check that there are examples and that their ids are unique."""
    if not examples:
        raise ValueError(f"{data} has no questions for this task.")
    require_unique([example.id for example in examples], str(data))
    return leave_out_training(examples)


def _read_questions(data: Path) -> tuple[list[Row], str]:
    """Read the records of a file, or of a pair of files in VQA's format, and the subset of COCO that they refer to.

    Raises:
        ValueError: If one file of a pair is missing, or the two do not match.
    """
    if data.is_dir():
        data = _find_file(data, "questions")
    document = read_document(data)
    if isinstance(document, Row) and isinstance(document.find("questions"), list):
        return _join_pair(document, read_document(_find_partner(data, "annotations")))
    if isinstance(document, Row) and isinstance(document.find("annotations"), list):
        return _join_pair(read_document(_find_partner(data, "questions")), document)
    return list_rows(document), ""


def _find_file(folder: Path, part: str) -> Path:
    """Find the only JSON file in a folder with `part` in its name."""
    found = sorted(folder.glob(f"*{part}*.json"))
    if len(found) != 1:
        names = name_some([path.name for path in found])
        raise ValueError(f"{folder}: expected one file *{part}*.json, but found {len(found)}: {names}.")
    return found[0]


def _find_partner(path: Path, part: str) -> Path:
    """Find the questions for annotations, or vice versa: v2_OpenEnded_X_questions, v2_X_annotations."""
    found = [other for other in path.parent.glob(f"*{part}*.json") if _stem_of_pair(other) == _stem_of_pair(path)]
    if not found:
        kind = "v2_OpenEnded_X_questions.json and v2_X_annotations.json"
        raise ValueError(f"{path}: expected the file of {part} in the same folder, named like {kind}.")
    return max(found, key=lambda other: "OpenEnded" in other.name)


def _stem_of_pair(path: Path) -> str:
    """Return the common part of the names of a file of questions and its file of annotations."""
    return re.sub("OpenEnded_|MultipleChoice_|questions|annotations", "", path.name)


def _join_pair(questions: Row | list[Row], annotations: Row | list[Row]) -> tuple[list[Row], str]:
    """Join annotations with their questions, and return the subset of COCO."""
    if isinstance(questions, list) or isinstance(annotations, list):
        wrong = (questions if isinstance(questions, list) else annotations)[0]  # type: ignore[index]
        raise wrong.error("expected a file with questions and one with annotations, not lists.")
    asked = {row.name("question_id"): row for row in questions.rows("questions")}
    answered = list(annotations.rows("annotations"))
    unknown = [name for name in (row.name("question_id") for row in answered) if name not in asked]
    if unknown or len(asked) != len(answered):
        raise ValueError(
            f"{annotations.where} has {len(answered)} annotations for the {len(asked)} questions of "
            f"{questions.where}; without a question: {name_some(unknown)}."
        )
    subset = annotations.find("data_subtype") or questions.find("data_subtype") or ""
    return [Row({**asked[row.name("question_id")].fields, **row.fields}, row.where) for row in answered], str(subset)


def _read_answered(row: Row, images: Path | None, subset: str = "", num_people: int = 1) -> Example:
    """Read a question with the answers of at least `num_people` people."""
    answers = _read_answers(row)
    if len(answers) < num_people:
        raise row.error(
            f"expected the answers of at least {num_people} people, but found {len(answers)}; "
            "use exact match for the answers of one person."
        )
    return Example(
        row.name(*ID_NAMES),
        read_image(row, images, subset=subset),
        PROMPT.format(row.text("question")),
        answers,
        group=row.find("answer_type", "split") or "",
        tags=row.tags,
    )


def _read_answers(row: Row) -> list[str]:
    """Read answers: a list of strings, a list of objects with a string in `answer`, or a single string."""
    value = row.need(*ANSWER_NAMES)
    answers = value if isinstance(value, list) else [value]
    found = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    texts = [text for text in found if isinstance(text, str)]
    if not texts or len(texts) < len(found):
        raise row.error(
            f"expected a string or a list of strings in {' or '.join(ANSWER_NAMES)}, not {describe(value)}."
        )
    return texts


def _is_statement(row: Row) -> bool:
    """Whether a record is a statement that is true or false, as in VSR."""
    return row.find("question", *CHOICE_NAMES) is None and row.find("caption", "statement") is not None


def _read_statement(row: Row, images: Path | None) -> Example:
    """Read a statement with its label, 0 or 1. Without an id, its position is used."""
    label = row.need("label")
    if label not in (0, 1):
        raise row.error(f"expected 0 or 1 in label, not {describe(label)}.")
    statement = STATEMENT_PROMPT.format(row.text("caption", "statement"))
    return _make_choice(row, images, statement, STATEMENT_CHOICES, int(label))


def _read_choice(row: Row, images: Path | None) -> Example:
    choices = row.texts(*CHOICE_NAMES)
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    question = CHOICE_PROMPT.format(row.text("question"), options)
    return _make_choice(row, images, question, choices, _read_place(row, choices))


def _read_place(row: Row, choices: Sequence[str]) -> int:
    """Read the index of the right candidate, which is given as an index or as text."""
    answer = row.need("correct_choice_idx", "answer", "label")
    if isinstance(answer, str) and choices.count(answer) == 1:
        return choices.index(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    raise row.error(f"expected one of the {len(choices)} choices or its index in answer, not {describe(answer)}.")


def _make_choice(row: Row, images: Path | None, question: str, candidates: tuple[str, ...], place: int) -> Example:
    name = row.name(*ID_NAMES) if row.find(*ID_NAMES) is not None else row.where.rpartition(" ")[2]
    image = f"{name}/image.png" if row.find(*IMAGE_NAMES) is None and row.find("ques_type") else read_image(row, images)
    group = row.find("split") or ""
    return Example(name, image, question, place, candidates=candidates, group=group, tags=row.tags)


__all__ = [
    "candidate_scores",
    "compute_vqa_accuracy",
    "load_exact_match",
    "load_multiple_choice",
    "load_vqa",
    "normalize_answer",
    "score_exact_match",
    "score_multiple_choice",
    "score_vqa",
]
