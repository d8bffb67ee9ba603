"""The check for a GPU, run on the CPU at its smallest size."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import gpu_check  # noqa: E402


def wrong(context: gpu_check.Context) -> dict:
    return gpu_check.compare(torch.ones(2), torch.tensor([1.0, float("nan")]), 0.1)


@pytest.mark.slow
def test_every_check_runs_and_one_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "CHECKS", {"wrong": wrong, **gpu_check.CHECKS})
    options = ["--device", "cpu", "--size", "tiny", "--output", str(tmp_path / "found")]
    monkeypatch.setattr(sys, "argv", ["gpu_check", *options])
    assert gpu_check.main() == 1
    found = json.loads((tmp_path / "found.json").read_text())
    outcomes = {check["check"]: check["outcome"] for check in found["checks"]}
    assert outcomes.pop("wrong") == "FAIL"
    skipped = {name for name, outcome in outcomes.items() if outcome == "SKIPPED"}
    need = {"parity, flash attention in the vision tower", "decoding compiled with CUDA graphs"}
    assert need <= skipped <= {*need, "bitsandbytes int8", "bitsandbytes nf4"}
    assert {outcome for name, outcome in outcomes.items() if name not in skipped} == {"PASS"}
    table = (tmp_path / "found.md").read_text()
    assert "| parity, float32 | PASS | difference: " in table
    assert "| wrong | FAIL | Failed: logits differ by nan, allowed are 0.1 |" in table


def test_weights_that_differ_fail_the_parity_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    context = gpu_check.Context(torch.device("cpu"), gpu_check.TINY, repeats=1, new_tokens=2)
    expected = context.reference()
    monkeypatch.setattr(gpu_check.Context, "reference", lambda self: expected.flip(-1))
    for dtype in gpu_check.TOLERANCES:
        with pytest.raises(gpu_check.Failed, match="logits differ by"):
            gpu_check.parity(dtype)(context)
