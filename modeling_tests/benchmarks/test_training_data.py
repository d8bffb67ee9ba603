"""The benchmark of training data: its records can be read in all ways that it measures."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import training_data


@pytest.mark.parametrize("form", training_data.FORMS)
def test_each_start_reaches_the_first_batch(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "NUM_IMAGES", 3)
    monkeypatch.setattr(training_data, "CHUNK", 20)
    training_data.generate(tmp_path, 50)
    for start in training_data.STARTS:
        found = training_data.measure(tmp_path / training_data.FORMS[form], start)
        assert found["seconds"] > 0
