"""Behind the page: images are encoded once, answers match `Lion` and can be stopped, users are independent."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from transformers_lion import Lion
from transformers_lion.demo import answering
from transformers_lion.demo.answering import (
    MAX_CHARACTERS,
    MAX_TAGS,
    Options,
    Progress,
    Question,
    Seen,
    answer,
    make_question,
    read_box,
    read_tags,
    see,
    with_answer,
)  # fmt: skip
from transformers_lion.example import sketch

GREEDY = {"num_beams": 1, "max_new_tokens": 64}


@pytest.fixture(scope="module")
def seen(lion: Lion) -> Seen:
    return see(lion, sketch())


def last(lion: Lion, seen: Seen, question: Question, tags: Any, options: Options = Options()) -> Progress:  # noqa: B008
    return list(answer(lion, seen, question, tags, options))[-1]


@pytest.fixture
def encoded(lion: Lion) -> Iterator[list[int]]:
    """A list that grows whenever the vision tower encodes an image."""
    calls: list[int] = []
    hook = lion.model.vision_model.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def test_several_questions_encode_the_image_once(lion: Lion, encoded: list[int]) -> None:
    seen = see(lion, sketch())
    for task, about in (("caption", ""), ("ask", "How many objects are there?"), ("locate", "the red circle")):
        question = make_question(lion, seen, task, about)  # type: ignore[arg-type]
        seen = with_answer(seen, question, last(lion, seen, question, seen.tags))
    assert len(encoded) == 1
    assert [row.task for row in seen.asked] == ["caption", "ask", "locate"]


@pytest.mark.parametrize("tags", [["red", "circle"], [], None])
def test_answers_are_those_of_lion(lion: Lion, seen: Seen, tags: list[str] | None) -> None:
    given: Any = {"tag_source": "none"} if tags is None else {"tags": tags}
    caption = last(lion, seen, make_question(lion, seen, "caption", ""), tags).answer
    assert caption is not None
    assert caption.text == lion.caption(sketch(), **given, **GREEDY)
    located = last(lion, seen, make_question(lion, seen, "locate", " the  red circle "), tags).answer
    assert located == replace(lion.locate(sketch(), "the red circle", **given, **GREEDY), num_tokens=0)
    region = last(lion, seen, make_question(lion, seen, "region", "51, 57, 268, 264"), tags).answer
    assert region is not None
    assert region.text == lion.describe_region(sketch(), (51, 57, 268, 264), **given, **GREEDY)


def test_beam_search_answers_match_lion(lion: Lion, seen: Seen) -> None:
    found = last(lion, seen, make_question(lion, seen, "caption", ""), seen.tags, Options(3, 20))
    assert found.text == lion.caption(sketch(), num_beams=3, max_new_tokens=20)
    assert found.first is None


def test_an_answer_grows_word_by_word(lion: Lion, seen: Seen) -> None:
    texts = [part.text for part in answer(lion, seen, make_question(lion, seen, "caption", ""), None, Options())]
    assert len(set(texts)) > 3
    assert all(texts[-1].startswith(text) for text in texts)


def test_closing_an_answer_stops_the_model(lion: Lion, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    put, steps = answering.TextSoFar.put, []

    def slow(self: Any, value: Any) -> None:
        steps.append(1)
        time.sleep(0.05)
        put(self, value)

    monkeypatch.setattr(answering.TextSoFar, "put", slow)
    before = threading.active_count()
    parts = answer(lion, seen, make_question(lion, seen, "caption", ""), None, Options(1, 64))
    next(parts)
    parts.close()  # type: ignore[attr-defined]
    for _ in range(100):
        if threading.active_count() == before:
            break
        time.sleep(0.05)
    assert threading.active_count() == before
    assert len(steps) < 6


def test_an_answer_without_new_words_still_reports(lion: Lion, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "HEARTBEAT", 0.01)
    parts = list(answer(lion, seen, make_question(lion, seen, "caption", ""), None, Options(4, 20)))
    assert len(parts) > 3
    assert {part.text for part in parts[:-2]} <= {"", parts[-1].text}


def test_an_error_of_the_model_is_raised_where_the_answer_is_read(lion: Lion, seen: Seen) -> None:
    question = make_question(lion, seen, "caption", "")
    with pytest.raises(ValueError, match="max_new_tokens"):
        last(lion, seen, question, None, Options(1, 0))


def test_users_with_different_tasks_do_not_mix(lion: Lion) -> None:
    jobs = [("caption", ""), ("locate", "the blue triangle"), ("ask", "What color is the triangle?")]

    def run(job: tuple[Any, str]) -> str:
        seen = see(lion, sketch())
        return last(lion, seen, make_question(lion, seen, *job), seen.tags).text

    alone = [run(job) for job in jobs]
    assert len(set(alone)) == 3
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, jobs * 2)) == alone * 2


def test_an_image_without_a_tagger_has_no_tags(lion: Lion) -> None:
    assert see(Lion(lion.model, lion.processor), sketch()).tags is None


# --- what users type ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "about", "said"),
    [
        ("ask", "  ", "Type a question"),
        ("locate", "", "Type what to find"),
        ("region", "", "Choose a region"),
        ("region", "1, 2, 3", "four numbers"),
        ("region", "1, 2, 3, x", "four numbers"),
        ("region", "700, 10, 900, 20", "no area"),
        ("region", "nan, 10, 20, 20", "no area"),
        ("ask", "a" * (MAX_CHARACTERS + 1), f"{MAX_CHARACTERS + 1} characters"),
    ],
)
def test_an_invalid_question_is_refused(lion: Lion, seen: Seen, task: Any, about: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_question(lion, seen, task, about)


def test_a_box_may_be_typed_from_any_corner() -> None:
    assert read_box("30 40, 10,20") == (10, 20, 30, 40)


def test_typed_tags_are_split_at_commas_and_deduplicated() -> None:
    assert read_tags(" red, big  dog,red,, blue", ["blue"]) == ["red", "big dog"]


@pytest.mark.parametrize(("text", "known"), [("x" * 61, []), ("new", [str(i) for i in range(MAX_TAGS)])])
def test_too_long_or_too_many_tags_are_refused(text: str, known: list[str]) -> None:
    with pytest.raises(ValueError, match=r"6[01]|10[01]"):
        read_tags(text, known)
