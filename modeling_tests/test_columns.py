"""Columns of tables and arrays become lists, empty cells `None`, and fields that nobody reads are found."""

from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
import torch

from transformers_lion.columns import to_plain, unread_fields

WORDS = ["a cat", "a dog"]


@pytest.mark.parametrize(
    "column",
    [
        WORDS,
        tuple(WORDS),
        np.array(WORDS),
        np.array(WORDS, dtype=object),
        pandas.Series(WORDS, index=[7, 3]),
        pandas.Series(WORDS).astype("string"),
        pyarrow.array(WORDS),
        (word for word in WORDS),
    ],
)
def test_a_column_of_any_kind_is_a_list(column: Any) -> None:
    assert to_plain(column) == WORDS


@pytest.mark.parametrize("cell", [None, float("nan"), np.nan, np.float32("nan"), pandas.NA, pandas.NaT])
def test_an_empty_cell_is_none(cell: Any) -> None:
    assert to_plain(cell) is None
    assert to_plain(["a", cell]) == ["a", None]


@pytest.mark.parametrize("value", ["text", b"bytes", False, 3, {"a": [1]}])
def test_a_single_value_stays_as_it_is(value: Any) -> None:
    assert to_plain(value) is value


def test_lists_in_cells_are_lists() -> None:
    assert to_plain(pandas.Series([np.array(WORDS), np.nan, []])) == [WORDS, None, []]
    assert to_plain(torch.tensor([[0.5, 1.0]])) == [[0.5, 1.0]]


def test_fields_that_nobody_reads_are_named_but_for_notes_and_empty_ones() -> None:
    fields = {"image": 1, "hint": "x", "id": 1, "image_id": 2, "_note": 3, "gone": None, "nan": float("nan"), 5: "y"}
    assert unread_fields(fields, {"image"}) == ["hint", "5"]
