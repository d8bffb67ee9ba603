"""The notebooks run, and print what is stored in them."""

from pathlib import Path

import pytest

from docs.notebooks import NOTEBOOKS, execute, printed

LARGEST = 100_000
"""Bytes of a notebook with its images."""


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_runs_and_prints_what_is_stored_in_it(page: Path, workplace: Path) -> None:
    assert printed(execute(page, workplace)) == printed(page.read_text()), f"python docs/refresh.py {page.stem}"


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_a_notebook_is_small(page: Path) -> None:
    assert page.stat().st_size < LARGEST
