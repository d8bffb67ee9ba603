"""How examples are grouped into batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformers_lion.evaluation import batches as module
from transformers_lion.evaluation.batches import plan_batches
from transformers_lion.evaluation.task import Example

COUNTS = st.lists(st.integers(1, 12), max_size=40)


def examples(counts: list[int]) -> list[Example]:
    """Create questions of various lengths: one count per image."""
    return [
        Example(f"{image}-{place}", f"{image}.jpg", "?" * (1 + (7 * image + 3 * place) % 20), None)
        for image, count in enumerate(counts)
        for place in range(count)
    ]


@given(COUNTS, st.integers(1, 9))
def test_each_example_is_in_one_batch_with_all_of_its_image(counts: list[int], batch_size: int) -> None:
    made = examples(counts)
    batches = plan_batches(made[::2] + made[1::2], batch_size)
    assert sorted(x.id for batch in batches for x in batch) == sorted(x.id for x in made)
    places = [{x.image for x in batch} for batch in batches]
    assert sum(map(len, places)) == len(counts)
    assert all(len(batch) <= batch_size or len(images) == 1 for batch, images in zip(batches, places, strict=True))


def test_batches_are_full_where_images_have_one_question_each_and_of_like_lengths() -> None:
    batches = plan_batches(examples([1] * 40), 8)
    assert [len(batch) for batch in batches] == [8] * 5
    lengths = [[len(x.question) for x in batch] for batch in batches]
    assert [length for batch in lengths for length in batch] == sorted(length for batch in lengths for length in batch)


def test_images_are_put_in_order_of_length_within_a_window_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    made = examples([1] * 12)
    assert {x.id for batch in plan_batches(made, 2)[:2] for x in batch} == {x.id for x in made[:4]}


def test_small_images_fill_up_what_a_larger_one_leaves() -> None:
    assert sorted(map(len, plan_batches(examples([3, 3, 1, 1]), 4))) == [4, 4]


def test_a_batch_size_below_one_is_named() -> None:
    with pytest.raises(ValueError, match="batch size is 0, but must be at least 1"):
        plan_batches(examples([1]), 0)
