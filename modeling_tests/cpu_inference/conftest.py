"""Tiny models count as large."""

import pytest

from transformers_lion.cpu_inference import exchange, plan
from transformers_lion.cpu_inference.plan import CpuFeatures


@pytest.fixture(autouse=True)
def packs_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every linear layer is worth a pack, and the processor has no units for bfloat16."""
    monkeypatch.setattr(exchange, "MIN_WEIGHTS", 1)
    features = CpuFeatures("AVX2", True, True, False, False)
    monkeypatch.setattr(plan, "detect_features", lambda: features)
