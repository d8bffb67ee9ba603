"""Tells the upstream checks of LION, builds the tiny model folder, and marks what is known to fail."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from exclusions import EXCLUSIONS, FAILS_IN_SUBTESTS
from fetch_hub_objects_for_ci import IMAGE
from PIL import Image
from tiny_lion import save_tiny_lion
from transformers import AutoModel
from transformers.models.auto import modeling_auto, processing_auto

from transformers_lion import LionVisionConfig
from transformers_lion.modeling_lion import LionVisionModel

# The checks look up by name what a class is for, in tables that the Auto classes' `register` does not write to.
modeling_auto.MODEL_MAPPING_NAMES.update(lion="LionModel", lion_t5="LionT5Model")
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["lion"] = "LionForConditionalGeneration"
modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES["lion_t5"] = "LionT5ForConditionalGeneration"
processing_auto.PROCESSOR_MAPPING_NAMES["lion"] = "AutoProcessor"
AutoModel.register(LionVisionConfig, LionVisionModel)

TINY_MODELS = {
    "LionForConditionalGeneration": {
        "tokenizer_classes": ["T5Tokenizer"],
        "processor_classes": ["AutoImageProcessor"],
        "model_classes": ["LionForConditionalGeneration"],
    }
}
"""What the pipeline checks may load, in the form of transformers' own list."""


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # once, before there are workers
        return
    Image.radial_gradient("L").resize((64, 48)).convert("RGB").save(IMAGE)
    folder = Path(os.environ["TRANSFORMERS_TINY_MODEL_PATH"])
    save_tiny_lion(folder / "lion" / "LionForConditionalGeneration")
    (folder / "reports").mkdir(exist_ok=True)
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(TINY_MODELS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        classes, reason = EXCLUSIONS.get(item.name, ((), ""))
        if item.parent.name in classes:
            item.add_marker(pytest.mark.xfail(strict=item.name not in FAILS_IN_SUBTESTS, reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    outcomes = ("passed", "skipped", "xfailed", "failed", "error")
    counts = {
        outcome: Counter(test_class(report) for report in terminalreporter.stats.get(outcome, []))
        for outcome in outcomes
    }
    terminalreporter.section("checks of each class")
    terminalreporter.write_line(f"{'':36}" + "".join(f"{outcome:>9}" for outcome in outcomes))
    for name in sorted(set().union(*counts.values())):
        terminalreporter.write_line(f"{name:36}" + "".join(f"{counts[outcome][name]:9}" for outcome in outcomes))


def test_class(report: pytest.TestReport) -> str:
    """Name of the test class that a report is about, or of the file if it is about that."""
    return report.nodeid.split("::")[-2:][0]
